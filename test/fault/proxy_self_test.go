//go:build fault

package fault

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"rabbitmq-rpc/test/internal/rig"
)

// TestProxy: each impairment does what its comment says, and leaves a proxy that works.
func TestProxy(t *testing.T) {
	t.Parallel()
	for name, try := range map[string]func(p *proxy, k *talk){
		"none": func(_ *proxy, k *talk) { k.want(100_000) },
		"latency": func(p *proxy, k *talk) {
			defer p.impair(up, impairment{latency: 50 * time.Millisecond, jitter: 10 * time.Millisecond})()
			if took := k.want(10); took < 40*time.Millisecond {
				k.t.Errorf("took %v", took)
			}
		},
		"rate": func(p *proxy, k *talk) {
			defer p.impair(down, impairment{rate: 100_000})()
			if took := k.want(30_000); took < 190*time.Millisecond {
				k.t.Errorf("took %v", took)
			}
		},
		"slice": func(p *proxy, k *talk) {
			defer p.impair(down, impairment{slice: 16})()
			k.want(10_000)
		},
		"limit": func(p *proxy, k *talk) {
			defer p.impair(down, impairment{limit: 1000})()
			k.want(600)
			k.send(600)
			if got, err := io.ReadAll(k.conn); len(got) != 400 || err != nil {
				k.t.Errorf("got %d bytes, %v; want 400 and the end", len(got), err)
			}
		},
		"vanish": func(p *proxy, k *talk) {
			heal := p.impair(up, impairment{vanish: true})
			other := newTalk(k.t, p)
			k.send(10)
			rig.Eventually(k.t, "the data is lost", func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				for l := range p.pipes {
					if l.hasLost() {
						return true
					}
				}
				return false
			})
			heal()
			if got, err := io.ReadAll(k.conn); len(got) > 0 || err != nil {
				k.t.Errorf("got %d bytes, %v; want the end", len(got), err)
			}
			other.want(10) // it has lost nothing
		},
		"reset": func(p *proxy, k *talk) {
			heal := p.impair(down, impairment{reset: true})
			k.send(10)
			if _, err := k.conn.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNRESET) {
				k.t.Errorf("error %v", err)
			}
			heal()
		},
		"cut": func(p *proxy, k *talk) {
			k.want(10) // it is accepted
			restore := p.cut()
			if _, err := io.ReadAll(k.conn); err != nil {
				k.t.Error(err)
			}
			if _, err := new(net.Dialer).DialContext(k.t.Context(), "tcp", p.listen); !errors.Is(err, syscall.ECONNREFUSED) {
				k.t.Errorf("error %v", err)
			}
			restore()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, "amqp://"+echoServer(t)+"/")
			try(p, newTalk(t, p))
			newTalk(t, p).want(100_000)
		})
	}
}

// echoServer returns the address of a server that sends back what it receives.
func echoServer(t *testing.T) (address string) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
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
			go func() { // ends with the connection
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// talk is a connection through a proxy.
type talk struct {
	t    *testing.T
	conn net.Conn
}

func newTalk(t *testing.T, p *proxy) *talk {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", p.listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &talk{t, conn}
}

// send sends n bytes, which it returns.
func (k *talk) send(n int) []byte {
	k.t.Helper()
	data := make([]byte, n)
	_, _ = rand.Read(data)
	if _, err := k.conn.Write(data); err != nil {
		k.t.Fatal(err)
	}
	return data
}

// want sends n bytes and wants them back. It returns the time that this took.
func (k *talk) want(n int) time.Duration {
	k.t.Helper()
	begun := time.Now()
	sent, got := k.send(n), make([]byte, n)
	if _, err := io.ReadFull(k.conn, got); err != nil || !bytes.Equal(got, sent) {
		k.t.Errorf("%d bytes did not come back: %v", n, err)
	}
	return time.Since(begun)
}
