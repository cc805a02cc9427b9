package amqpx

import (
	"errors"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// maxSuspects bounds the number of requests, and the number of addresses, in suspects.
	maxSuspects = 8192
	// suspectAge is how long requests and addresses are remembered.
	suspectAge = 5 * time.Minute
)

// suspects remembers the requests whose response, or copy, was unconfirmed when the broker
// ended the server's connection with an exception. One of these messages may be the cause, so
// when their requests are delivered again, the responses and copies are published alone on a
// separate connection (isolated in server_side_connection.go). suspects also remembers the
// addresses of direct reply-to which ended a connection. Safe for concurrent use.
type suspects struct {
	seed  maphash.Seed
	count atomic.Int64 // of requests and addresses

	mu          sync.Mutex
	newest      time.Time // when the last entry was added
	unconfirmed []uint64  // requests of the session which has just ended, in the order of publishing
	requests    map[uint64]time.Time
	addresses   map[string]time.Time
}

func newSuspects() *suspects {
	return &suspects{seed: maphash.MakeSeed(), requests: make(map[uint64]time.Time), addresses: make(map[string]time.Time)}
}

// isException reports whether the broker ended a connection or a channel because of a frame or
// message from this process.
func isException(cause error) bool {
	e, ok := errors.AsType[*amqp.Error](cause)
	return ok && e.Server && e.Code != amqp.ConnectionForced
}

// keyOf identifies a request across deliveries. Two requests of one caller with equal ids have
// the same key; then the second is published alone too, which only takes longer.
func (s *suspects) keyOf(in *incoming) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, text := range []string{in.ReplyTo, in.ID, in.Key, in.Method} {
		_, _ = h.WriteString(text)
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

// noteUnconfirmed records a request whose message was unconfirmed when the session ended. The
// broker handles messages in order, so the first maxSuspects requests are kept.
func (s *suspects) noteUnconfirmed(in *incoming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unconfirmed) < maxSuspects {
		s.unconfirmed = append(s.unconfirmed, s.keyOf(in))
	}
}

// sessionEnded decides whether the recorded requests are suspects. It is called after the
// session has ended and before the next session consumes.
func (s *suspects) sessionEnded(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	noted := s.unconfirmed
	s.unconfirmed = nil
	if !isException(cause) {
		return
	}
	s.newest = time.Now()
	dropOld(s.requests, s.newest)
	for _, key := range noted {
		if len(s.requests) < maxSuspects {
			s.requests[key] = s.newest
		}
	}
	s.updateCount()
}

// isSuspect reports whether the messages of a request must be published alone.
func (s *suspects) isSuspect(in *incoming) bool {
	if s.count.Load() == 0 {
		return false
	}
	key := s.keyOf(in)
	s.mu.Lock()
	defer s.mu.Unlock()
	since, ok := s.requests[key]
	return s.isRecent(since) && ok
}

// isRecent reports whether less than suspectAge has passed since the given time. If suspectAge
// has passed since the newest entry, isRecent drops all entries. The caller holds mu.
func (s *suspects) isRecent(since time.Time) bool {
	now := time.Now()
	if now.Sub(s.newest) >= suspectAge {
		clear(s.requests)
		clear(s.addresses)
		s.updateCount()
	}
	return now.Sub(since) < suspectAge
}

// clear forgets a request after the broker has accepted its message.
func (s *suspects) clear(in *incoming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.requests, s.keyOf(in))
	s.updateCount()
}

// avoid records an address which ended a connection.
func (s *suspects) avoid(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest = time.Now()
	dropOld(s.addresses, s.newest)
	if len(s.addresses) < maxSuspects {
		s.addresses[address] = s.newest
	}
	s.updateCount()
}

// isAvoided reports whether an address ended a connection within suspectAge.
func (s *suspects) isAvoided(address string) bool {
	if s.count.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	since, ok := s.addresses[address]
	return s.isRecent(since) && ok
}

// updateCount sets count. The caller holds mu.
func (s *suspects) updateCount() { s.count.Store(int64(len(s.requests) + len(s.addresses))) }

func dropOld[K comparable](from map[K]time.Time, now time.Time) {
	for key, since := range from {
		if now.Sub(since) >= suspectAge {
			delete(from, key)
		}
	}
}
