package transport

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// listenPeer accepts connections on a loopback port; p answers the first connection.
func listenPeer(t *testing.T, p *peer) (url string, accepted <-chan *peer) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan *peer, 1)
	go func() {
		conn, err := l.Accept()
		_ = l.Close()
		if err == nil {
			served <- servePeer(conn, p)
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	return fmt.Sprintf("amqp://app:secret@%s/", l.Addr()), served
}

func realDialer() NetDialer {
	return NetDialer{Heartbeat: 10 * time.Second, WriteTimeout: time.Second}
}

func TestDialedConnectionPublishesAndCloses(t *testing.T) {
	t.Parallel()
	url, accepted := listenPeer(t, &peer{})
	l, err := realDialer().Dial(t.Context(), url, "the name")
	if err != nil {
		t.Fatal(err)
	}
	p := <-accepted
	ch, err := l.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	l.Cork()
	word, err := ch.PublishTo("", "q", true, amqp.Publishing{AppId: "m", Body: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	l.Uncork()
	<-word.Done()
	wantSame(t, "confirmed", word.Acked(), true)
	l.Close()
	<-p.ended
	if reason, ok := <-l.Closed(); ok {
		t.Errorf("closed by us with reason %v", reason)
	}
	if !bytes.Contains(p.start, []byte("the name")) {
		t.Error("the connection has no name")
	}
	if _, err := ch.PublishTo("", "q", true, amqp.Publishing{}); !errors.Is(err, amqp.ErrClosed) {
		t.Errorf("publish on a closed link: %v", err)
	}
}

func TestDialThatHangsEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]method{"in the login": {10, 11}, "opening": {10, 40}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, accepted := listenPeer(t, &peer{mute: []method{m}})
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := realDialer().Dial(ctx, url, "")
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
			<-(<-accepted).ended
			wantSame(t, "plain words", Classify(parseTarget(url), err).words, "no answer in time")
		})
	}
}

func TestDialFaultsInPlainWords(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		hangUp method
		plain  string
	}{
		{"wrong password", method{10, 11}, `wrong user name or password for user "app"`},
		{"missing vhost", method{10, 40}, `virtual host "/" is closed to user "app"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			url, accepted := listenPeer(t, &peer{hangUp: []method{c.hangUp}})
			_, err := realDialer().Dial(t.Context(), url, "")
			<-(<-accepted).ended
			f := Classify(parseTarget(url), err)
			wantSame(t, "plain words", f.words, c.plain)
			wantSame(t, "pace", f.pace, paceSlow)
		})
	}
}

func TestDialOfAClosedPort(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	url := fmt.Sprintf("amqp://app:secret@%s/", l.Addr())
	_, err = realDialer().Dial(t.Context(), url, "")
	f := Classify(parseTarget(url), err)
	wantSame(t, "plain words", f.words, "no connection: nothing accepts one at this address")
	wantSame(t, "pace", f.pace, paceQuick)
	WantTexts(t, f, l.Addr().String(), "connection refused")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := realDialer().Dial(ctx, url, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestCutConnectionReportsItsEnd(t *testing.T) {
	t.Parallel()
	url, accepted := listenPeer(t, &peer{mute: []method{{85, 10}}})
	l, err := realDialer().Dial(t.Context(), url, "")
	if err != nil {
		t.Fatal(err)
	}
	p := <-accepted
	ch, err := l.Channel()
	if err != nil {
		t.Fatal(err)
	}
	hung := make(chan error, 1)
	go func() { hung <- ch.Confirm(false) }()
	l.Cut()
	if err := <-hung; err == nil {
		t.Error("a call that the broker did not answer succeeded")
	}
	if reason := <-l.Closed(); reason == nil {
		t.Error("a cut connection ended without a reason")
	}
	<-p.ended
	l.Close()
}

// The library allows a peer 1.5 heartbeat intervals of silence, and a living broker sends data
// at least once in each. The code under test must not delay the detection.
func TestSilentPeerIsNoticedInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const heartbeat = 10 * time.Second
		near, far := net.Pipe()
		p := servePeer(far, &peer{})
		s := newSocket(near, time.Minute)
		s.frames = newFrameReader(near, ContentLimits{})
		conn, err := amqp.Open(s, amqp.Config{Heartbeat: heartbeat, SASL: []amqp.Authentication{&amqp.PlainAuth{}}})
		if err != nil {
			t.Fatal(err)
		}
		ended := conn.NotifyClose(make(chan *amqp.Error, 1))
		if _, err := conn.Channel(); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			pass(heartbeat / 2)
			if _, err := far.Write([]byte{frameTypes, 0, 0, 0, 0, 0, 0, 0xCE}); err != nil {
				t.Fatal(err)
			}
		}
		heard := time.Now()
		if reason := <-ended; reason == nil {
			t.Error("ended without a reason")
		}
		wantSame(t, "noticed after", time.Since(heard), 3*heartbeat/2)
		<-p.ended
	})
}

// TestLargeBodyOverASlowNetwork: discarding a body takes longer than a peer may be silent, and
// the peer must not count as dead meanwhile.
func TestLargeBodyOverASlowNetwork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const heartbeat, chunk, chunks = 10 * time.Second, 100_000, 100
		near, far := net.Pipe()
		p := servePeer(far, &peer{})
		s := newSocket(near, time.Minute)
		s.frames = newFrameReader(near, ContentLimits{MaxBody: chunk})
		conn, err := amqp.Open(s, amqp.Config{Heartbeat: heartbeat, SASL: []amqp.Authentication{&amqp.PlainAuth{}}})
		if err != nil {
			t.Fatal(err)
		}
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		deliveries, err := ch.Consume("q", "t", true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, frame := range [][]byte{deliverFrame("t"), sized(chunks*chunk, contentHeader(nil))} {
			if _, err := far.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		for range chunks {
			pass(heartbeat)
			if _, err := far.Write(frameOf(3, make([]byte, chunk))); err != nil {
				t.Fatal(err)
			}
		}
		d := <-deliveries
		drop, _ := wire.DroppedBodyOf(d.Headers)
		wantSame(t, "dropped", drop, wire.DroppedBody{Size: chunks * chunk, Limit: chunk})
		_ = near.Close()
		<-p.ended
		_ = conn.Close()
	})
}

func TestCloseOfAConnectionIsBounded(t *testing.T) {
	t.Parallel()
	url, accepted := listenPeer(t, &peer{mute: []method{{10, 50}}})
	l, err := realDialer().Dial(t.Context(), url, "")
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		l.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(30 * CloseTimeout):
		t.Fatal("Close waits for a broker that does not answer")
	}
	<-(<-accepted).ended
}

// selfSigned returns a certificate for 127.0.0.1 and broker.test, and the name of a file with
// the certificate for the client to trust.
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

// listenTLSPeer is listenPeer with TLS. The URL gets the query.
func listenTLSPeer(t *testing.T, pair tls.Certificate, p *peer, query string) (url string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the connection or the listener
		if conn, err := l.Accept(); err == nil {
			servePeer(conn, p)
		}
	}()
	return "AMQPS://app:secret@" + l.Addr().String() + "/?" + query
}

// TestUnreadableTableUnderTLS: amqp091-go would end the connection on such a header table.
func TestUnreadableTableUnderTLS(t *testing.T) {
	t.Parallel()
	pair, ca := selfSigned(t)
	deliver := frameOf(1, []byte("\x00\x3c\x00\x3c\x01t\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x01q"))
	p := &peer{frames: append(deliver, contentHeader(deepTable(40))...)}
	url := listenTLSPeer(t, pair, p, "cacertfile="+ca)
	l, err := realDialer().Dial(t.Context(), url, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ch, err := l.Channel()
	if err != nil {
		t.Fatal(err)
	}
	deliveries, err := ch.Consume("q", "t", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case d := <-deliveries:
		wantSame(t, "headers", d.Headers[wire.HeaderUnreadable], any(true))
		wantSame(t, "correlation id", d.CorrelationId, "id")
	case reason := <-l.Closed():
		t.Fatalf("the connection ended: %v", reason)
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
		text  string // of the error; "" if the dial succeeds
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
			d.TLS = func() *tls.Config { return c.given }
			l, err := d.Dial(t.Context(), listenTLSPeer(t, pair, &peer{}, c.query), "")
			if err == nil {
				l.Close()
			}
			if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %q", err, c.text)
			}
		})
	}
}

// TestEndsOfCertificates: a connection knows when the certificates of its TLS handshake end.
func TestEndsOfCertificates(t *testing.T) {
	t.Parallel()
	pair, ca := selfSigned(t)
	own, _ := selfSigned(t)
	ends := func(c tls.Certificate) time.Time {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.NotAfter
	}
	pool := x509.NewCertPool()
	text, err := os.ReadFile(ca)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ask tls.ClientAuthType
		own time.Time
	}{"without a client certificate": {tls.NoClientCert, time.Time{}}, "with one": {tls.RequireAnyClientCert, ends(own)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asking := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientAuth: c.ask}
			l, err := tls.Listen("tcp", "127.0.0.1:0", asking)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			go func() { // ends with the connection or the listener
				if conn, err := l.Accept(); err == nil {
					servePeer(conn, &peer{})
				}
			}()
			d := realDialer()
			d.TLS = func() *tls.Config {
				return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{own}}
			}
			conn, err := d.Dial(t.Context(), "amqps://app:secret@"+l.Addr().String(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			broker, mine := conn.Certificates()
			wantSame(t, "broker's", broker, ends(pair))
			wantSame(t, "own", mine, c.own)
		})
	}
	url, _ := listenPeer(t, &peer{})
	conn, err := realDialer().Dial(t.Context(), url, "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if broker, mine := conn.Certificates(); !broker.IsZero() || !mine.IsZero() {
		t.Errorf("without TLS the certificates end at %v and %v", broker, mine)
	}
}

// TestOldTLSIsNotSpoken: with a broker of TLS 1.1 there is no connection, whatever the
// configuration of the application allows.
func TestOldTLSIsNotSpoken(t *testing.T) {
	t.Parallel()
	pair, ca := selfSigned(t)
	old := &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, Certificates: []tls.Certificate{pair}}
	l, err := tls.Listen("tcp", "127.0.0.1:0", old)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			servePeer(conn, &peer{})
		}
	}()
	pool := x509.NewCertPool()
	text, err := os.ReadFile(ca)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	for _, given := range []*tls.Config{nil, {RootCAs: pool, MinVersion: tls.VersionTLS10}} {
		d := realDialer()
		d.TLS = func() *tls.Config { return given }
		url := "amqps://" + l.Addr().String() + "/?cacertfile=" + ca
		conn, err := d.Dial(t.Context(), url, "")
		if err == nil {
			conn.Close()
			t.Fatal("TLS 1.1 was spoken")
		}
		fault := Classify(parseTarget(url), err)
		wantSame(t, "kind", fault.Kind, FaultTLSHandshake)
		wantSame(t, "pace", fault.pace, paceSlow)
	}
}

// TestHandshakeEndsWithItsContext dials a silent peer.
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
	_, err = realDialer().Dial(ctx, "amqps://"+l.Addr().String(), "")
	if ctx.Err() == nil || err == nil {
		t.Errorf("error %v", err)
	}
	WantIs(t, err, context.Canceled)
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
		wantSame(t, "scheme", uri.Scheme, SchemeTLS)
		wantSame(t, "port", uri.Port, 5671)
		plain, err := amqp.ParseURI(plainURL(url, uri))
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "plain scheme", plain.Scheme, SchemePlain)
		plain.Scheme, plain.Port = uri.Scheme, uri.Port
		wantSame(t, "mechanism", plain.AuthMechanism[0], "external")
		wantSame(t, "rest", plain.String(), uri.String())
		wantSame(t, "heartbeat", plain.Heartbeat, uri.Heartbeat)
	}
}

// After the deletion of three queues at once every consumer's cancellation has a receiver.
func TestSessionWhoseConsumersAreAllCancelled(t *testing.T) {
	t.Parallel()
	url, accepted := listenPeer(t, &peer{})
	s, err := openSession(t.Context(), &Config{Role: "test", Shared: true, Dialer: realDialer()}, parseTarget(url))
	if err != nil {
		t.Fatal(err)
	}
	s.watch(func(amqp.Blocking) {})
	const cancel = "\x01\x00\x01\x00\x00\x00\x07\x00\x3c\x00\x1e\x01a\x00\xce" // basic.cancel "a" on channel 1
	if _, err := (<-accepted).conn.Write([]byte(strings.Repeat(cancel, maxConsumers))); err != nil {
		t.Fatal(err)
	}
	<-s.Done
	begun := time.Now()
	s.Close()
	if took := time.Since(begun); took > 3*time.Second { // amqp091-go gives up after 5 s
		t.Errorf("the session took %v to end", took)
	}
}
