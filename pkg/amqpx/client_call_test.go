package amqpx

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// queuedCall returns a call in the publisher's queue.
func queuedCall(idempotent bool) *call {
	k := newCall(&wire.Request{ID: "id", Idempotent: idempotent}, testRoute())
	k.stage.Store(uint32(stageQueued))
	return k
}

func writtenCall(idempotent bool) *call {
	k := queuedCall(idempotent)
	k.BeginSend(1)
	return k
}

func TestCallOutcomeWhenTheCallerGivesUp(t *testing.T) {
	t.Parallel()
	fate := func(f publish.Result) func(*call) {
		return func(k *call) { k.BeginSend(1); k.OnResult(f); k.recordResult((<-k.events).result) }
	}
	for _, c := range []struct {
		name  string
		steps func(*call)
		want  Outcome
	}{
		{"queued", func(*call) {}, DidNotRun},
		{"written", func(k *call) { k.BeginSend(1) }, MayHaveRun},
		{"confirmed", func(k *call) { k.BeginSend(1); k.OnResult(publish.Confirmed) }, MayHaveRun},
		{"unsent", fate(publish.Unsent), DidNotRun},
		{"nacked", fate(publish.Nacked), MayHaveRun},
		{"unroutable", fate(publish.Returned), DidNotRun},
		{"lost", fate(publish.Lost), MayHaveRun},
		{"lost, which it has not heard of yet", func(k *call) { k.BeginSend(1); k.OnResult(publish.Lost) }, MayHaveRun},
		{"the link replaced, which it has not heard of yet", func(k *call) {
			k.BeginSend(1)
			k.OnResult(publish.Confirmed)
			k.sessionReplaced(2, true)
		}, MayHaveRun},
		{"lost, then queued again", func(k *call) { fate(publish.Lost)(k); k.stage.Store(uint32(stageQueued)) }, MayHaveRun},
		{"lost, then refused", func(k *call) {
			fate(publish.Lost)(k)
			k.stage.Store(uint32(stageQueued))
			fate(publish.Nacked)(k)
		}, MayHaveRun},
		{"nacked, then queued again", func(k *call) { fate(publish.Nacked)(k); k.stage.Store(uint32(stageQueued)) }, MayHaveRun},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := queuedCall(true)
			c.steps(k)
			wantSame(t, "outcome", k.outcome(), c.want)
			if c.want == DidNotRun && k.BeginSend(2) {
				t.Error("a call that surely did not run was sent after all")
			}
		})
	}
}

func TestCallAfterALostLink(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                 string
		idempotent, lost     bool
		generation           uint64
		confirmed, givenBack bool
	}{
		{name: "not idempotent", generation: 2, confirmed: true},
		{name: "idempotent", idempotent: true, generation: 2, confirmed: true, givenBack: true},
		{name: "answers are gone", lost: true, generation: 2, confirmed: true, givenBack: true},
		{name: "written by the new link already", lost: true, idempotent: true, generation: 1, confirmed: true},
		{name: "not confirmed: its publisher settles it", lost: true, idempotent: true, generation: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := writtenCall(c.idempotent)
			if c.confirmed {
				k.OnResult(publish.Confirmed)
			}
			k.sessionReplaced(c.generation, c.lost)
			wantSame(t, "given back", len(k.events) == 1, c.givenBack)
		})
	}
}

func TestCallIsSettledByExactlyOneParty(t *testing.T) {
	t.Parallel()
	for range 2000 {
		k := queuedCall(true)
		var claimed atomic.Bool
		var wg sync.WaitGroup
		outcome := MayHaveRun
		start := make(chan struct{})
		party := func(f func()) { wg.Go(func() { <-start; f() }) }
		party(func() {
			if k.BeginSend(1) {
				claimed.Store(true)
				k.OnResult(publish.Confirmed)
			}
		})
		party(func() { k.OnResult(publish.Returned) })
		party(func() { k.OnResult(publish.Lost) })
		party(func() { k.OnResult(publish.Nacked) })
		party(func() { k.sessionReplaced(2, true) })
		party(func() { outcome = k.outcome() })
		close(start)
		wg.Wait()
		if n := len(k.events); n > 1 {
			t.Fatalf("%d fates", n)
		}
		if outcome == DidNotRun && claimed.Load() && (len(k.events) == 0 || (<-k.events).result == publish.Lost) {
			t.Fatal("told that it did not run, and it was sent")
		}
	}
}

func TestCallThatGaveUpIsNotSent(t *testing.T) {
	t.Parallel()
	for range 2000 {
		k := queuedCall(false)
		var claimed bool
		outcome := MayHaveRun
		var wg sync.WaitGroup
		wg.Go(func() { claimed = k.BeginSend(1) })
		wg.Go(func() { outcome = k.outcome() })
		wg.Wait()
		if claimed == (outcome == DidNotRun) {
			t.Fatalf("claimed %v, outcome %v", claimed, outcome)
		}
	}
}

func TestIDsAreRandomUUIDs(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 10_000 {
		text := newID()
		id, err := uuid.Parse(text)
		if err != nil || id.Version() != 4 || id.Variant() != uuid.RFC4122 {
			t.Fatalf("%q is no UUID of version 4: %v", text, err)
		}
		if seen[text] {
			t.Fatalf("%q twice", text)
		}
		seen[text] = true
	}
}
