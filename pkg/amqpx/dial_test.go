package amqpx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// listenPeer accepts connections on a loopback port and has p answer the first.
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

func realDialer() netDialer {
	return netDialer{heartbeat: 10 * time.Second, writeTimeout: time.Second}
}

func TestDialedLinkPublishesAndCloses(t *testing.T) {
	t.Parallel()
	url, accepted := listenPeer(t, &peer{})
	l, err := realDialer().dial(t.Context(), url, "the name")
	if err != nil {
		t.Fatal(err)
	}
	p := <-accepted
	ch, err := l.channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	l.hold()
	word, err := ch.publish("q", true, amqp.Publishing{AppId: "m", Body: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	l.release()
	<-word.Done()
	wantSame(t, "confirmed", word.Acked(), true)
	l.close()
	<-p.ended
	if reason, ok := <-l.closed(); ok {
		t.Errorf("closed by us with reason %v", reason)
	}
	if !bytes.Contains(p.start, []byte("the name")) {
		t.Error("the connection has no name")
	}
	if _, err := ch.publish("q", true, amqp.Publishing{}); !errors.Is(err, amqp.ErrClosed) {
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
			_, err := realDialer().dial(ctx, url, "")
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
			<-(<-accepted).ended
			wantSame(t, "plain words", classify(parseTarget(url), err).words, "no answer in time")
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
			_, err := realDialer().dial(t.Context(), url, "")
			<-(<-accepted).ended
			f := classify(parseTarget(url), err)
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
	_, err = realDialer().dial(t.Context(), url, "")
	f := classify(parseTarget(url), err)
	wantSame(t, "plain words", f.words, "no connection: nothing accepts one at this address")
	wantSame(t, "pace", f.pace, paceQuick)
	wantTexts(t, f, l.Addr().String(), "connection refused")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := realDialer().dial(ctx, url, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestCutLinkReportsItsEnd(t *testing.T) {
	t.Parallel()
	url, accepted := listenPeer(t, &peer{mute: []method{{85, 10}}})
	l, err := realDialer().dial(t.Context(), url, "")
	if err != nil {
		t.Fatal(err)
	}
	p := <-accepted
	ch, err := l.channel()
	if err != nil {
		t.Fatal(err)
	}
	hung := make(chan error, 1)
	go func() { hung <- ch.Confirm(false) }()
	l.cut()
	if err := <-hung; err == nil {
		t.Error("a call that the broker did not answer succeeded")
	}
	if reason := <-l.closed(); reason == nil {
		t.Error("a cut link ended without a reason")
	}
	<-p.ended
	l.close()
}

// The library gives a peer three halves of the heartbeat interval, which a broker fills
// at least once. Nothing here may keep it from noticing.
func TestSilentPeerIsNoticedInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const heartbeat = 10 * time.Second
		near, far := net.Pipe()
		p := servePeer(far, &peer{})
		s := newSocket(near, time.Minute)
		s.frames = newFrameReader(near, contentLimits{})
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

// TestLargeBodyOverASlowNetwork: while a body is discarded, which takes longer than a peer
// may be silent, the peer is not taken for dead.
func TestLargeBodyOverASlowNetwork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const heartbeat, chunk, chunks = 10 * time.Second, 100_000, 100
		near, far := net.Pipe()
		p := servePeer(far, &peer{})
		s := newSocket(near, time.Minute)
		s.frames = newFrameReader(near, contentLimits{maxBody: chunk})
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
		drop, _ := droppedBodyOf(d.Headers)
		wantSame(t, "dropped", drop, droppedBody{size: chunks * chunk, limit: chunk})
		_ = near.Close()
		<-p.ended
		_ = conn.Close()
	})
}

func TestCloseOfALinkIsBounded(t *testing.T) {
	t.Parallel()
	url, accepted := listenPeer(t, &peer{mute: []method{{10, 50}}})
	l, err := realDialer().dial(t.Context(), url, "")
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	l.close()
	if took := time.Since(begun); took > 3*closeTimeout {
		t.Errorf("took %v", took)
	}
	<-(<-accepted).ended
}
