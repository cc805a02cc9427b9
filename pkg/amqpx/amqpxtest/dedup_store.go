package amqpxtest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// DedupStore is an [amqpx.DedupStore] in memory, made by [NewDedupStore], for tests of servers with
// [amqpx.WithDedupStore]. Its methods may be called by several goroutines at once.
type DedupStore struct {
	mu      sync.Mutex
	entries map[string]timedEntry
	away    bool
}

// timedEntry is an entry and its end.
type timedEntry struct {
	amqpx.DedupEntry

	end time.Time
}

// NewDedupStore returns a store without entries.
func NewDedupStore() *DedupStore { return &DedupStore{entries: make(map[string]timedEntry)} }

// errAway is the error of every step while the store is stopped.
var errAway = errors.New("the store is stopped")

// Stop makes every step fail until [DedupStore.Start], as a store that is away does. Entries stay, and
// end in time. Servers refuse requests with an idempotency key meanwhile, with
// [amqpx.CodeUnavailable] and [amqpx.DidNotRun], and clients try again.
func (s *DedupStore) Stop() { s.setAway(true) }

// Start ends [DedupStore.Stop].
func (s *DedupStore) Start() { s.setAway(false) }

func (s *DedupStore) setAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

// step makes one step with the entry of a key. found is false if the key has no entry.
func (s *DedupStore) step(ctx context.Context, key string, do func(e timedEntry, found bool) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return errAway
	}
	e, found := s.entries[key]
	if found && !time.Now().Before(e.end) {
		delete(s.entries, key)
		e, found = timedEntry{}, false
	}
	return do(e, found)
}

// Claim implements [amqpx.DedupStore].
func (s *DedupStore) Claim(ctx context.Context, key string, claim amqpx.DedupClaim, lease time.Duration) (entry amqpx.DedupEntry, err error) {
	err = s.step(ctx, key, func(e timedEntry, found bool) error {
		if !found || e.Owner == claim.Owner && e.Response == nil {
			e = timedEntry{amqpx.DedupEntry{DedupClaim: claim}, time.Now().Add(lease)}
			s.entries[key] = e
		}
		entry = e.DedupEntry
		return nil
	})
	return entry, err
}

// Complete implements [amqpx.DedupStore].
func (s *DedupStore) Complete(ctx context.Context, key string, claim amqpx.DedupClaim, response []byte, age time.Duration) error {
	return s.step(ctx, key, func(e timedEntry, found bool) error {
		if found && e.Owner != claim.Owner {
			return amqpx.ErrDedupClaimLost
		}
		s.entries[key] = timedEntry{amqpx.DedupEntry{DedupClaim: claim, Response: bytes.Clone(response)}, time.Now().Add(age)}
		return nil
	})
}

// Release implements [amqpx.DedupStore].
func (s *DedupStore) Release(ctx context.Context, key string, claim amqpx.DedupClaim) error {
	return s.step(ctx, key, func(e timedEntry, found bool) error {
		if found && e.Owner == claim.Owner && e.Response == nil {
			delete(s.entries, key)
		}
		return nil
	})
}
