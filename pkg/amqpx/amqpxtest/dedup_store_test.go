package amqpxtest

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestDedupStoreInMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := NewDedupStore()
		if err := CheckDedupStore(t.Context(), store, "test/"); err != nil {
			t.Error(err)
		}
		claim := amqpx.DedupClaim{Owner: "a", Fingerprint: "f"}
		store.Stop()
		if _, err := store.Claim(t.Context(), "k", claim, time.Minute); err == nil {
			t.Error("a stopped store took a claim")
		}
		store.Start()
		if e, err := store.Claim(t.Context(), "k", claim, time.Minute); err != nil || e.DedupClaim != claim {
			t.Errorf("got %+v, %v", e, err)
		}
	})
}

// changedStore is a store whose steps a test changes.
type changedStore struct {
	*DedupStore

	claim    func(amqpx.DedupEntry) amqpx.DedupEntry
	complete func(error) error
	times    time.Duration // leases and ages are as many times as long
	release  bool          // removes any claim
}

func (s *changedStore) Claim(ctx context.Context, key string, claim amqpx.DedupClaim, lease time.Duration) (amqpx.DedupEntry, error) {
	e, err := s.DedupStore.Claim(ctx, key, claim, lease*s.times)
	if s.claim != nil {
		e = s.claim(e)
	}
	return e, err
}

func (s *changedStore) Complete(ctx context.Context, key string, claim amqpx.DedupClaim, response []byte, age time.Duration) error {
	err := s.DedupStore.Complete(ctx, key, claim, response, age*s.times)
	if s.complete != nil {
		err = s.complete(err)
	}
	return err
}

func (s *changedStore) Release(ctx context.Context, key string, claim amqpx.DedupClaim) error {
	if s.release {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.entries, key)
		return nil
	}
	return s.DedupStore.Release(ctx, key, claim)
}

// TestCheckFindsDeviations: the check of a store finds each of these, and names the key.
func TestCheckFindsDeviations(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		store *changedStore
		want  string
	}{
		"loses fingerprints": {&changedStore{times: 1, claim: func(e amqpx.DedupEntry) amqpx.DedupEntry {
			e.Fingerprint = ""
			return e
		}}, "test/claims"},
		"returns no responses": {&changedStore{times: 1, claim: func(e amqpx.DedupEntry) amqpx.DedupEntry {
			e.Response = nil
			return e
		}}, "test/responses"},
		"hides lost claims":         {&changedStore{times: 1, complete: func(error) error { return nil }}, "want another server has claimed"},
		"releases claims of others": {&changedStore{times: 1, release: true}, "after the release by another"},
		"keeps entries too long":    {&changedStore{times: 1000}, "has not ended"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c.store.DedupStore = NewDedupStore()
				if err := CheckDedupStore(t.Context(), c.store, "test/"); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
			})
		})
	}
}
