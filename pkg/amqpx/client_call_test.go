package amqpx

import (
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/google/uuid"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
)

// queuedCall returns a call whose first attempt is in the publisher's queue.
func queuedCall(idempotent bool) *call {
	k := pendingCall("id")
	k.req.idempotent = idempotent
	k.send()
	return k
}

func writtenCall(idempotent bool) *call {
	k := queuedCall(idempotent)
	k.first.BeginSend(1)
	return k
}

func TestCallOutcomeWhenTheCallerGivesUp(t *testing.T) {
	t.Parallel()
	fate := func(f publish.Result) func(*call) {
		return func(k *call) {
			a := k.current.Load()
			a.BeginSend(1)
			a.OnResult(f)
			k.recordResult(resultOfAttempt(k))
		}
	}
	for _, c := range []struct {
		name  string
		steps func(*call)
		want  Outcome
	}{
		{"queued", func(*call) {}, DidNotRun},
		{"written", func(k *call) { k.first.BeginSend(1) }, MayHaveRun},
		{"confirmed", func(k *call) { k.first.BeginSend(1); k.first.OnResult(publish.Confirmed) }, MayHaveRun},
		{"unsent", fate(publish.Unsent), DidNotRun},
		{"unsent, which it has not heard of yet", func(k *call) { k.first.BeginSend(1); k.first.OnResult(publish.Unsent) }, DidNotRun},
		{"nacked", fate(publish.Nacked), MayHaveRun},
		{"unroutable", fate(publish.Returned), DidNotRun},
		{"lost", fate(publish.Lost), MayHaveRun},
		{"lost, which it has not heard of yet", func(k *call) { k.first.BeginSend(1); k.first.OnResult(publish.Lost) }, MayHaveRun},
		{"the connection replaced, which it has not heard of yet", func(k *call) {
			k.first.BeginSend(1)
			k.first.OnResult(publish.Confirmed)
			k.first.sessionReplaced(2, true)
		}, MayHaveRun},
		{"lost, then queued again", func(k *call) { fate(publish.Lost)(k); k.send() }, MayHaveRun},
		{"lost, then refused", func(k *call) {
			fate(publish.Lost)(k)
			k.send()
			fate(publish.Nacked)(k)
		}, MayHaveRun},
		{"nacked, then queued again", func(k *call) { fate(publish.Nacked)(k); k.send() }, MayHaveRun},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := queuedCall(true)
			c.steps(k)
			a := k.current.Load()
			wantSame(t, "outcome", k.outcome(), c.want)
			if c.want == DidNotRun && a != nil && a.BeginSend(2) {
				t.Error("a call that surely did not run was sent after all")
			}
		})
	}
}

func TestCallAfterALostConnection(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                 string
		idempotent, lost     bool
		generation           uint64
		confirmed, givenBack bool
	}{
		{name: "not idempotent", generation: 2, confirmed: true},
		{name: "idempotent", idempotent: true, generation: 2, confirmed: true, givenBack: true},
		{name: "responses are gone", lost: true, generation: 2, confirmed: true, givenBack: true},
		{name: "written by the new connection already", lost: true, idempotent: true, generation: 1, confirmed: true},
		{name: "not confirmed: its publisher settles it", lost: true, idempotent: true, generation: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := writtenCall(c.idempotent)
			if c.confirmed {
				k.first.OnResult(publish.Confirmed)
			}
			k.first.sessionReplaced(c.generation, c.lost)
			wantSame(t, "given back", len(k.wake) == 1, c.givenBack)
		})
	}
}

func TestCallIsSettledByExactlyOneParty(t *testing.T) {
	t.Parallel()
	for range 2000 {
		k := queuedCall(true)
		a := &k.first
		var claimed atomic.Bool
		var wg sync.WaitGroup
		outcome := MayHaveRun
		start := make(chan struct{})
		party := func(f func()) { wg.Go(func() { <-start; f() }) }
		party(func() {
			if a.BeginSend(1) {
				claimed.Store(true)
				a.OnResult(publish.Confirmed)
			}
		})
		party(func() { a.OnResult(publish.Returned) })
		party(func() { a.OnResult(publish.Lost) })
		party(func() { a.OnResult(publish.Nacked) })
		party(func() { a.sessionReplaced(2, true) })
		party(func() { outcome = k.outcome() })
		close(start)
		wg.Wait()
		if n := len(k.wake); n > 1 {
			t.Fatalf("%d fates", n)
		}
		if outcome == DidNotRun && claimed.Load() && (len(k.wake) == 0 || a.publishResult() == publish.Lost) {
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
		wg.Go(func() { claimed = k.first.BeginSend(1) })
		wg.Go(func() { outcome = k.outcome() })
		wg.Wait()
		if claimed == (outcome == DidNotRun) {
			t.Fatalf("claimed %v, outcome %v", claimed, outcome)
		}
	}
}

// The attempt that a call makes next is not ended by a late result of the one before, whoever is
// first.
func TestLateResultEndsOnlyItsOwnAttempt(t *testing.T) {
	t.Parallel()
	for _, late := range []publish.Result{publish.Confirmed, publish.Nacked, publish.Returned, publish.Unsent, publish.Lost, publish.Suspect, publish.Rejected} {
		for range 200 {
			k := writtenCall(true)
			old := &k.first
			var wg sync.WaitGroup
			wg.Go(func() { old.OnResult(late) })
			wg.Go(func() { old.sessionReplaced(2, true) })
			wg.Go(func() {
				k.nextRound()
				k.send()
			})
			wg.Wait()
			if ev, ok := k.next(); ok {
				t.Fatalf("result %v of the refused attempt became event %v of the call", late, ev.kind)
			}
			a := k.current.Load()
			if a == old || !a.BeginSend(2) {
				t.Fatal("the next attempt was ended by the one before")
			}
			a.OnResult(publish.Lost)
			if ev, ok := k.next(); !ok || ev.attempt != a {
				t.Fatal("the call did not hear of its own attempt")
			}
		}
	}
}

// An event that ends a call is not lost between two rounds, and a response is better.
func TestEventThatEndsACallStays(t *testing.T) {
	t.Parallel()
	for _, kind := range []eventKind{eventExpired, eventCanceled, eventClosed} {
		k := writtenCall(true)
		k.notify(kind)
		k.notify(eventResponse)
		first, _ := k.next()
		wantSame(t, "first event", first.kind, eventResponse)
		k.nextRound()
		k.send()
		for range 2 {
			next, ok := k.next()
			wantSame(t, "in the next round", next.kind, kind)
			wantSame(t, "there is an event", ok, true)
		}
	}
}

// A hundred thousand calls may wait at once, and the allocator's next size class is 256 bytes.
func TestCallFitsInItsSizeClass(t *testing.T) {
	t.Parallel()
	if size := unsafe.Sizeof(call{}); size > 240 {
		t.Errorf("a call takes %d bytes", size)
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
