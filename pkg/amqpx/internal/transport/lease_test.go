package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// onChannel returns frames with another channel in their headers.
func onChannel(id uint16, frames []byte) []byte {
	frames = slices.Clone(frames)
	for at := 0; at < len(frames); {
		binary.BigEndian.PutUint16(frames[at+1:], id)
		at += frameOverhead + int(binary.BigEndian.Uint32(frames[at+3:]))
	}
	return frames
}

// Each lease bounds and counts the bodies on its own channels, the connection those on the others.
func TestLeaseHasItsOwnLimits(t *testing.T) {
	t.Parallel()
	first, second := limited(100, 1000), limited(1000, 1000)
	body := amqp.Publishing{Body: make([]byte, 500)}
	small := amqp.Publishing{Body: make([]byte, 50)}
	stream := slices.Concat(
		deliveryOf(t, "t", 1, 200, body), onChannel(2, deliveryOf(t, "t", 1, 200, body)),
		deliveryOf(t, "t", 2, 200, small), onChannel(2, deliveryOf(t, "t", 2, 200, small)),
	)
	f, channels := intakeOf(bytes.NewReader(stream), ContentLimits{MaxBody: 10})
	l := &netLink{socket: &socket{frames: f}}
	leases := []*netLease{leaseOf(t, l, first), leaseOf(t, l, second)}
	for i, lease := range leases {
		channels[i].lease = lease
	}
	if _, err := io.ReadAll(f); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][2]int{{0, 50}, {500, 50}} {
		for j, size := range want {
			d := <-channels[i].consumers["t"].out
			wantSame(t, "body", len(d.Body), size)
			wantSame(t, "dropped", d.Headers[wire.HeaderDropped] != nil, size == 0)
			if j == 1 {
				leases[i].limitsInHand().Release(leases[i].Claim(size))
			}
		}
	}
	wantSame(t, "held by the first", first.InHand.Held.Load(), 0)
	wantSame(t, "held by the second", second.InHand.Held.Load(), 500)
	leases[1].Abandon()
	wantSame(t, "held after the end", second.InHand.Held.Load(), 0)
	wantSame(t, "claimed after the end", leases[1].Claim(500), 0)
	wantSame(t, "counted by the connection", f.unclaimed.Bytes(), 0)
}

func leaseOf(t *testing.T, l *netLink, limits ContentLimits) *netLease {
	t.Helper()
	lease, ok := l.Lease(limits).(*netLease)
	if !ok {
		t.Fatal("no netLease")
	}
	return lease
}

// limitsInHand returns the counter of a lease.
func (l *netLease) limitsInHand() *BytesInHand { return l.bodies.limits.InHand }

// The cork of one lease holds back neither the frames of another nor those of amqp091-go.
func TestCorkOfALeaseIsItsOwn(t *testing.T) {
	t.Parallel()
	c := &slowConn{}
	s := newSocket(c, time.Second)
	s.frames = newFrameReader(bytes.NewReader(nil), ContentLimits{})
	l := &netLink{socket: s}
	corked, other := leaseOf(t, l, ContentLimits{}), leaseOf(t, l, ContentLimits{})
	write := func(of *netLease, text string) {
		t.Helper()
		ch := &netChannel{Channel: new(amqp.Channel), lease: of}
		if err := s.append(ch, false, func(b []byte) ([]byte, error) { return append(b, text...), nil }); err != nil {
			t.Fatal(err)
		}
	}
	corked.Cork()
	write(corked, "a")
	write(corked, "b")
	c.want(t)
	write(other, "c")
	c.want(t, "abc")
	write(corked, "d")
	c.want(t, "abc")
	mustWrite(t, s, "e")
	c.want(t, "abc", "de")
	write(corked, "f")
	corked.Uncork()
	c.want(t, "abc", "de", "f")
	other.Cork()
	write(corked, "g")
	c.want(t, "abc", "de", "f", "g")
}

// An abandoned channel has ended for this process, although the broker does not know it.
func TestAbandonedChannel(t *testing.T) {
	t.Parallel()
	var w writtenFrames
	l, far := openLink(t, &peer{seen: w.seen}, amqp.Config{})
	ch := confirmed(t, l)
	returns := ch.NotifyReturn(make(chan amqp.Return, 1))
	pending := publish(t, ch)
	ch.Abandon()
	<-pending.Done()
	wantSame(t, "acked", pending.Acked(), false)
	wantSame(t, "closed", ch.IsClosed(), true)
	if _, err := ch.PublishTo("", "q", true, amqp.Publishing{}); !errors.Is(err, amqp.ErrClosed) {
		t.Errorf("PublishTo: %v", err)
	}
	if err := ch.Ack(1, false); !errors.Is(err, amqp.ErrClosed) {
		t.Errorf("Ack: %v", err)
	}
	for range 10 { // nobody else reads the returns, and the connection goes on
		if _, err := far.Write(returnFrames(t, "late")); err != nil {
			t.Fatal(err)
		}
	}
	openOwn(t, l)
	ch.Abandon()
	_ = returns
}

// A method that waits for the broker returns when the session is cut, and a channel that the
// broker does not close is abandoned in time.
func TestMuxedChannelReturnsWhenItIsCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gone := make(chan struct{})
		stuck := &stuckConn{gone: gone}
		mux := newSession(Target{})
		mux.Flow = newFlow()
		conn := mux.share(stuck, ContentLimits{})
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error, 3)
		go func() { results <- ch.Barrier() }()
		go func() { _, err := ch.QueueDeclarePassive("q", true, false, false, false, nil); results <- err }()
		settle()
		stuck.opensNone.Store(true)
		go func() { _, err := conn.Channel(); results <- err }()
		settle()
		wantSame(t, "results", len(results), 0)
		conn.Cut()
		for range 3 {
			WantIs(t, <-results, amqp.ErrClosed)
		}
		WantIs(t, ch.Confirm(false), amqp.ErrClosed)
		conn.Close()
		wantSame(t, "abandoned", stuck.abandoned.Load(), 1)
		wantSame(t, "unclosed", mux.unclosed.Load(), 1)
		wantSame(t, "mux ended", mux.Ended(), false)
		close(gone)
		settle()
		wantSame(t, "unclosed after the end of the connection", mux.unclosed.Load(), 0)
		wantSame(t, "methods after the cut", stuck.late.Load(), 0)
		_, err = conn.Channel()
		WantIs(t, err, amqp.ErrClosed)
	})
}
