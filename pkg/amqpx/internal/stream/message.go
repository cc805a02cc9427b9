package stream

import (
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Message is a message for a publisher. Its content is decided when it is about to be written.
type Message struct {
	link    *Link
	peer    *peer   // nil for an opening
	opening *Stream // nil for frames
	body    []byte
	told    []func() // called when the broker has the message
	ping    bool
}

// Begin decides about the content of a message that is about to be written. It returns false if
// there is nothing to write.
func (m *Message) Begin() bool {
	t := m.link.table
	t.mu.Lock()
	defer t.unlock()
	if m.peer != nil {
		m.peer.waits = false
	}
	if m.link.ended {
		return false
	}
	m.body = m.link.body[:0]
	if m.opening != nil {
		m.composeOpening()
	} else {
		m.peer.compose(m)
	}
	if cap(m.body) <= 2*messageBytes {
		m.link.body = m.body
	}
	if len(m.body) == 0 {
		return false
	}
	t.Counts.Messages.Add(1)
	if m.peer != nil {
		m.peer.unconfirmed++
		m.peer.kick()
	}
	return true
}

// composeOpening writes the opening of a stream, with its first items. The caller holds mu.
func (m *Message) composeOpening() {
	s := m.opening
	if !s.mayOpen() {
		return
	}
	s.stage, s.written = stageOpening, time.Now()
	o := &s.options
	s.grantedItems, s.grantedBytes = uint64(s.windowItems), uint64(s.windowBytes) //nolint:gosec // a window is positive.
	f := wire.Frame{
		Stream: s.number, Open: true, CreditItems: s.grantedItems, CreditBytes: s.grantedBytes, Timeout: wire.NoBudget,
		Headers: o.Headers, ContentType: o.ContentType, ContentEncoding: o.ContentEncoding,
	}
	if !o.Deadline.IsZero() {
		f.Timeout = max(time.Until(o.Deadline), 0)
	}
	s.appendItems(&f, messageBytes, m)
}

// compose writes what is due for the peer: the streams take turns. The caller holds mu.
func (p *peer) compose(m *Message) {
	m.body = append(m.body, p.control...)
	p.control = nil
	if p.pingDue {
		p.ping++
		m.body = (&wire.Frame{Ping: p.ping}).AppendTo(m.body)
		m.ping, p.pingDue, p.pinged, p.confirmed = true, false, true, time.Time{}
		p.probed()
	}
	if p.pong != 0 {
		m.body = (&wire.Frame{Pong: p.pong}).AppendTo(m.body)
		p.pong = 0
	}
	for p.hasTurn() && len(m.body) < messageBytes {
		share := min(max(messageBytes/len(p.turns), minShare), messageBytes-len(m.body))
		s := p.next()
		s.appendFrame(m, share)
		if s.hasWork() {
			s.queued = true
			p.turns = append(p.turns, s)
		}
	}
}

// Opening returns the stream that the message opens, or nil.
func (m *Message) Opening() *Stream { return m.opening }

// Queue returns the queue of the peer; "" for an opening.
func (m *Message) Queue() string {
	if m.peer == nil {
		return ""
	}
	return m.peer.queue
}

// From returns this side's queue of frames.
func (m *Message) From() string { return m.link.queue }

// Body returns the content. It is valid until the next Begin of a message of the link.
func (m *Message) Body() []byte { return m.body }

// Canceled reports whether Begin would return false.
func (m *Message) Canceled() bool {
	t := m.link.table
	t.mu.Lock()
	defer t.mu.Unlock()
	return m.link.ended || m.opening != nil && !m.opening.mayOpen()
}

// Confirmed is called when the broker has confirmed the message.
func (m *Message) Confirmed() {
	t := m.link.table
	t.mu.Lock()
	defer t.unlock()
	m.body = nil
	t.due.calls = append(t.due.calls, m.told...)
	m.told = nil
	p := m.peer
	if p == nil {
		return
	}
	p.unconfirmed--
	if m.ping && p.pinged {
		p.confirmed = time.Now()
	}
	p.kick()
	m.link.forget(p)
	m.link.settled.notify()
}

// Nacked is called instead of Confirmed when the broker has nacked the message. Further openings of
// patient streams then wait for the end of Hold. proven means that no server can have got the
// message: a patient stream is then opened again.
func (m *Message) Nacked(proven bool) {
	t := m.link.table
	t.mu.Lock()
	defer t.unlock()
	s := m.opening
	if s == nil {
		m.failed(nil)
		return
	}
	m.link.held = true
	switch {
	case s.stage != stageOpening || s.peer != nil:
	case proven && s.options.Patient:
		m.link.reopen(s)
	default:
		if proven {
			s.stage = stageWaiting
		}
		s.finish(&Result{Reason: ReasonUnavailable})
		s.leave()
	}
}

// Failed is called instead of Confirmed when it is not known whether the broker has the message, or
// the broker refused it. All streams with the peer end.
func (m *Message) Failed(cause error) {
	m.link.table.mu.Lock()
	defer m.link.table.unlock()
	m.failed(cause)
}

func (m *Message) failed(cause error) {
	t := m.link.table
	m.body = nil
	t.due.calls = append(t.due.calls, m.told...)
	m.told = nil
	if s := m.opening; s != nil {
		if s.stage != stageEnded && s.peer == nil {
			s.finish(&Result{Reason: ReasonUnpublished, Cause: cause})
			s.leave()
		}
		return
	}
	m.peer.unconfirmed--
	m.link.settled.notify()
	m.link.lose(m.peer, ReasonUnpublished, cause)
	m.link.forget(m.peer)
}
