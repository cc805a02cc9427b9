//go:build integration

package integration

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// heartbeat leaves a test some time beyond the two heartbeats after which a silent connection
// is abandoned, and keeps the dead consumer at the broker for a while.
const heartbeat = 3 * time.Second

// noticed bounds the time until a silent connection is abandoned, with a further heartbeat for the
// test itself, on a machine that also does other things.
const noticed = 3 * heartbeat

// hole is a proxy that can make its connections half-open: data is lost in one direction or
// both, without a signal to either end. Later connections work.
type hole struct {
	url string

	mu     sync.Mutex
	pairs  []*pair
	closed bool
	wg     sync.WaitGroup
}

// pair is one connection through the hole.
type pair struct {
	client, broker net.Conn
	up, down       valve
}

// valve stops the data of one direction.
type valve struct {
	mu   sync.Mutex
	shut bool
	gone chan struct{} // closed when the connection ends
}

// pass copies until an end closes or the valve is shut. After the shutting, it leaves all data
// unread and both ends open.
func (v *valve) pass(to, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		v.mu.Lock()
		shut := v.shut
		v.mu.Unlock()
		if shut {
			<-v.gone
			return
		}
		if err != nil {
			_ = to.Close()
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (v *valve) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.shut = true
}

// dig returns a hole in front of the rig's broker.
func dig(t *testing.T, r *rig.Rig) *hole {
	t.Helper()
	uri, err := amqp.ParseURI(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hole{url: rig.Rewrite(t, r.URL, func(u *url.URL) { u.Host = l.Addr().String() })}
	h.wg.Go(func() { // ends when the listener is closed
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			broker, err := net.Dial("tcp", net.JoinHostPort(uri.Host, fmt.Sprint(uri.Port))) //nolint:noctx // ends with the hole.
			if err != nil {
				_ = client.Close()
				continue
			}
			h.join(client, broker)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		h.mu.Lock()
		h.closed = true
		for _, p := range h.pairs {
			close(p.up.gone)
			close(p.down.gone)
			_ = p.client.Close()
			_ = p.broker.Close()
		}
		h.mu.Unlock()
		h.wg.Wait()
	})
	return h
}

func (h *hole) join(client, broker net.Conn) {
	p := &pair{client: client, broker: broker}
	p.up.gone, p.down.gone = make(chan struct{}), make(chan struct{})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		_ = client.Close()
		_ = broker.Close()
		return
	}
	h.pairs = append(h.pairs, p)
	h.wg.Go(func() { p.up.pass(broker, client) })   // both end with the connection,
	h.wg.Go(func() { p.down.pass(client, broker) }) // or with the hole
}

// swallow makes every open connection half-open.
func (h *hole) swallow(up, down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.pairs {
		if up {
			p.up.close()
		}
		if down {
			p.down.close()
		}
	}
}

// beat sends heartbeats to the broker in the place of the clients, so that the broker keeps the
// connections that are open now until the test ends. The clients' last frames must have arrived.
func (h *hole) beat() {
	heartbeat := []byte{8, 0, 0, 0, 0, 0, 0, 0xce} // AMQP 0-9-1, section 4.2.7
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.pairs {
		h.wg.Go(func() { // ends with the hole
			every := time.NewTicker(time.Second)
			defer every.Stop()
			for {
				if _, err := p.broker.Write(heartbeat); err != nil {
					return
				}
				select {
				case <-every.C:
				case <-p.up.gone:
					return
				}
			}
		})
	}
}

// givesUp waits until the client leaves the state ready, and returns the duration.
func givesUp(t *testing.T, c *amqpx.Client) time.Duration {
	t.Helper()
	begun := time.Now()
	for st := range c.Watch(t.Context()) {
		if !st.Ready() {
			break
		}
		if time.Since(begun) > time.Minute {
			t.Fatal("the client does not notice")
		}
	}
	return time.Since(begun)
}

// TestHalfOpenConnection: a silent connection is abandoned in time. The dead consumer of the reply
// queue, still known to the broker, receives no responses once the new consumer exists.
func TestHalfOpenConnection(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	r.Serve(rig.Methods{"b": letter, "slow": slow.handle})
	h := dig(t, r)
	client := r.ClientAt(h.url, amqpx.WithHeartbeat(heartbeat))
	rig.Connected(t, client)
	// The call is idempotent, because the broker's confirm may be lost, too.
	call := begin(rig.Patience(t), client, "slow", []byte("x"), amqpx.Idempotent())
	rig.Recv(t, slow.entered, "the request")
	h.swallow(true, true)
	h.beat()
	took := givesUp(t, client)
	t.Logf("noticed after %v", took)
	if took > noticed {
		t.Errorf("noticed after %v, want at most %v", took, noticed)
	}
	reconnected(t, client)
	raw, name := r.Raw(), replyQueue(t, r)
	consumers := func() int {
		q, err := raw.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return q.Consumers
	}
	for made := range 200 {
		if _, err := client.Call(rig.Patience(t), "b", nil); err != nil {
			t.Fatalf("call %d beside a dead consumer: %v", made, err)
		}
	}
	if n := consumers(); n != 2 {
		t.Errorf("%d consumers, want the dead one too", n)
	}
	close(slow.release)
	if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "x" {
		t.Errorf("got %q, %v, want the response of before the cut", got.response, got.err)
	}
}

// TestMuteBroker loses only the broker's data: the broker still receives the client's data.
func TestMuteBroker(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	proxy := r.Proxy()
	client := r.ClientAt(proxy.URL(), amqpx.WithHeartbeat(heartbeat))
	rig.Connected(t, client)
	proxy.Mute()
	took := givesUp(t, client)
	proxy.Unmute()
	t.Logf("noticed after %v", took)
	if took > noticed {
		t.Errorf("noticed after %v, want at most %v", took, noticed)
	}
}

// TestDeafBroker loses only the client's data. The client's probes get no response.
func TestDeafBroker(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	h := dig(t, r)
	client := r.ClientAt(h.url, amqpx.WithHeartbeat(heartbeat))
	rig.Connected(t, client)
	h.swallow(true, false)
	took := givesUp(t, client)
	t.Logf("noticed after %v", took)
	if took > noticed {
		t.Errorf("noticed after %v, want at most %v", took, noticed)
	}
}

// TestStalledPublishHoldsNoCall: a peer that no longer reads, and so stalls the write of a
// large request, delays no call beyond its deadline: neither the call being written nor the
// calls behind it.
func TestStalledPublishHoldsNoCall(t *testing.T) {
	r := rig.New(t)
	slow := hold()
	r.Serve(rig.Methods{"slow": slow.handle})
	t.Cleanup(func() { close(slow.release) })
	h := dig(t, r)
	client := r.ClientAt(h.url)
	rig.Connected(t, client)
	h.swallow(true, false)
	const tolerance = 2 * time.Second // the write ends after [amqpx.DefaultWriteTimeout]
	var all sync.WaitGroup
	for i := range 16 {
		body, deadline := []byte("behind it"), time.Second
		if i == 0 {
			// The body exceeds the sockets' buffers. Copying it takes time under the race
			// detector.
			body, deadline = make([]byte, amqpx.DefaultMaxMessageSize), 4*time.Second
		}
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			over := make(chan time.Time, 1) // late itself, when the machine is busy
			context.AfterFunc(ctx, func() { over <- time.Now() })
			_, err := client.Call(ctx, "slow", body)
			late := time.Since(<-over)
			want{
				code: amqpx.CodeDeadlineExceeded, is: []error{context.DeadlineExceeded}, outcome: amqpx.OutcomeOf(err),
			}.check(t, err)
			if amqpx.OutcomeOf(err) == amqpx.Ran {
				t.Errorf("outcome of %v", err)
			}
			if late > tolerance {
				t.Errorf("call %d took %v longer than its deadline", i, late)
			}
		})
	}
	all.Wait()
	if !client.Status().Ready() {
		t.Errorf("status %+v: the write should have stalled the whole time", client.Status())
	}
}
