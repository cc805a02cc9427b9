package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// made runs the program and returns its output.
func made(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(args, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// pairIn returns the certificate of a folder, and its authority.
func pairIn(t *testing.T, folder string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(folder, certFile), filepath.Join(folder, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(folder, caFile))
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatalf("no authority: %v", err)
	}
	return pair, pool
}

// The two sides verify each other with the certificates.
func TestCertificatesFitEachOther(t *testing.T) {
	t.Parallel()
	broker, services := t.TempDir(), t.TempDir()
	made(t, broker, services, "rabbitmq", "localhost")
	ofBroker, trustedByBroker := pairIn(t, broker)
	ofServices, trustedByServices := pairIn(t, services)
	for _, name := range []string{"rabbitmq", "localhost"} {
		near, far := net.Pipe()
		server := tls.Server(far, &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ofBroker},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trustedByBroker,
		})
		client := tls.Client(near, &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ofServices}, RootCAs: trustedByServices, ServerName: name,
		})
		result := make(chan error, 1)
		go func() { result <- server.HandshakeContext(t.Context()) }() // ends with the handshake
		if err := client.HandshakeContext(t.Context()); err != nil {
			t.Errorf("client: %v", err)
		}
		if err := <-result; err != nil {
			t.Errorf("server: %v", err)
		}
		_, _ = near.Close(), far.Close()
	}
}

// Good certificates stay; all are made anew if one is missing, is damaged, has another
// authority or does not name the broker.
func TestCertificatesAreMadeOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(t *testing.T, broker, services string)
		broker string
		again  bool
	}{
		"nothing changes": {func(*testing.T, string, string) {}, "rabbitmq", false},
		"key is missing": {func(t *testing.T, broker, _ string) {
			t.Helper()
			if err := os.Remove(filepath.Join(broker, keyFile)); err != nil {
				t.Fatal(err)
			}
		}, "rabbitmq", true},
		"half a file": {func(t *testing.T, _, services string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(services, certFile), []byte("-----BEGIN"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "rabbitmq", true},
		"another authority": {func(t *testing.T, broker, _ string) {
			t.Helper()
			made(t, broker, t.TempDir(), "rabbitmq")
		}, "rabbitmq", true},
		"another name": {func(*testing.T, string, string) {}, "broker", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker, services := t.TempDir(), t.TempDir()
			made(t, broker, services, "rabbitmq")
			c.change(t, broker, services)
			if got := made(t, broker, services, c.broker); strings.HasPrefix(got, "new") != c.again {
				t.Errorf("%q", got)
			}
			if !lasts(broker, []string{c.broker}) || !lasts(services, nil) || !sameAuthority(broker, services) {
				t.Error("the certificates are not good now")
			}
		})
	}
}

func TestArgumentsAreNeeded(t *testing.T) {
	t.Parallel()
	if err := run([]string{"a", "b"}, new(bytes.Buffer)); err == nil {
		t.Error("no error")
	}
	if err := run([]string{"/nonexistent/a", "/nonexistent/b", "c"}, new(bytes.Buffer)); err == nil {
		t.Error("no error for folders that do not exist")
	}
}
