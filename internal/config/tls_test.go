package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// certificates counts the certificates made.
var certificates int64 //nolint:gochecknoglobals // no test here runs beside another that makes some

// certificate returns a self-signed certificate and its key as PEM.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certificates++
	end := time.Now().Add(time.Duration(certificates) * time.Hour) // different for each certificate
	template := &x509.Certificate{SerialNumber: big.NewInt(certificates), NotAfter: end, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func TestTLSFiles(t *testing.T) {
	certPEM, keyPEM := certificate(t)
	_, otherPEM := certificate(t)
	cert, key, other, junk := file(t, certPEM), file(t, keyPEM), file(t, otherPEM), file(t, "junk")
	const ca, crt, ky, name, missing = "AMQP_TLS_CA_FILE", "AMQP_TLS_CERT_FILE", "AMQP_TLS_KEY_FILE", "AMQP_TLS_SERVER_NAME", "/nonexistent/pem"
	for name, c := range map[string]struct {
		url  string
		env  map[string]string
		want []string
	}{
		"all":          {"amqps://h/", map[string]string{ca: cert, crt: cert, ky: key}, nil},
		"ca only":      {"amqps://h/", map[string]string{ca: cert}, nil},
		"upper case":   {"AMQPS://h/", map[string]string{ca: cert}, nil},
		"name only":    {"amqps://h/", map[string]string{name: "broker.test"}, nil},
		"address only": {"amqps://h/", map[string]string{name: "::1"}, nil},
		"name of what": {"amqps://h/", map[string]string{name: "broker/test"}, []string{name + ": is not the name or the address of a host"}},
		"plain, name":  {"amqp://h/", map[string]string{name: "broker.test"}, []string{name + ": is set, but no broker URL begins with amqps://"}},
		"plain URL":    {"amqp://h/", map[string]string{ca: cert}, []string{ca + ": is set, but no broker URL begins with amqps://"}},
		"ca missing":   {"amqps://h/", map[string]string{ca: missing}, []string{ca + ": no such file or directory"}},
		"ca junk":      {"amqps://h/", map[string]string{ca: junk}, []string{ca + ": " + junk + " holds no PEM certificate"}},
		"no key":       {"amqps://h/", map[string]string{crt: cert}, []string{ky + ": is missing: AMQP_TLS_CERT_FILE is set"}},
		"no cert":      {"amqps://h/", map[string]string{ky: key}, []string{crt + ": is missing: AMQP_TLS_KEY_FILE is set"}},
		"both missing": {"amqps://h/", map[string]string{crt: missing, ky: missing}, []string{crt + ": no such file or directory", ky + ": no such file or directory"}},
		"foreign key":  {"amqps://h/", map[string]string{crt: cert, ky: other}, []string{crt + ": " + cert + " with the key " + other}},
		"junk key":     {"amqps://h/", map[string]string{crt: cert, ky: junk}, []string{crt + ": " + cert + " with the key " + junk}},
	} {
		t.Run(name, func(t *testing.T) {
			var a AMQP
			isolate(t, &a)
			t.Setenv("AMQP_URL", c.url)
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			got := load(t, &a)
			if len(got) != len(c.want) {
				t.Fatalf("got %q, want %q", got, c.want)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("got %q, want %q", got[i], want)
				}
			}
		})
	}
}

func TestTLSConfig(t *testing.T) {
	certPEM, keyPEM := certificate(t)
	var a AMQP
	isolate(t, &a)
	t.Setenv("AMQP_URL", "amqps://h/")
	t.Setenv("AMQP_TLS_CA_FILE", file(t, certPEM))
	t.Setenv("AMQP_TLS_CERT_FILE", file(t, certPEM))
	t.Setenv("AMQP_TLS_KEY_FILE", file(t, keyPEM))
	t.Setenv("AMQP_TLS_SERVER_NAME", "broker.test")
	if faults := load(t, &a); faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	now, err := a.files.read()
	if err != nil || now.URLs != "" || now.TLS.MinVersion != tls.VersionTLS12 || now.TLS.RootCAs == nil || len(now.TLS.Certificates) != 1 ||
		now.TLS.ServerName != "broker.test" {
		t.Errorf("TLS configuration is incomplete: %v, %v", now.TLS, err)
	}
	if now.TLS.InsecureSkipVerify {
		t.Error("the server's certificate is not verified")
	}
	if n := len(a.Options("test", zap.NewNop())); n != 9 {
		t.Errorf("%d options with TLS, want 9", n)
	}
}
