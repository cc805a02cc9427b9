//go:build e2e

package e2e

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// TestProductionOverlayRuns starts the overlay compose/production.yml as docs/security.md says: the
// client makes its calls, guest is off, and no password is in the settings or the log of a container.
func TestProductionOverlayRuns(t *testing.T) {
	s := newStack(t)
	if !s.containers {
		t.Log("no Docker engine answers: there is no Compose")
		return
	}
	told := s.upProduction("COMPOSE_FILE=docker-compose.yml:compose/production.yml")

	ids, err := s.composeV2("ps", "-a", "-q")
	containers := strings.Fields(ids)
	if err != nil || len(containers) < 4 {
		t.Fatalf("containers %q (%v)", ids, err)
	}
	maker := s.containerOf("definitions")
	for _, id := range containers {
		told += s.must("docker", "inspect", id) + s.must("docker", "logs", id)
	}
	for _, user := range []string{"server", "client", "operator"} {
		password := s.passwordOf(maker, user)
		if strings.Contains(told, password) {
			t.Errorf("the password of %s is in the settings or the log of a container", user)
		}
	}

	if conn, err := amqp.Dial("amqp://guest:guest@" + s.amqp); err == nil {
		_ = conn.Close()
		t.Error("guest may log in")
	}
	if out, err := s.composeV2("run", "--rm", "-T", "definitions"); err != nil || !strings.Contains(out, "the users are as they should be") {
		t.Errorf("the second start made other users: %v\n%s", err, out)
	}
}

// TestProductionOverlayWithTLSRuns starts the overlays compose/tls.yml and compose/production.yml
// together, as docs/security.md says: the certificates are made at the first start, client and server
// connect over TLS, and the broker accepts neither guest nor a connection without TLS or without a
// certificate.
func TestProductionOverlayWithTLSRuns(t *testing.T) {
	s := newStack(t)
	if !s.containers {
		t.Log("no Docker engine answers: there is no Compose")
		return
	}
	s.upProduction("COMPOSE_FILE=docker-compose.yml:compose/tls.yml:compose/production.yml", "BROKER_ADDRESS=amqps://rabbitmq:5671")
	certificates := s.containerOf("certificates")
	if out := s.must("docker", "logs", certificates); !strings.Contains(out, "new certificates were made") {
		t.Errorf("the first start made no certificates: %s", out)
	}
	if out, err := s.composeV2("run", "--rm", "-T", "certificates"); err != nil || !strings.Contains(out, "the certificates are still good") {
		t.Errorf("the second start made other certificates: %v\n%s", err, out)
	}

	out, err := s.composeV2("exec", "-T", "rabbitmq", "rabbitmqctl", "-q", "list_connections", "user", "ssl")
	if err != nil {
		t.Fatalf("list_connections: %v\n%s", err, out)
	}
	overTLS := 0
	for line := range strings.Lines(out) {
		if cells := strings.Fields(line); len(cells) == 2 && cells[0] == "server" {
			if overTLS++; cells[1] != "true" {
				t.Errorf("a connection of the server is without TLS:\n%s", out)
			}
		}
	}
	if overTLS < 2 {
		t.Errorf("the server has %d connections, want 2:\n%s", overTLS, out)
	}
	s.checkLoginsOverTLS(certificates)
}

// checkLoginsOverTLS checks which logins the broker of the overlays tls and production accepts from
// this machine.
func (s *stack) checkLoginsOverTLS(certificates string) {
	t := s.t
	t.Helper()
	const folder = "/certificates/services/"
	pair, err := tls.X509KeyPair(s.copyOut(certificates, folder+"cert.pem"), s.copyOut(certificates, folder+"key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(s.copyOut(certificates, folder+"ca.pem")) {
		t.Fatal("the authority has no certificate")
	}
	anonymous := &tls.Config{RootCAs: authority, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	known := anonymous.Clone()
	known.Certificates = []tls.Certificate{pair}
	client := url.UserPassword("client", s.passwordOf(s.containerOf("definitions"), "client"))
	for name, c := range map[string]struct {
		scheme, address string
		user            *url.Userinfo
		config          *tls.Config
		accepted        bool
	}{
		"TLS with a certificate":       {"amqps", s.amqps, client, known, true},
		"TLS without a certificate":    {"amqps", s.amqps, client, anonymous, false},
		"guest with a certificate":     {"amqps", s.amqps, url.UserPassword("guest", "guest"), known, false},
		"no TLS":                       {"amqp", s.amqp, client, nil, false},
		"no TLS, at the port of amqps": {"amqp", s.amqps, client, nil, false},
	} {
		target := url.URL{Scheme: c.scheme, User: c.user, Host: c.address}
		conn, err := amqp.DialTLS(target.String(), c.config)
		if err == nil {
			_ = conn.Close()
		}
		if accepted := err == nil; accepted != c.accepted {
			t.Errorf("%s: accepted is %t (%v), want %t", name, accepted, err, c.accepted)
		}
	}
}

// upProduction starts a broker and a server with the overlay production and the given settings, and
// returns the output of a client that made its calls.
func (s *stack) upProduction(settings ...string) string {
	s.t.Helper()
	s.useComposeV2()
	s.env = append(s.env, settings...)
	s.buildImages()
	if out, err := s.composeV2("up", "-d", "--no-build", "--wait", "rabbitmq", "rpc-server"); err != nil {
		s.t.Fatalf("up -d --wait: %v\n%s", err, out)
	}
	out, err := s.composeV2("run", "--no-deps", "-T", "rpc-client")
	if err != nil || !strings.Contains(out, `"calls":1000,"ok":1000,`) || !strings.Contains(out, "every call was answered as expected") {
		s.t.Fatalf("run rpc-client: %v\n%s", err, out)
	}
	return out
}

// containerOf returns the container of a service, also after its end.
func (s *stack) containerOf(service string) string {
	s.t.Helper()
	ids, err := s.composeV2("ps", "-a", "-q", service)
	if err != nil || len(strings.Fields(ids)) != 1 {
		s.t.Fatalf("the containers of %s are %q (%v)", service, ids, err)
	}
	return strings.TrimSpace(ids)
}

// copyOut returns the content of a file in a container.
func (s *stack) copyOut(container, path string) []byte {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "cp", container+":"+path, "-")
	archive, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	files := tar.NewReader(archive)
	if _, err := files.Next(); err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	content, err := io.ReadAll(files)
	if err != nil {
		s.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, archive)
	if err := cmd.Wait(); err != nil {
		s.t.Fatal(err)
	}
	return content
}

// passwordOf returns the password in the URL of a user, from the container that made it.
func (s *stack) passwordOf(container, user string) string {
	s.t.Helper()
	u, err := url.Parse(strings.TrimSpace(string(s.copyOut(container, "/secrets/"+user+"/amqp-url"))))
	if err != nil {
		s.t.Fatalf("the URL of %s cannot be parsed", user)
	}
	password, _ := u.User.Password()
	if u.User.Username() != user || password == "" {
		s.t.Fatalf("the URL of %s names %s", user, u.User.Username())
	}
	return password
}
