package publish

import (
	"testing"
	"testing/synctest"
	"time"
)

// waitFor8 is the length of a hold for 8 messages.
const waitFor8 = holdBase + 8*holdEach

// put puts n messages into the outbox.
func put(o *Outbox, n int) {
	for range n {
		o.Put(&letter{})
	}
}

// isAwake reports whether the publisher would look at the outbox, and takes the token.
func isAwake(o *Outbox) bool {
	synctest.Wait()
	select {
	case <-o.Wake:
		return !o.IsHeld()
	default:
		return false
	}
}

func wantAwake(t *testing.T, o *Outbox, when string, want bool) {
	t.Helper()
	if got := isAwake(o); got != want {
		t.Errorf("%s: publisher awake %v, want %v", when, got, want)
	}
}

// holds checks whether Expect(8) makes the publisher wait. The 8 messages arrive if it does.
func holds(t *testing.T, o *Outbox, when string, want bool) {
	t.Helper()
	o.Expect(8)
	if o.IsHeld() != want {
		t.Fatalf("%s: held %v, want %v", when, o.IsHeld(), want)
	}
	put(o, 8)
	wantAwake(t, o, when+", after the messages", true)
	o.Drain(nil)
}

// inVain makes the publisher wait for messages that do not arrive.
func inVain(t *testing.T, o *Outbox) {
	t.Helper()
	o.Expect(8)
	wantHeldFor(t, o, waitFor8)
}

// wantHeldFor checks that the publisher waits that long, in vain.
func wantHeldFor(t *testing.T, o *Outbox, length time.Duration) {
	t.Helper()
	put(o, 1)
	pass(length - time.Nanosecond)
	wantAwake(t, o, "before the end of the hold", false)
	pass(time.Nanosecond)
	wantAwake(t, o, "at the end of the hold", true)
	o.Drain(nil)
}

func TestPublisherWaitsForExpectedMessages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		put(o, 1)
		wantAwake(t, o, "nothing expected", true)
		o.Drain(nil)
		o.Expect(8)
		put(o, 7)
		wantAwake(t, o, "one message is missing", false)
		put(o, 1)
		wantAwake(t, o, "all messages", true)
		o.Drain(nil)
		put(o, 1)
		wantAwake(t, o, "the next message", true)
	})
}

func TestExpectationsAddUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		o.Expect(8)
		pass(waitFor8 / 2)
		o.Expect(10)
		put(o, 17)
		wantAwake(t, o, "one message is missing", false)
		pass(waitFor8 / 2)
		wantAwake(t, o, "at the end of the first hold", true)
	})
}

func TestFewExpectedMessagesAreNotAwaited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		o.Expect(minExpected - 1)
		put(o, 1)
		wantAwake(t, o, "few expected messages", true)
	})
}

func TestManyWaitingMessagesEndAHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		o.Expect(2 * maxHeld)
		put(o, maxHeld-1)
		wantAwake(t, o, "fewer than the bound", false)
		put(o, 1)
		wantAwake(t, o, "the bound", true)
	})
}

func TestHoldHasAMaximumLength(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		o.Expect(MaxBatchMessages)
		put(o, 1)
		pass(holdMost - time.Nanosecond)
		wantAwake(t, o, "before the maximum", false)
		pass(time.Nanosecond)
		wantAwake(t, o, "at the maximum", true)
	})
}

// The timer of a complete hold does not end the next hold.
func TestHoldEndsAtItsOwnTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		holds(t, o, "first", true)
		pass(waitFor8 / 2)
		o.Expect(8)
		o.endHold() // the timer of the first hold has fired already when the hold is complete
		put(o, 1)
		pass(waitFor8 - time.Nanosecond)
		wantAwake(t, o, "before the end of the second", false)
		pass(time.Nanosecond)
		wantAwake(t, o, "at the end of the second", true)
	})
}

// After holds in vain, a growing number of expectations has no effect.
func TestHoldsInVainAreLeftOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		for left := 1; left <= 2*maxHoldsSkipped; left *= 2 {
			inVain(t, o)
			for range min(left, maxHoldsSkipped) {
				holds(t, o, "after a hold in vain", false)
			}
		}
		holds(t, o, "after those left out", true)
		inVain(t, o)
		holds(t, o, "left out again", false)
		holds(t, o, "only once", true)
	})
}

// arriveOneByOne makes holds fail until the outbox keeps batches apart.
func arriveOneByOne(t *testing.T, o *Outbox) {
	t.Helper()
	o.Spaced = true
	for left := 1; left <= spacedFrom; left *= 2 {
		inVain(t, o)
		for range left { // are left out
			o.Expect(8)
		}
	}
}

// A batch leaves some time after the batch before it if messages do not come in groups.
func TestBatchesAreSpaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		o.Space(minSpaced)
		put(o, 1)
		wantAwake(t, o, "nothing known of the arrivals", true)
		o.Drain(nil)
		arriveOneByOne(t, o)
		for range 3 {
			o.Space(minSpaced)
			wantHeldFor(t, o, spacing)
		}
		o.Space(minSpaced - 1)
		put(o, 1)
		wantAwake(t, o, "after a small batch", true)
	})
}

// A large batch leaves without waiting for the end of the spacing, and the next is spaced as well.
func TestManyWaitingMessagesEndTheSpacing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		arriveOneByOne(t, o)
		o.Space(minSpaced)
		put(o, maxHeld-1)
		wantAwake(t, o, "fewer than the bound", false)
		put(o, 1)
		wantAwake(t, o, "the bound", true)
		o.Drain(nil)
		o.Space(maxHeld)
		wantHeldFor(t, o, spacing)
	})
}

// Messages that come in a group again end the spacing: the hold that finds out is not in vain.
func TestAGroupEndsTheSpacing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		arriveOneByOne(t, o)
		o.Space(minSpaced)
		o.Expect(8) // replaces the spacing
		put(o, 7)
		wantAwake(t, o, "one message is missing", false)
		put(o, 1)
		wantAwake(t, o, "the group is complete", true)
		o.Drain(nil)
		o.Space(minSpaced)
		put(o, 1)
		wantAwake(t, o, "after a group", true)
	})
}

// pass lets virtual time pass.
func pass(d time.Duration) {
	<-time.NewTimer(d).C
	synctest.Wait()
}
