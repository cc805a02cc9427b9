package amqpx

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// selfSigned returns a certificate for 127.0.0.1 and broker.test, and the file that a
// client has to trust.
func selfSigned(t *testing.T) (pair tls.Certificate, file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"broker.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// listenTLSPeer is listenPeer behind TLS. The URL has the query.
func listenTLSPeer(t *testing.T, pair tls.Certificate, p *peer, query string) (url string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the connection, or the listener
		if conn, err := l.Accept(); err == nil {
			servePeer(conn, p)
		}
	}()
	return "AMQPS://app:secret@" + l.Addr().String() + "/?" + query
}

// TestUnreadableTableUnderTLS: amqp091-go would end the connection on such a header.
func TestUnreadableTableUnderTLS(t *testing.T) {
	t.Parallel()
	pair, ca := selfSigned(t)
	deliver := frameOf(1, []byte("\x00\x3c\x00\x3c\x01t\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x01q"))
	p := &peer{frames: append(deliver, contentHeader(deepTable(40))...)}
	url := listenTLSPeer(t, pair, p, "cacertfile="+ca)
	l, err := realDialer().dial(t.Context(), url, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	ch, err := l.channel()
	if err != nil {
		t.Fatal(err)
	}
	deliveries, err := ch.Consume("q", "t", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case d := <-deliveries:
		wantSame(t, "headers", d.Headers[headerUnreadable], any(true))
		wantSame(t, "correlation id", d.CorrelationId, "id")
	case reason := <-l.closed():
		t.Fatalf("the link ended: %v", reason)
	}
}

func TestTLSConfigOfADial(t *testing.T) {
	t.Parallel()
	pair, ca := selfSigned(t)
	pool := x509.NewCertPool()
	text, err := os.ReadFile(ca)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		query string
		given *tls.Config
		text  string // of the error; none for a link
	}{
		"nothing trusted":              {"", nil, "certificate"},
		"authority of the URL":         {"cacertfile=" + ca, nil, ""},
		"authority of the option":      {"", &tls.Config{RootCAs: pool}, ""},
		"name of the URL":              {"server_name_indication=broker.test", &tls.Config{RootCAs: pool}, ""},
		"wrong name":                   {"cacertfile=" + ca + "&server_name_indication=other.test", nil, "other.test"},
		"the option's name goes first": {"server_name_indication=other.test", &tls.Config{RootCAs: pool, ServerName: "broker.test"}, ""},
		"missing file":                 {"cacertfile=/nonexistent", nil, "cacertfile"},
		"no certificate":               {"cacertfile=/dev/null", nil, "holds no PEM certificate"},
		"missing pair":                 {"certfile=/nonexistent&keyfile=/nonexistent", nil, "certfile and keyfile"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := realDialer()
			d.tls = c.given
			l, err := d.dial(t.Context(), listenTLSPeer(t, pair, &peer{}, c.query), "")
			if err == nil {
				l.close()
			}
			if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %q", err, c.text)
			}
		})
	}
}

// TestHandshakeEndsWithItsContext dials a peer that says nothing.
func TestHandshakeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // only to free it.
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // ends with the dial
		if conn, err := l.Accept(); err == nil {
			_, _ = conn.Read(make([]byte, 1)) // the client's hello
			cancel()
			_, _ = conn.Read(make([]byte, 4096))
			_ = conn.Close()
		}
	}()
	_, err = realDialer().dial(ctx, "amqps://"+l.Addr().String(), "")
	if ctx.Err() == nil || err == nil {
		t.Errorf("error %v", err)
	}
	wantIs(t, err, context.Canceled)
}

func TestPlainURLKeepsEverythingElse(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"amqps://user:p%40ss@host/v%2Fhost?auth_mechanism=external&heartbeat=7",
		"AMQPS://user:p%40ss@host:5671/v%2Fhost?auth_mechanism=external&heartbeat=7",
	} {
		uri, err := amqp.ParseURI(url)
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "scheme", uri.Scheme, schemeTLS)
		wantSame(t, "port", uri.Port, 5671)
		plain, err := amqp.ParseURI(plainURL(url, uri))
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "plain scheme", plain.Scheme, schemePlain)
		plain.Scheme, plain.Port = uri.Scheme, uri.Port
		wantSame(t, "mechanism", plain.AuthMechanism[0], "external")
		wantSame(t, "rest", plain.String(), uri.String())
		wantSame(t, "heartbeat", plain.Heartbeat, uri.Heartbeat)
	}
}
