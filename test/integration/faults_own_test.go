//go:build integration

package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// mutualTLS is a broker that requires a client certificate, and accepts the certificate's common
// name as a login (SASL EXTERNAL).
//
//nolint:gochecknoglobals // several tests share it.
var mutualTLS = rig.Shared(`ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL`)

// authorityOf returns the authority trusted by the broker: its own certificate.
func authorityOf(t *testing.T, b *rig.Broker) tls.Certificate {
	t.Helper()
	authority, err := tls.LoadX509KeyPair(b.CAFile, strings.TrimSuffix(b.CAFile, "cert.pem")+"key.pem")
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// pemOf returns a certificate and its key in PEM format.
func pemOf(t *testing.T, c tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// TestClientCertificates shows the reported fault for each kind of refused client certificate.
// The broker reports the reason only through TLS.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	broker := mutualTLS.For(t)
	authority, err := os.ReadFile(broker.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	trusted := authorityOf(t, broker)
	now := time.Now()
	for name, c := range map[string]struct {
		own  []tls.Certificate
		want amqpx.FaultKind
	}{
		"none":              {nil, amqpx.FaultClientCertificateMissing},
		"expired":           {[]tls.Certificate{signedBy(t, trusted, now.Add(-time.Hour))}, amqpx.FaultClientCertificateExpired},
		"unknown authority": {[]tls.Certificate{signedBy(t, signedBy(t, trusted, now.Add(time.Hour)), now.Add(time.Hour))}, amqpx.FaultClientCertificate},
	} {
		for version, number := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
			t.Run(name+" with TLS "+version, func(t *testing.T) {
				t.Parallel()
				r := rig.Beyond(t, broker.TLSURL)
				client, logs := startingClient(t, r, broker.TLSURL, amqpx.WithTLS(&tls.Config{
					MinVersion: tls.VersionTLS12, MaxVersion: number, RootCAs: pool, GetClientCertificate: offering(c.own),
				}))
				faulty{c.want, []string{"TLS handshake: "}, zap.ErrorLevel}.check(t, client, logs)
			})
		}
	}
	t.Run("good", func(t *testing.T) {
		t.Parallel()
		rig.Connected(t, rig.Beyond(t, broker.TLSURL).ClientAt(broker.TLSURL, amqpx.WithTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{signedBy(t, trusted, now.Add(time.Hour))},
		})))
	})
}

// offering offers a certificate regardless of the broker's list of authorities.
func offering(own []tls.Certificate) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if len(own) == 0 {
			return new(tls.Certificate), nil
		}
		return &own[0], nil
	}
}

// signedBy creates a certificate with the given end of validity.
func signedBy(t *testing.T, authority tls.Certificate, until time.Time) tls.Certificate {
	t.Helper()
	return signedFor(t, authority, "client", until)
}

// signedFor is signedBy with a common name.
func signedFor(t *testing.T, authority tls.Certificate, name string, until time.Time) tls.Certificate {
	t.Helper()
	parent, err := x509.ParseCertificate(authority.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: until.Add(-day), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	made, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, authority.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{made}, PrivateKey: key}
}

// TestFaultsOfABrokerOfItsOwn checks the reported faults for a broker's settings, for bad
// queues and virtual hosts, and for the end of a ready connection, on a private broker.
func TestFaultsOfABrokerOfItsOwn(t *testing.T) {
	t.Parallel()
	address := elsewhere(t)
	conf := "loopback_users.guest = true"
	if rig.BrokerKind() == "plain" {
		conf += "\nlisteners.tcp.2 = " + address
	}
	if rig.Major() != "3" {
		conf += "\ndeprecated_features.permit.transient_nonexcl_queues = false"
	}
	broker := rig.StartBrokerWith(t, conf)
	guests := broker.URL // to a container every connection comes from another machine
	if rig.BrokerKind() == "plain" {
		guests = rig.Rewrite(t, broker.URL, func(u *url.URL) { u.Host = address })
	}
	broker.Ctl("add_user", "another", "pass-word")
	broker.Ctl("set_permissions", "another", ".*", ".*", ".*")
	broker.URL = rig.Rewrite(t, broker.URL, func(u *url.URL) { u.User = url.UserPassword("another", "pass-word") })
	for _, setting := range []string{"channel_tick_interval", "consumer_timeout"} {
		broker.Ctl("eval", "application:set_env(rabbit, "+setting+", 1000).")
	}
	t.Run("acknowledgement that takes too long", func(t *testing.T) {
		t.Parallel()
		acknowledgesTooLate(t, broker)
	})
	if rig.Major() != "3" { // RabbitMQ 3 has no such setting
		t.Run("transient queue", func(t *testing.T) {
			t.Parallel()
			r := rig.Beyond(t, broker.URL)
			r.Queue.Transient = true
			server, logs := startingServer(t, r, broker.URL)
			faulty{amqpx.FaultFeatureForbidden, []string{"declare queue", r.Queue.Name, "forbids a feature"}, zap.ErrorLevel}.check(t, server, logs)
		})
	}
	t.Run("guest from elsewhere", func(t *testing.T) {
		t.Parallel()
		client, logs := startingClient(t, rig.Beyond(t, guests), guests)
		faulty{amqpx.FaultGuest, []string{"authenticate: ", "from the broker's own machine only"}, zap.ErrorLevel}.check(t, client, logs)
	})
	t.Run("stopped queue", func(t *testing.T) {
		t.Parallel()
		stopsRequestQueue(t, broker)
	})
	t.Run("virtual host that is down", func(t *testing.T) {
		t.Parallel()
		bringsVirtualHostDown(t, broker)
	})
	t.Run("default queue types", func(t *testing.T) {
		t.Parallel()
		hasDefaultQueueTypes(t, broker)
	})
}

// vhostOf creates a virtual host and returns its URL.
func vhostOf(t *testing.T, b *rig.Broker, name string, args ...string) string {
	t.Helper()
	b.Ctl(append([]string{"add_vhost", name}, args...)...)
	b.Ctl("set_permissions", "-p", name, "another", ".*", ".*", ".*")
	return rig.Rewrite(t, b.URL, func(u *url.URL) { u.Path = "/" + name })
}

// acknowledgesTooLate shows that a late acknowledgement, which ends a ready connection, is not
// treated as a setup fault.
func acknowledgesTooLate(t *testing.T, broker *rig.Broker) {
	t.Helper()
	r := rig.On(t, broker.URL)
	core, logs := observer.New(zap.DebugLevel)
	held := hold()
	r.Serve(rig.Methods{"b": held.handle}, amqpx.WithLogger(zap.New(core)), amqpx.WithBackoff(time.Millisecond, time.Hour))
	defer close(held.release)
	begin(rig.Patience(t), r.Ready(), "b", nil)
	line := faultLine(t, logs, amqpx.FaultAckTimeout)
	if line.Level != zapcore.WarnLevel {
		t.Errorf("logged at %s", line.Level)
	}
	rig.Eventually(t, "the server is ready again, without an operator's pause", func() bool {
		return logs.FilterMessage("ready").Len() > 1
	})
}

// faultLine waits for the log line of a fault.
func faultLine(t *testing.T, logs *observer.ObservedLogs, kind amqpx.FaultKind) observer.LoggedEntry {
	t.Helper()
	is := zap.String("fault", string(kind))
	rig.Eventually(t, "the fault "+string(kind), func() bool { return logs.FilterField(is).Len() > 0 })
	return logs.FilterField(is).All()[0]
}

// stopsRequestQueue checks that the fault of a request queue stopped by its supervisor names
// the queue and the step.
func stopsRequestQueue(t *testing.T, broker *rig.Broker) {
	t.Helper()
	r := rig.Beyond(t, broker.URL)
	r.Serve(rig.Methods{"b": letter}).Drain() //nolint:errcheck // it only makes the queue.
	stopQueue(t, broker, r.Queue.Name)
	server, logs := startingServer(t, r, broker.URL, amqpx.WithDialTimeout(time.Second))
	want := faulty{amqpx.FaultQueueSilent, []string{"declare queue", r.Queue.Name, "it was stopped"}, zap.WarnLevel}
	want.check(t, server, logs)
	client := r.Ready()
	_, err := client.Call(rig.Within(t, 3*time.Second), "b", nil)
	if err == nil || !strings.Contains(err.Error(), "the broker does not answer for the queue") {
		t.Errorf("the call ended with %v", err)
	}
	rig.Eventually(t, "the status of the client says what is wrong", func() bool {
		st := client.Status()
		return st.Ready() && strings.Contains(st.Reason, "the broker does not answer for the queue")
	})
}

// bringsVirtualHostDown shows that a server recovers after its virtual host was down.
func bringsVirtualHostDown(t *testing.T, broker *rig.Broker) {
	t.Helper()
	r := rig.Beyond(t, vhostOf(t, broker, "down"))
	broker.Ctl("eval", `rabbit_vhost_sup_sup:stop_and_delete_vhost(<<"down">>).`)
	server, logs := startingServer(t, r, r.URL)
	faulty{amqpx.FaultVhostDown, []string{"open virtual host: ", "is down"}, zap.WarnLevel}.check(t, server, logs)
	broker.Ctl("restart_vhost", "-p", "down")
	becomesReady(t, server)
}

// hasDefaultQueueTypes shows the effect of a virtual host's default queue type, stream or
// quorum, on queues declared without a type.
func hasDefaultQueueTypes(t *testing.T, broker *rig.Broker) {
	t.Helper()
	streams, quorums := vhostOf(t, broker, "stream", "--default-queue-type", "stream"), vhostOf(t, broker, "quorum", "--default-queue-type", "quorum")
	for _, limit := range []int{0, 5} {
		r := rig.Beyond(t, streams)
		server, logs := startingServer(t, r, r.URL, amqpx.WithDeliveryLimit(limit))
		faulty{amqpx.FaultQueueStream, []string{"declare queue", r.Queue.Name, "is a stream"}, zap.ErrorLevel}.check(t, server, logs)
	}
	r := rig.On(t, quorums)
	core, logs := observer.New(zap.DebugLevel)
	r.Serve(rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core)))
	if got := rig.Call(t, r.Ready(), "b", nil); string(got) != "b" {
		t.Errorf("got %q", got)
	}
	lines := logs.FilterMessage("queue exists with other properties and is used as it is")
	if lines.Len() != 1 || lines.All()[0].ContextMap()["queue"] != r.Queue.Name {
		t.Errorf("%d lines about the type of the queue: %v", lines.Len(), lines.All())
	}
}

// elsewhere returns a free port at a non-loopback address of this machine.
func elsewhere(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		ip, ok := address.(*net.IPNet)
		if !ok || ip.IP.IsLoopback() || ip.IP.To4() == nil {
			continue
		}
		return rig.FreeAddress(t, ip.IP.String())
	}
	t.Fatalf("this machine has loopback addresses only: %v", addresses)
	return ""
}
