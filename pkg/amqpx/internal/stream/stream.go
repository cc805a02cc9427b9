package stream

import (
	"io"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// stage is how far a stream is.
type stage uint8

const (
	stageIdle    stage = iota // of a client: nothing was asked of it
	stageWaiting              // of a client: the opening waits to be written
	stageOpening              // of a client: the opening was written; of a server: not accepted yet
	stageOpen                 // a server has accepted the stream
	stageEnded                // nothing more is sent, except a reset that is due
)

// Stream is one stream. Its methods may be called by any goroutine; items that several goroutines
// send, or receive, have no order among them. The table's lock guards the fields.
type Stream struct {
	table   *Table
	link    *Link // nil while a stream of a client has none
	peer    *peer // nil until the peer is known
	number  uint64
	options Options
	stage   stage
	queued  bool // in the list of the peer
	counted bool // in the counts of the table
	result  *Result
	done    chan struct{} // closed when result is set
	written time.Time     // when the opening was written
	first   wire.Items    // the items of a written opening, if the stream is patient
	pause   time.Duration // before the opening is written again

	// What is sent.
	out                      wire.Items // waits for a message
	sentItems, sentBytes     uint64
	creditItems, creditBytes uint64 // how much may be sent
	peerTaken                uint64
	halfClosed, halfSent     bool
	accepting                bool // the next frame accepts the stream
	accepted                 func()
	headers                  []wire.StreamHeader // of a server, not sent yet
	headersDue, headersSent  bool
	end                      *wire.End // of a server
	endTold                  func()    // called when the broker has the end
	reset                    *wire.End // due
	sendable                 signal

	// What is received.
	in                           []wire.Items
	inItems, inBytes             int // waiting in in
	receivedItems, receivedBytes uint64
	grantedItems, grantedBytes   uint64
	peerBlocked                  bool // the peer has items that wait for credit
	starved                      bool // the application waited for such items
	takenItems, takenBytes       uint64
	windowItems, windowBytes     int
	creditDue                    bool
	halfReceived                 bool
	peerHeaders                  []wire.StreamHeader
	peerHeaderBytes              int
	headersDone                  bool
	receivable                   signal
}

// Peer returns the queue of the peer; "" while it is not known.
func (s *Stream) Peer() string {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if s.peer == nil {
		return ""
	}
	return s.peer.queue
}

// Options returns the options of the stream, which do not change.
func (s *Stream) Options() *Options { return &s.options }

// Number returns the number of the stream.
func (s *Stream) Number() uint64 { return s.number }

// Meta returns the value of the user of the package.
func (s *Stream) Meta() any { return s.options.Meta }

// Done returns a channel that is closed when the stream has ended. Items may still be received.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Result returns the result of a stream that has ended, with the progress of now; else nil.
func (s *Stream) Result() *Result {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if s.result == nil {
		return nil
	}
	r := *s.result
	r.Progress.Received = s.takenItems
	return &r
}

// Progress returns how far the stream has come.
func (s *Stream) Progress() Progress {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return s.progress()
}

// Given is Progress with the items that wait to be sent, and those that wait to be taken.
func (s *Stream) Given() Progress {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	p := s.progress()
	p.Sent += uint64(s.out.Count)   //nolint:gosec // never negative.
	p.Received += uint64(s.inItems) //nolint:gosec // never negative.
	return p
}

func (s *Stream) progress() Progress {
	return Progress{Sent: s.sentItems, Taken: s.peerTaken, Received: s.takenItems}
}

// Start opens a stream of a client, if it is not open.
func (s *Stream) Start() {
	s.table.mu.Lock()
	defer s.table.unlock()
	s.start()
}

func (s *Stream) start() {
	if s.stage != stageIdle || s.table.cfg.Server {
		return
	}
	t := s.table
	s.stage = stageWaiting
	t.count(s)
	switch {
	case t.closed:
		s.finish(&Result{Reason: ReasonClosed})
	case t.link == nil:
		t.await(s)
	default:
		t.link.adopt(s)
	}
}

// Put adds items, and perhaps the half-close, to a stream of a client that is not open.
func (s *Stream) Put(item []byte, halfClose bool) {
	s.table.mu.Lock()
	defer s.table.unlock()
	s.out.Append(item)
	s.halfClosed = halfClose
}

// Send sends an item, which it copies. It waits while as much waits as the stream may hold. It
// returns io.EOF if the stream has ended, or was half-closed.
func (s *Stream) Send(item []byte) error {
	t := s.table
	for {
		t.mu.Lock()
		switch {
		case s.stage == stageEnded, s.halfClosed, s.end != nil:
			t.mu.Unlock()
			return io.EOF
		case s.out.Count == 0 || s.out.Size() < sendBuffer:
			if s.start(); s.stage == stageEnded { // the table is closed
				t.unlock()
				return io.EOF
			}
			s.out.Append(item)
			s.ready()
			t.unlock()
			return nil
		}
		changed := s.sendable.wait()
		t.mu.Unlock()
		begun := time.Now()
		select {
		case <-changed:
		case <-s.done:
		}
		t.Counts.SendWait.Add(int64(time.Since(begun)))
	}
}

// HalfClose ends the items of a client.
func (s *Stream) HalfClose() {
	s.table.mu.Lock()
	defer s.table.unlock()
	s.start()
	if s.stage != stageEnded {
		s.halfClosed = true
		s.ready()
	}
}

// Receive returns the next item. It returns io.EOF after the last item of a stream that has ended
// without a failure or, for a server, was half-closed by the client; and nil and errEnded if the
// stream has ended otherwise. The item stays valid.
func (s *Stream) Receive() ([]byte, error) {
	t := s.table
	for {
		t.mu.Lock()
		s.start()
		if item, ok := s.next(); ok {
			t.unlock()
			return item, nil
		}
		switch {
		case s.result != nil && s.result.succeeded():
			t.unlock()
			return nil, io.EOF
		case s.result != nil:
			t.unlock()
			return nil, ErrFailed
		case s.halfReceived:
			t.unlock()
			return nil, io.EOF
		}
		s.starved = s.starved || s.peerBlocked
		changed := s.receivable.wait()
		t.unlock()
		select {
		case <-changed:
		case <-s.done:
		}
	}
}

// next removes the next item that was received, and grants credit when half of the window was
// taken. The caller holds mu.
func (s *Stream) next() (item []byte, ok bool) {
	if len(s.in) == 0 {
		return nil, false
	}
	first := &s.in[0]
	item, ok = first.Next()
	if first.Count == 0 {
		*first = wire.Items{}
		if s.in = s.in[1:]; len(s.in) == 0 {
			s.in = nil
		}
	}
	if !ok {
		return nil, false
	}
	s.inItems--
	s.inBytes -= len(item)
	s.takenItems++
	s.takenBytes += uint64(len(item))
	s.table.Counts.ItemsReceived.Add(1)
	s.table.Counts.BytesReceived.Add(uint64(len(item)))
	s.grant()
	return item, true
}

// grant grants credit if half of the window was taken since the last grant. The window grows if the
// application has waited for items that the peer had no credit for. The caller holds mu.
func (s *Stream) grant() {
	if s.halfReceived || s.stage != stageOpen ||
		int64(s.grantedItems-s.takenItems) > int64(s.windowItems/2) && //nolint:gosec // bounded by the window.
			int64(s.grantedBytes-s.takenBytes) > int64(s.windowBytes/2) { //nolint:gosec // bounded by the window and an item.
		return
	}
	if s.starved {
		s.grow()
		s.starved = false
	}
	s.grantedItems = s.takenItems + uint64(s.windowItems) //nolint:gosec // a window is positive.
	s.grantedBytes = s.takenBytes + uint64(s.windowBytes) //nolint:gosec // a window is positive.
	s.creditDue = true
	s.ready()
}

// grow doubles the window, within its limit and the memory for all windows. The caller holds mu.
func (s *Stream) grow() {
	t := s.table
	s.windowItems = min(2*s.windowItems, s.options.WindowItems)
	more := min(s.windowBytes, s.options.WindowBytes-s.windowBytes)
	if t.windows+int64(more) <= t.cfg.Memory {
		s.windowBytes += more
		t.windows += int64(more)
	}
}

// Headers waits for the headers of the server. It returns nil if the stream ends without.
func (s *Stream) Headers() []wire.StreamHeader {
	t := s.table
	for {
		t.mu.Lock()
		s.start()
		if s.headersDone || s.result != nil {
			headers := s.peerHeaders
			t.unlock()
			return headers
		}
		changed := s.receivable.wait()
		t.unlock()
		select {
		case <-changed:
		case <-s.done:
		}
	}
}

// Accept accepts a stream of a server. told is called when the broker has the acceptance, or when
// the stream ends before. The first frame grants the window.
func (s *Stream) Accept(told func()) {
	s.table.mu.Lock()
	defer s.table.unlock()
	if s.stage != stageOpening {
		s.table.due.calls = append(s.table.due.calls, told)
		return
	}
	s.stage = stageOpen
	s.accepting, s.accepted = true, told
	if !s.halfReceived {
		s.grantedItems = max(s.grantedItems, s.takenItems+uint64(s.windowItems)) //nolint:gosec // a window is positive.
		s.grantedBytes = max(s.grantedBytes, s.takenBytes+uint64(s.windowBytes)) //nolint:gosec // a window is positive.
		s.creditDue = true
	}
	s.ready()
}

// SetHeaders sets the headers of a server, which travel with the first item or the end; with now
// they travel at once. It returns false if they were sent before, or the stream has ended.
func (s *Stream) SetHeaders(headers []wire.StreamHeader, now bool) bool {
	s.table.mu.Lock()
	defer s.table.unlock()
	if s.headersSent || s.stage == stageEnded {
		return false
	}
	s.headers = headers
	if now {
		s.headersDue = true
		s.ready()
	}
	return true
}

// Finish ends a stream of a server, behind its items. told is called when the broker has the end,
// or when the stream has ended otherwise.
func (s *Stream) Finish(end *wire.End, told func()) {
	s.table.mu.Lock()
	defer s.table.unlock()
	if s.stage == stageEnded || s.end != nil {
		s.table.due.calls = append(s.table.due.calls, told)
		return
	}
	s.end, s.endTold = end, told
	s.in, s.inItems, s.inBytes = nil, 0, 0
	s.ready()
}

// Abandon ends the stream at once. The peer gets reset, if it is known and reset is not nil; what
// was received and not taken is dropped. If the opening of a stream of a client was written, and no
// server has accepted the stream, Abandon returns this side's queue of frames, otherwise "": the
// opening may wait in a queue.
func (s *Stream) Abandon(r *Result, reset *wire.End) (unaccepted string) {
	s.table.mu.Lock()
	defer s.table.unlock()
	if s.stage == stageOpening && s.peer == nil {
		unaccepted = s.link.queue
	}
	s.abandon(r, reset)
	return unaccepted
}

func (s *Stream) abandon(r *Result, reset *wire.End) {
	if s.stage == stageEnded {
		return
	}
	s.in, s.inItems, s.inBytes = nil, 0, 0
	known := s.peer != nil && s.link != nil && !s.link.ended
	s.finish(r)
	if reset != nil && known {
		own := *reset
		own.Items, own.Taken = s.sentItems, s.takenItems
		s.reset = &own
		s.peer.put(s)
	} else {
		s.leave()
	}
}

// finish ends the stream, which sends nothing more. What was received may still be taken. The
// caller holds mu.
func (s *Stream) finish(r *Result) {
	if s.stage == stageEnded {
		return
	}
	t := s.table
	r.Counted, r.Written = s.counted, s.stage >= stageOpening
	r.Accepted = s.stage == stageOpen
	r.Progress = s.progress()
	s.stage, s.result = stageEnded, r
	s.out = wire.Items{}
	close(s.done)
	s.sendable.notify()
	s.receivable.notify()
	if s.counted {
		t.windows -= int64(s.windowBytes)
		t.Counts.Open.Add(-1)
		if !r.succeeded() {
			t.Counts.Failed.Add(1)
		}
	}
	for _, f := range []func(){s.accepted, s.endTold} {
		if f != nil {
			t.due.calls = append(t.due.calls, f)
		}
	}
	if onEnd := s.options.OnEnd; onEnd != nil {
		t.due.calls = append(t.due.calls, func() { onEnd(s) })
	}
	s.accepted, s.endTold, s.options.OnEnd = nil, nil, nil
}

// leave removes a stream from its link. The caller holds mu.
func (s *Stream) leave() {
	if s.link == nil {
		for i, w := range s.table.waiting {
			if w == s {
				s.table.waiting = append(s.table.waiting[:i], s.table.waiting[i+1:]...)
				break
			}
		}
		return
	}
	delete(s.link.opening, s.number)
	if s.peer != nil {
		delete(s.peer.streams, s.number)
		s.link.forget(s.peer)
	}
}

// succeeded reports whether the server ended the stream without a failure.
func (r *Result) succeeded() bool { return r.Reason == ReasonEnd && r.End.Failure == nil }

// ready puts the stream into the turns of its peer if it has something to send. The caller holds mu.
func (s *Stream) ready() {
	if s.peer != nil && !s.queued && s.hasWork() {
		s.peer.put(s)
	}
}

// hasWork reports whether appendFrame has something to send. The caller holds mu.
func (s *Stream) hasWork() bool {
	switch {
	case s.reset != nil:
		return true
	case s.stage != stageOpen:
		return false
	case s.accepting, s.headersDue, s.creditDue:
		return true
	case s.out.Count > 0:
		return s.hasCredit()
	default:
		return s.halfClosed && !s.halfSent || s.end != nil
	}
}

func (s *Stream) hasCredit() bool { return s.sentItems < s.creditItems && s.sentBytes < s.creditBytes }

// appendFrame appends a frame with all that is due, and with at most share bytes of items, or one
// item. The caller holds mu.
func (s *Stream) appendFrame(m *Message, share int) {
	f := wire.Frame{Stream: s.number, Seq: s.sentItems, Taken: s.takenItems}
	if s.reset != nil {
		f.Reset = s.reset
		s.reset = nil
		m.body = f.AppendTo(m.body)
		s.leave()
		return
	}
	if s.accepting {
		f.Accept, s.accepting = true, false
		m.told = append(m.told, s.accepted)
		s.accepted = nil
	}
	if s.creditDue {
		f.CreditItems, f.CreditBytes, s.creditDue = s.grantedItems, s.grantedBytes, false
	}
	if s.table.cfg.Server && !s.headersSent && (s.headersDue || s.out.Count > 0 || s.end != nil) {
		f.Headers, f.HeadersDone = s.headers, true
		s.headers, s.headersDue, s.headersSent = nil, false, true
	}
	s.appendItems(&f, share, m)
}

// appendItems appends the frame f with items, and with the half-close or the end behind them.
func (s *Stream) appendItems(f *wire.Frame, share int, m *Message) {
	memory := s.out.Fields()
	if s.hasCredit() {
		f.Items = s.out.Cut(s.creditItems-s.sentItems, s.creditBytes-s.sentBytes, share)
	}
	s.sentItems += uint64(f.Items.Count)                //nolint:gosec // never negative.
	s.sentBytes += uint64(f.Items.Bytes)                //nolint:gosec // never negative.
	s.table.Counts.ItemsSent.Add(uint64(f.Items.Count)) //nolint:gosec // never negative.
	s.table.Counts.BytesSent.Add(uint64(f.Items.Bytes)) //nolint:gosec // never negative.
	f.Blocked = s.out.Count > 0 && !s.hasCredit()
	ended := false
	if s.out.Count == 0 {
		if s.halfClosed && !s.halfSent {
			f.HalfClose, s.halfSent = true, true
		}
		if s.end != nil {
			s.end.Items, s.end.Taken = s.sentItems, s.takenItems
			f.End = s.end
			ended = true
		}
	}
	m.body = f.AppendTo(m.body)
	if f.Open && s.options.Patient {
		s.first = f.Items.Copy()
	}
	if f.Items.Count > 0 {
		if s.out.Rewind(memory) > keptBuffer && s.out.Count == 0 {
			s.out = wire.Items{}
		}
		s.sendable.notify()
	}
	if ended {
		if s.endTold != nil {
			m.told = append(m.told, s.endTold)
			s.endTold = nil
		}
		s.finish(&Result{Reason: ReasonEnd, End: s.end})
		s.leave()
	}
}

// Discard removes a stream of a server that was not accepted. The client learns nothing.
func (s *Stream) Discard() {
	s.table.mu.Lock()
	defer s.table.unlock()
	s.finish(&Result{Reason: ReasonAbandoned})
	s.leave()
}
