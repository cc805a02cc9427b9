package stream

import (
	"errors"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// ErrFailed is returned by Receive for a stream that has ended with a failure; see Result.
var ErrFailed = errors.New("the stream has failed")

// Link has the streams of one session. It ends with the session, and its streams with it.
type Link struct {
	table   *Table
	queue   string // of this side, for frames
	publish func(m *Message)
	ended   bool
	held    bool   // patient openings are not written
	settled signal // a message was confirmed, or the link has ended
	peers   map[string]*peer
	opening map[uint64]*Stream // streams of a client whose openings wait or were written
	body    []byte             // the memory of the last message
	timer   *time.Timer        // calls tick; nil while there is nothing to watch
}

// peer is the other side of streams: the queue of one session of a client or a server.
type peer struct {
	link        *Link
	queue       string
	user        string // of a client; "" without
	streams     map[uint64]*Stream
	turns       []*Stream // those with something to send, in turn
	control     []byte    // encoded frames without a stream
	waits       bool      // a message waits to be written
	unconfirmed int

	heard     time.Time // when the last message came
	ping      uint64    // the number of the last ping
	pingDue   bool
	pinged    bool      // the last ping has no answer
	again     bool      // nor has the ping before it
	confirmed time.Time // when the broker confirmed the last ping; zero: it has not
	pong      uint64    // the answer that is due; 0: none
	probes    []probe   // those without an answer
}

// NewLink makes the link of a new session of a table, with this side's queue of frames. publish takes
// a message, and must not block.
func (t *Table) NewLink(queue string, publish func(m *Message)) *Link {
	t.mu.Lock()
	defer t.unlock()
	l := &Link{table: t, queue: queue, publish: publish, peers: make(map[string]*peer), opening: make(map[uint64]*Stream)}
	t.link = l
	waiting := t.waiting
	t.waiting = nil
	for _, s := range waiting {
		l.adopt(s)
	}
	return l
}

// adopt publishes the opening of a stream of a client. The caller holds mu.
func (l *Link) adopt(s *Stream) {
	s.link = l
	l.opening[s.number] = s
	l.table.due.messages = append(l.table.due.messages, &Message{link: l, opening: s})
	l.watch()
}

// all returns all streams. The caller holds mu.
func (l *Link) all() (all []*Stream) {
	for _, s := range l.opening {
		all = append(all, s)
	}
	for _, p := range l.peers {
		for _, s := range p.streams {
			all = append(all, s)
		}
	}
	return all
}

// End ends the link because its session has ended. Openings that were not written wait for the
// next link; all other streams end.
func (l *Link) End(cause error) {
	t := l.table
	t.mu.Lock()
	defer t.unlock()
	if l.ended {
		return
	}
	l.ended = true
	l.settled.notify()
	if t.link == l {
		t.link = nil
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	for _, s := range l.all() {
		if s.stage == stageWaiting && !t.closed {
			t.await(s)
			continue
		}
		s.finish(&Result{Reason: ReasonLinkLost, Cause: cause})
	}
	clear(l.opening)
	clear(l.peers)
	if t.link != nil { // of the next session
		waiting := t.waiting
		t.waiting = nil
		for _, s := range waiting {
			t.link.adopt(s)
		}
	}
}

// peerOf returns a peer, which it makes if necessary. The caller holds mu.
func (l *Link) peerOf(queue, user string) *peer {
	p := l.peers[queue]
	if p == nil {
		p = &peer{link: l, queue: queue, user: user, streams: make(map[uint64]*Stream), heard: time.Now()}
		l.peers[queue] = p
	}
	return p
}

// forget removes a peer without streams and without anything to send. The caller holds mu.
func (l *Link) forget(p *peer) {
	if len(p.streams) == 0 && len(p.turns) == 0 && len(p.control) == 0 && !p.waits && p.unconfirmed == 0 && l.peers[p.queue] == p {
		delete(l.peers, p.queue)
	}
}

// put puts a stream into the turns. The caller holds mu.
func (p *peer) put(s *Stream) {
	if !s.queued {
		s.queued = true
		p.turns = append(p.turns, s)
	}
	p.kick()
}

// kick publishes a message if there is something to send and the clock allows it. The caller holds
// mu.
func (p *peer) kick() {
	if p.waits || p.unconfirmed >= clockWindow || !p.hasWork() || p.link.ended {
		return
	}
	p.waits = true
	p.link.table.due.messages = append(p.link.table.due.messages, &Message{link: p.link, peer: p})
}

// hasWork reports whether compose has something to send. The caller holds mu.
func (p *peer) hasWork() bool {
	return p.hasTurn() || len(p.control) > 0 || p.pingDue || p.pong != 0
}

// next removes the stream whose turn it is. The caller holds mu.
func (p *peer) next() *Stream {
	s := p.turns[0]
	p.turns[0] = nil
	if p.turns = p.turns[1:]; len(p.turns) == 0 {
		p.turns = nil
	}
	s.queued = false
	return s
}

// mayOpen reports whether the opening of a stream of a client may be written. The caller holds mu.
func (s *Stream) mayOpen() bool {
	return s.stage == stageWaiting && !(s.link.held && s.options.Patient)
}

// Hold makes the openings of patient streams wait, until it is called with false.
func (l *Link) Hold(on bool) {
	t := l.table
	t.mu.Lock()
	defer t.unlock()
	if l.held == on || l.ended {
		return
	}
	l.held = on
	for _, s := range l.opening {
		if s.mayOpen() {
			t.due.messages = append(t.due.messages, &Message{link: l, opening: s})
		}
	}
}

// reopen prepares the opening of a patient stream, which is in no queue, for another try. The caller
// holds mu.
func (l *Link) reopen(s *Stream) {
	rest := s.out
	s.out, s.first = s.first, wire.Items{}
	s.out.AppendAll(rest)
	s.stage, s.sentItems, s.sentBytes, s.halfSent = stageWaiting, 0, 0, false
	s.pause = min(max(2*s.pause, reopenMin), reopenMax)
	time.AfterFunc(s.pause, func() {
		l.table.mu.Lock()
		defer l.table.unlock()
		if s.stage == stageWaiting && s.link == l && !l.ended {
			l.table.due.messages = append(l.table.due.messages, &Message{link: l, opening: s})
		}
	})
}

// hasTurn reports whether a stream has something to send. The caller holds mu.
func (p *peer) hasTurn() bool {
	for len(p.turns) > 0 && !p.turns[0].hasWork() {
		p.next()
	}
	return len(p.turns) > 0
}

// Returned is called when the broker has returned an opening, with the number of its stream, or a
// message to a peer.
func (l *Link) Returned(queue string, number uint64) {
	t := l.table
	t.mu.Lock()
	defer t.unlock()
	if s := l.opening[number]; number != 0 && s != nil && s.stage == stageOpening {
		if s.options.Patient {
			l.reopen(s)
			return
		}
		s.finish(&Result{Reason: ReasonUnroutable})
		s.leave()
		return
	}
	if p := l.peers[queue]; p != nil && number == 0 {
		l.lose(p, ReasonPeerGone, nil)
		l.forget(p)
	}
}

// lose ends all streams with a peer. What was received may still be taken. The caller holds mu.
func (l *Link) lose(p *peer, reason Reason, cause error) {
	for _, s := range p.streams {
		s.finish(&Result{Reason: reason, Cause: cause})
		s.reset = nil
	}
	clear(p.streams)
	p.control, p.pingDue, p.pong, p.pinged, p.probes = nil, false, 0, false, nil
	for len(p.turns) > 0 {
		p.next()
	}
}

// FailOpenings ends the streams whose openings were written before a time and not accepted since, for
// a reason. skip selects streams that wait on.
func (l *Link) FailOpenings(before time.Time, reason Reason, skip func(s *Stream) bool) {
	t := l.table
	t.mu.Lock()
	defer t.unlock()
	for _, s := range l.opening {
		if s.stage == stageOpening && s.written.Before(before) && !skip(s) {
			s.finish(&Result{Reason: reason})
			s.leave()
		}
	}
}

// Openings returns the number of streams that are not accepted.
func (l *Link) Openings() int {
	l.table.mu.Lock()
	defer l.table.mu.Unlock()
	return len(l.opening)
}

// Streams returns the number of streams of a peer.
func (l *Link) Streams(queue string) int {
	l.table.mu.Lock()
	defer l.table.mu.Unlock()
	if p := l.peers[queue]; p != nil {
		return len(p.streams)
	}
	return 0
}

// Receive handles a message of the peer with this queue. For a server, user is the user of the
// client, "" if it has none.
func (l *Link) Receive(queue, user string, body []byte) {
	t := l.table
	t.mu.Lock()
	defer t.unlock()
	if l.ended {
		return
	}
	p := l.peers[queue]
	if p != nil && p.user != user {
		t.Counts.Late.Add(1)
		return
	}
	if p != nil {
		p.heard, p.pinged, p.again = time.Now(), false, false
	}
	err := wire.DecodeFrames(body, func(f *wire.Frame) bool {
		l.receive(queue, f, len(body))
		return true
	})
	if err == nil {
		return
	}
	t.Counts.Late.Add(1)
	if p = l.peers[queue]; p != nil {
		for _, s := range p.streams {
			s.violated(ReasonMalformed, "unavailable", "a message cannot be read")
		}
	}
}

// receive handles a frame. The caller holds mu.
func (l *Link) receive(queue string, f *wire.Frame, body int) {
	p := l.peers[queue]
	if f.Ping != 0 || f.Pong != 0 {
		if p != nil && f.Ping != 0 {
			p.pong = f.Ping
			p.kick()
		}
		if p != nil && f.Pong != 0 {
			p.answered(f.Pong)
		}
		return
	}
	if p != nil {
		if s := p.streams[f.Stream]; s != nil && s.stage != stageEnded {
			s.receive(f, body)
			return
		}
	}
	if l.table.cfg.Server {
		l.table.Counts.Late.Add(1)
		return
	}
	s := l.opening[f.Stream]
	switch {
	case s != nil && s.stage == stageOpening && f.Accept:
		l.bind(s, l.peerOf(queue, ""))
		s.receive(f, body)
	case s != nil && s.stage == stageOpening && f.Reset != nil: // a refusal
		s.wasReset(f.Reset)
	case f.Accept: // of a stream that has ended, or that another server has
		l.refuse(queue, "", f.Stream, canceledEnd())
		l.table.Counts.Late.Add(1)
	default:
		l.table.Counts.Late.Add(1)
	}
}

// bind binds a stream of a client to the server that has accepted it. The caller holds mu.
func (l *Link) bind(s *Stream, p *peer) {
	delete(l.opening, s.number)
	s.peer, s.stage = p, stageOpen
	p.streams[s.number] = s
	s.ready()
	l.watch()
}

// refuse sends a reset for a stream that this side does not have. The caller holds mu.
func (l *Link) refuse(queue, user string, number uint64, end *wire.End) {
	if l.ended || l.peers[queue] == nil && len(l.peers) >= maxPeers+l.openStreams() {
		return
	}
	p := l.peerOf(queue, user)
	if len(p.control) < maxControl {
		p.control = (&wire.Frame{Stream: number, Reset: end}).AppendTo(p.control)
	}
	p.kick()
}

// openStreams returns the number of open streams of the table.
func (l *Link) openStreams() int { return int(l.table.Counts.Open.Load()) }

// Refuse refuses the opening of a stream that this side does not have.
func (l *Link) Refuse(queue, user string, number uint64, end *wire.End) {
	t := l.table
	t.mu.Lock()
	defer t.unlock()
	l.refuse(queue, user, number, end)
}

// Cancel ends a stream of a server that has not ended, because the client with this queue and user
// no longer wants it. It returns false if there is no such stream.
func (l *Link) Cancel(queue, user string, number uint64) bool {
	t := l.table
	t.mu.Lock()
	defer t.unlock()
	p := l.peers[queue]
	if p == nil || p.user != user || p.streams[number] == nil {
		return false
	}
	p.streams[number].wasReset(canceledEnd())
	return true
}

// Open makes the stream of an opening in a server. It returns nil if there is such a stream, or the
// link has ended.
func (l *Link) Open(queue, user string, f *wire.Frame, body int, o *Options) *Stream {
	t := l.table
	t.mu.Lock()
	defer t.unlock()
	if l.ended || t.closed {
		return nil
	}
	p := l.peerOf(queue, user)
	if p.user != user || p.streams[f.Stream] != nil {
		return nil
	}
	s := t.newStream(f.Stream, o)
	s.link, s.peer, s.stage = l, p, stageOpening
	s.grantedItems, s.grantedBytes = firstItems, firstBytes
	p.streams[f.Stream] = s
	t.count(s)
	s.receive(f, body)
	l.watch()
	return s
}

// WaitIdle waits until nothing waits for the broker, the link has ended, or done is closed.
func (l *Link) WaitIdle(done <-chan struct{}) {
	for {
		l.table.mu.Lock()
		if l.ended || l.isIdle() {
			l.table.mu.Unlock()
			return
		}
		changed := l.settled.wait()
		l.table.mu.Unlock()
		select {
		case <-changed:
		case <-done:
			return
		}
	}
}

// isIdle reports whether nothing waits for the broker. The caller holds mu.
func (l *Link) isIdle() bool {
	for _, p := range l.peers {
		if p.unconfirmed > 0 || p.waits || p.hasWork() {
			return false
		}
	}
	return true
}
