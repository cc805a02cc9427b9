//go:build integration

package integration

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// externalURL adds SASL EXTERNAL, the login by client certificate, to a URL.
func externalURL(url string) string { return url + "?auth_mechanism=external" }

// withoutUser removes the user from a URL.
func withoutUser(url string) string {
	scheme, rest, _ := strings.Cut(url, "://")
	_, host, _ := strings.Cut(rest, "@")
	return scheme + "://" + host
}

// showing trusts the broker's authority and offers a client certificate.
func showing(t *testing.T, caFile string, own ...tls.Certificate) amqpx.Option {
	t.Helper()
	authority, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	return amqpx.WithTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, GetClientCertificate: offering(own)})
}

// documentedFault returns the expected report of a fault: its words, whose fault it is and its
// level, from the table in docs/operations.md.
func documentedFault(t *testing.T, kind amqpx.FaultKind, step string) (want faulty, whose string) {
	t.Helper()
	manual, err := os.ReadFile(filepath.Join(rig.Root(t), "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `" + string(kind) + "` \\| `([^`]+)` \\| ([^|]+) \\| (quick|slow) \\|").FindSubmatch(manual)
	if row == nil {
		t.Fatalf("docs/operations.md has no row for the fault %s", kind)
	}
	level := zapcore.WarnLevel
	if string(row[3]) == "slow" {
		level = zap.ErrorLevel
	}
	return faulty{kind, []string{step + ": ", string(row[1])}, level}, string(row[2])
}

// TestExternal logs servers and clients in by client certificate (SASL EXTERNAL). The broker
// takes the name of the user from the certificate.
func TestExternal(t *testing.T) {
	t.Parallel()
	broker := mutualTLS.For(t)
	trusted := authorityOf(t, broker)
	until := time.Now().Add(time.Hour)
	urls := map[string]string{"mechanism in the URL": externalURL(broker.TLSURL), "no user in the URL": withoutUser(broker.TLSURL)}
	known, unknown := "known-"+uuid.NewString(), "unknown-"+uuid.NewString()
	broker.Ctl("add_user", known, uuid.NewString())
	broker.Ctl("clear_password", known)
	broker.Ctl("set_permissions", known, ".*", ".*", ".*")
	t.Cleanup(func() { broker.Ctl("delete_user", known) })

	for form, url := range urls {
		t.Run("accepted, "+form, func(t *testing.T) {
			r := rig.On(t, broker.URL)
			good := showing(t, broker.CAFile, signedFor(t, trusted, known, until))
			r.ServeAt(url, rig.Methods{"b": letter}, good)
			client := r.ClientAt(url, good)
			rig.Connected(t, client)
			if got := rig.Call(t, client, "b", nil); string(got) != "b" {
				t.Errorf("got %q", got)
			}
			if users := broker.Ctl("-q", "list_connections", "user", "auth_mechanism"); !strings.Contains(users, known+"\tEXTERNAL") {
				t.Errorf("no connection of %s:\n%s", known, users)
			}
		})
		for name, c := range map[string]struct {
			own         tls.Certificate
			kind        amqpx.FaultKind
			step, whose string
		}{
			"no user of that name": {signedFor(t, trusted, unknown, until), amqpx.FaultCertificateUser, "authenticate", "broker's settings"},
			"expired":              {signedFor(t, trusted, known, time.Now().Add(-time.Hour)), amqpx.FaultClientCertificateExpired, "TLS handshake", "own settings"},
		} {
			t.Run(name+", "+form, func(t *testing.T) {
				t.Parallel()
				want, whose := documentedFault(t, c.kind, c.step)
				if whose != c.whose {
					t.Errorf("the manual calls it a fault of %s, want %s", whose, c.whose)
				}
				r := rig.Beyond(t, url)
				client, logs := startingClient(t, r, url, showing(t, broker.CAFile, c.own))
				want.check(t, client, logs)
				server, logs := startingServer(t, r, url, showing(t, broker.CAFile, c.own))
				want.check(t, server, logs)
			})
		}
	}
}

// TestExternalUserThatIsAddedLater: the process logs in without a restart after the user of its
// certificate was added.
func TestExternalUserThatIsAddedLater(t *testing.T) {
	t.Parallel()
	broker := mutualTLS.For(t)
	url, name := externalURL(broker.TLSURL), "later-"+uuid.NewString()
	own := signedFor(t, authorityOf(t, broker), name, time.Now().Add(time.Hour))
	client, logs := startingClient(t, rig.Beyond(t, url), url, showing(t, broker.CAFile, own))
	want, _ := documentedFault(t, amqpx.FaultCertificateUser, "authenticate")
	want.check(t, client, logs)
	broker.Ctl("add_user", name, uuid.NewString())
	t.Cleanup(func() { broker.Ctl("delete_user", name) })
	broker.Ctl("set_permissions", name, ".*", ".*", ".*")
	becomesReady(t, client)
}

// TestExternalIsNotOffered: a broker without the mechanism EXTERNAL is named.
func TestExternalIsNotOffered(t *testing.T) {
	t.Parallel()
	secure, caFile := rig.TLS(t)
	url := externalURL(secure)
	client, logs := startingClient(t, rig.Beyond(t, url), url, showing(t, caFile))
	want, whose := documentedFault(t, amqpx.FaultLoginMechanism, "authenticate")
	if whose != "broker's settings" {
		t.Errorf("the manual calls it a fault of %s", whose)
	}
	want.check(t, client, logs)
}
