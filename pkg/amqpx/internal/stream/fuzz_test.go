package stream

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// FuzzReceive gives messages of a peer, and of a stranger, to a side with an open stream. Whatever they
// are, what is kept is bounded by the credit, and nothing is left when the link has ended.
func FuzzReceive(f *testing.F) {
	frames := func(all ...wire.Frame) (body []byte) {
		for i := range all {
			body = all[i].AppendTo(body)
		}
		return body
	}
	f.Add(frames(wire.Frame{Stream: 1, Accept: true, HeadersDone: true, Items: items("a", "b")}, wire.Frame{Stream: 1, Seq: 2, End: &wire.End{Items: 2}}), false)
	f.Add(frames(wire.Frame{Stream: 1, Items: items("a"), HalfClose: true, CreditItems: 100, CreditBytes: 1}), true)
	f.Add(frames(wire.Frame{Ping: 1}, wire.Frame{Pong: 7}, wire.Frame{Stream: 1, Reset: &wire.End{Taken: 9}}), true)
	f.Add(append(frames(wire.Frame{Stream: 1, Items: items(make([]string, 100)...)}), 0xff, 'x'), true)
	f.Fuzz(func(t *testing.T, body []byte, server bool) {
		table := NewTable(Config{Server: server, KeepAlive: time.Hour, Memory: 1 << 20})
		var waiting []*Message
		link := table.NewLink("side", func(m *Message) { waiting = append(waiting, m) })
		write := func() {
			for len(waiting) > 0 {
				m := waiting[0]
				waiting = waiting[1:]
				if m.Begin() {
					m.Confirmed()
				}
			}
		}
		options := &Options{WindowItems: 8, WindowBytes: 100}
		var s *Stream
		if server {
			s = link.Open("peer", "", &wire.Frame{Stream: 1, Open: true, CreditItems: 10, CreditBytes: 1000}, 0, options)
			s.Accept(func() {})
			s.Probe()
		} else {
			s = table.NewStream(options)
			s.Put([]byte("first"), false)
			s.Start()
		}
		write()
		for i, message := range bytes.Split(body, []byte{0xff}) {
			from := "peer"
			if i%3 == 2 {
				from = "stranger"
			}
			link.Receive(from, "", message)
			write()
			checkBounds(t, s)
		}
		link.End(errors.New("over"))
		write()
		if table.Counts.Open.Load() != 0 || table.windows != 0 || s.Result() == nil {
			t.Errorf("%d streams are open, windows %d, result %v", table.Counts.Open.Load(), table.windows, s.Result())
		}
	})
}

// checkBounds checks that a stream keeps no more than its credit, and the peers of its link little.
func checkBounds(t *testing.T, s *Stream) {
	t.Helper()
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	count, size := 0, 0
	for i := range s.in {
		count += s.in[i].Count
		size += s.in[i].Bytes
	}
	if count != s.inItems || size != s.inBytes {
		t.Errorf("%d items of %d bytes wait, counted %d of %d", count, size, s.inItems, s.inBytes)
	}
	if s.stage == stageOpen && (s.receivedItems > s.grantedItems || s.inItems > max(s.windowItems, firstItems)) {
		t.Errorf("%d items of %d granted, %d wait", s.receivedItems, s.grantedItems, s.inItems)
	}
	for _, p := range s.link.peers {
		if len(p.control) > maxControl+256 {
			t.Errorf("%d bytes wait for %s", len(p.control), p.queue)
		}
	}
}
