//go:build integration

package integration

import (
	"context"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// volume is a folder of files like a secret mounted by Kubernetes: the files are symbolic
// connections through the link ..data, which is replaced as a whole.
type volume struct {
	t   *testing.T
	dir string
}

func newVolume(t *testing.T, files map[string]string) *volume {
	t.Helper()
	v := &volume{t: t, dir: t.TempDir()}
	v.swap(files)
	for name := range files {
		v.must(os.Symlink(filepath.Join("..data", name), v.path(name)))
	}
	return v
}

func (v *volume) path(name string) string { return filepath.Join(v.dir, name) }

func (v *volume) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

// swap replaces all files at once.
func (v *volume) swap(files map[string]string) {
	v.t.Helper()
	version := ".." + uuid.NewString()
	v.must(os.Mkdir(v.path(version), 0o700))
	for name, content := range files {
		v.must(os.WriteFile(v.path(filepath.Join(version, name)), []byte(content), 0o600))
	}
	v.must(os.Symlink(version, v.path("..tmp")))
	v.must(os.Rename(v.path("..tmp"), v.path("..data")))
}

// TestRotatedPasswordIsReadAtTheNextDial changes a user's password on the broker and in the
// file of the URL, and cuts the connections.
func TestRotatedPasswordIsReadAtTheNextDial(t *testing.T) {
	r := rig.New(t)
	proxy, tenant := r.Proxy(), rig.Manage(t).Tenant()
	tenant.Grant(".*")
	with := func(password string) string {
		return rig.Rewrite(t, proxy.URL(), func(u *url.URL) {
			u.User, u.Path = url.UserPassword(tenant.User, password), "/"+tenant.Vhost
		})
	}
	files := newVolume(t, map[string]string{"url": with(tenant.Password)})
	t.Setenv("AMQP_URL", "")
	t.Setenv("AMQP_URL_FILE", files.path("url"))
	client := clientOfTheEnvironment(t)
	rig.Connected(t, client)

	const changed = "rotated-4711"
	rig.Manage(t).Do(http.MethodPut, map[string]any{"password": changed, "tags": ""}, nil, "users", tenant.User)
	proxy.Cut()
	rig.Eventually(t, "the old password is refused", func() bool {
		err := client.Status().Err
		return err != nil && strings.Contains(err.Error(), "wrong user name or password")
	})
	files.swap(map[string]string{"url": "amqp://half:written/" + changed + "@h"})
	files.swap(map[string]string{"url": with(changed)})
	rig.Eventually(t, "the client is back with the new password", func() bool {
		st := client.Status()
		return st.Ready() && st.Generation == 2
	})
}

// clientOfTheEnvironment creates a client from AMQP_… variables, like the services.
func clientOfTheEnvironment(t *testing.T) *amqpx.Client {
	t.Helper()
	t.Setenv("AMQP_BACKOFF_MAX", "200ms")
	var settings config.AMQP
	if err := config.Load(&settings); err != nil {
		t.Fatal(err)
	}
	var options []amqpx.ClientOption
	for _, o := range settings.Options("rotation", zap.NewNop()) {
		options = append(options, o)
	}
	client, err := amqpx.NewClient(settings.URL.Reveal(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(context.WithoutCancel(t.Context())) })
	return client
}

// TestRotatedCertificatesAreReadAtTheNextDial starts with an expired client certificate,
// replaces it, and then replaces the trusted authority.
func TestRotatedCertificatesAreReadAtTheNextDial(t *testing.T) {
	broker := mutualTLS.For(t)
	authority, err := os.ReadFile(broker.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	signer := authorityOf(t, broker)
	content := func(ca string, until time.Time) map[string]string {
		cert, key := pemOf(t, signedBy(t, signer, until))
		return map[string]string{"ca": ca, "crt": cert, "key": key}
	}
	day := time.Now().Add(time.Hour)
	files := newVolume(t, content(string(authority), time.Now().Add(-time.Hour)))
	t.Setenv("AMQP_URL", broker.TLSURL)
	t.Setenv("AMQP_TLS_CA_FILE", files.path("ca"))
	t.Setenv("AMQP_TLS_CERT_FILE", files.path("crt"))
	t.Setenv("AMQP_TLS_KEY_FILE", files.path("key"))
	client := clientOfTheEnvironment(t)
	says := func(kind amqpx.FaultKind) {
		t.Helper()
		rig.Eventually(t, "the fault "+string(kind), func() bool { return client.Status().Fault == kind })
	}
	says(amqpx.FaultClientCertificateExpired)
	files.swap(content(string(authority), day))
	rig.Eventually(t, "the client connects with the new certificate", func() bool { return client.Status().Ready() })

	another, _ := pemOf(t, signedBy(t, signer, day))
	files.swap(content(another, day))
	broker.Ctl("close_all_connections", "certificates are rotated")
	says(amqpx.FaultBrokerCertificate)
	files.swap(content(string(authority), day))
	rig.Eventually(t, "the client trusts the broker again", func() bool { return client.Status().Ready() })
}
