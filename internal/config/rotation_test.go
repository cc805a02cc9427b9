package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// Files are read again at each use, through symbolic links as Kubernetes swaps them; after
// invalid content the last valid value stays in force.
//
//nolint:paralleltest // sets the environment
func TestFilesAreReadAgain(t *testing.T) {
	oldCert, oldKey := certificate(t)
	newCert, newKey := certificate(t)
	dir := t.TempDir()
	swap := func(version, list, cert, key string) {
		t.Helper()
		data := filepath.Join(dir, version)
		for _, err := range []error{
			os.Mkdir(data, 0o700),
			os.WriteFile(filepath.Join(data, "url"), []byte(list), 0o600),
			os.WriteFile(filepath.Join(data, "crt"), []byte(cert), 0o600),
			os.WriteFile(filepath.Join(data, "key"), []byte(key), 0o600),
			os.Symlink(version, filepath.Join(dir, "..tmp")),
			os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	swap("1", "amqps://u:hunter2@h/", oldCert, oldKey)
	var a AMQP
	isolate(t, &a)
	for variable, name := range map[string]string{"AMQP_URL_FILE": "url", "AMQP_TLS_CA_FILE": "crt", "AMQP_TLS_CERT_FILE": "crt", "AMQP_TLS_KEY_FILE": "key"} {
		t.Setenv(variable, filepath.Join(dir, "..data", name))
	}
	if faults := load(t, &a); faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	if n := len(a.Options("test", zap.NewNop())); n != 9 {
		t.Errorf("%d options, want 9", n)
	}
	for i, c := range []struct{ list, cert, key, want, leaf, fault string }{
		{"amqps://u:new@h/", newCert, newKey, "amqps://u:new@h/", newCert, ""},
		{"amqps://u:12/hunter2@h/", newCert, oldKey, "", newCert, "AMQP_URL_FILE: the URL has an @ after"},
		{"amqps://u:x@h/", "hunter2", "hunter2", "amqps://u:x@h/", newCert, "AMQP_TLS_CA_FILE: "},
		{"", oldCert, oldKey, "", oldCert, "AMQP_URL_FILE: "},
		{"amqps://u:y@h/", newCert, newKey, "amqps://u:y@h/", newCert, ""},
	} {
		swap(string(rune('a'+i)), c.list, c.cert, c.key)
		got, err := a.files.read()
		if got.URLs != c.want || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%d: %q, %v", i, got.URLs, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%d: the fault shows what the file holds: %v", i, err)
		}
		want, _ := firstEnd([]byte(c.leaf))
		if got.TLS == nil || len(got.TLS.Certificates) != 1 || !got.TLS.Certificates[0].Leaf.NotAfter.Equal(want) || got.TLS.RootCAs == nil {
			t.Errorf("%d: the certificate in force is another one", i)
		}
		if end, ok := a.CertificateEnd(); !ok || !end.Equal(want) {
			t.Errorf("%d: the certificate ends at %v, want %v", i, end, want)
		}
	}
	if err := os.Remove(filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	got, err := a.files.read()
	if err == nil || got.URLs != "" || got.TLS == nil || len(got.TLS.Certificates) != 1 || strings.Contains(err.Error(), dir) {
		t.Errorf("without files: %+v, %v", got, err)
	}
	if _, ok := (&AMQP{}).CertificateEnd(); ok {
		t.Error("a certificate ends that there is not")
	}
	if _, ok := a.CertificateEnd(); !ok {
		t.Error("the end of the certificate in force is forgotten")
	}
}
