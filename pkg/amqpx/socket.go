package amqpx

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// heldBytes is how much a held socket gathers before it writes all the same.
const heldBytes = 64 << 10

// socket is the net.Conn under amqp091-go. It adds the two things that library
// leaves out: a deadline for every write, so that a broker that stops reading
// cannot freeze a publisher for ever, and coalescing, so that many small frames
// leave in one system call.
//
// An idle socket writes through. While it is held, or while another goroutine is
// in the middle of a write, writes gather and leave together; they report the
// error of an earlier write. A failed write closes the connection, which ends its
// reader too. Safe for concurrent use.
type socket struct {
	net.Conn

	raw     net.Conn // the connection below Conn: Conn itself, or the one below TLS
	timeout time.Duration
	frames  *frameReader // what Read reads, or nil for the connection itself

	received    atomic.Uint64     // reads in which something came
	certificate clientCertificate // under TLS

	mu      sync.Mutex
	room    sync.Cond // signalled when a write ended
	buf     []byte    // gathered, not yet written
	spare   []byte    // the buffer of the last write, for reuse
	writing bool
	held    bool
	err     error
}

func newSocket(conn net.Conn, writeTimeout time.Duration) *socket {
	s := &socket{Conn: conn, raw: conn, timeout: writeTimeout}
	s.room.L = &s.mu
	return s
}

// Read reads what the broker sent.
func (s *socket) Read(p []byte) (n int, err error) {
	if s.frames == nil {
		n, err = s.Conn.Read(p)
	} else {
		n, err = s.frames.Read(p)
	}
	if n > 0 {
		s.received.Add(1)
	}
	return n, err
}

// Close closes the connection below TLS at once. tls.Conn's own Close would write an
// alert first, for which it waits up to 5 s when the broker does not read.
func (s *socket) Close() error { return s.raw.Close() }

// Write gathers p, or writes it through when the socket is idle.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.writing && len(s.buf) >= heldBytes && s.err == nil {
		s.room.Wait()
	}
	if s.err != nil {
		return 0, s.err
	}
	if !s.writing && len(s.buf) == 0 && (!s.held || len(p) >= heldBytes) {
		s.flush(p)
	} else {
		s.buf = append(s.buf, p...)
	}
	if !s.writing && (!s.held || len(s.buf) >= heldBytes) {
		s.flushGathered() // what is here, and what others gathered meanwhile
	}
	return len(p), s.err
}

// hold makes writes gather until release.
func (s *socket) hold() {
	s.mu.Lock()
	s.held = true
	s.mu.Unlock()
}

// release writes what was gathered.
func (s *socket) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	if !s.writing {
		s.flushGathered()
	}
}

// flushGathered writes the gathered bytes and whatever gathers meanwhile. The
// caller holds mu and found writing false.
func (s *socket) flushGathered() {
	for len(s.buf) > 0 && s.err == nil {
		p := s.buf
		s.buf = s.spare[:0]
		s.flush(p)
		s.spare = p
	}
}

// flush writes p with mu released meanwhile. The caller holds mu and found
// writing false.
func (s *socket) flush(p []byte) {
	s.writing = true
	s.mu.Unlock()
	err := s.Conn.SetWriteDeadline(time.Now().Add(s.timeout))
	if err == nil {
		_, err = s.Conn.Write(p)
	}
	if err != nil {
		if s.frames != nil {
			s.frames.awaitReason()
		}
		_ = s.Close()
	}
	s.mu.Lock()
	s.writing = false
	if err != nil && s.err == nil {
		s.err = err
	}
	s.room.Broadcast()
}
