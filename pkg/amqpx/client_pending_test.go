package amqpx

import (
	"fmt"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
)

func testRoute() *route {
	return &route{queue: "q", outbox: publish.NewOutbox(), watch: newQueueWatch(), queueGate: newQueueGate()}
}

// newCall returns a call for a waiting goroutine. Its channel has room for several tokens, so that
// their number tells how often the call was woken.
func newCall(req callRequest, r *route) *call {
	return &call{req: req, route: r, callProgress: &callProgress{wake: make(chan struct{}, 16)}}
}

func requestWithID(id string) (r callRequest) {
	r.setID(id)
	return r
}

func pendingCall(id string) *call {
	return newCall(requestWithID(id), testRoute())
}

func responseDelivery(id string, redelivered bool) *amqp.Delivery {
	return &amqp.Delivery{CorrelationId: id, Redelivered: redelivered}
}

func TestPendingVerdicts(t *testing.T) {
	t.Parallel()
	waits := func(*pending, *call) {}
	for _, c := range []struct {
		name        string
		before      func(*pending, *call)
		id          string
		redelivered bool
		want        matchResult
	}{
		{"first response", waits, "a", false, verdictTaken},
		{"first response, redelivered", waits, "a", true, verdictTaken},
		{"of nobody", waits, "b", false, verdictUnknown},
		{"of nobody, redelivered", waits, "b", true, verdictUnknown},
		{"without an id", waits, "", false, verdictUnknown},
		{"second response while the call is pending", answered, "a", false, verdictDuplicate},
		{"same answer again while the call is pending", answered, "a", true, verdictRedelivered},
		{"second response after the call", func(p *pending, k *call) { answered(p, k); p.remove(k) }, "a", false, verdictDuplicate},
		{"same answer again after the call", func(p *pending, k *call) { answered(p, k); p.remove(k) }, "a", true, verdictRedelivered},
		{"late", (*pending).remove, "a", false, verdictLate},
		{"late, redelivered", (*pending).remove, "a", true, verdictLate},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, k := newPending(DefaultMaxInFlight, DefaultMaxInFlightBytes), pendingCall("a")
			if _, err := p.add(k, false); err != nil {
				t.Fatal(err)
			}
			c.before(p, k)
			handed := len(k.wake)
			wantSame(t, "verdict", p.matchOne(responseDelivery(c.id, c.redelivered)), c.want)
			if got := len(k.wake) - handed; (got == 1) != (c.want == verdictTaken) {
				t.Errorf("%d responses handed over", got)
			}
		})
	}
}

func mustAdd(t testing.TB, p *pending, k *call) {
	t.Helper()
	if _, err := p.add(k, false); err != nil {
		t.Fatal(err)
	}
}

func answered(p *pending, k *call) { p.matchOne(responseDelivery(k.req.text(), false)) }

func TestPendingForgetsBeyondItsMemory(t *testing.T) {
	t.Parallel()
	p := newPending(DefaultMaxInFlight, DefaultMaxInFlightBytes)
	for i := range maxRecent + 3 {
		k := pendingCall(fmt.Sprint(i))
		mustAdd(t, p, k)
		p.remove(k)
	}
	for i := range maxRecent + 3 {
		want := verdictLate
		if i < 3 {
			want = verdictUnknown
		}
		if got := p.matchOne(responseDelivery(fmt.Sprint(i), false)); got != want {
			t.Errorf("call %d: verdict %v, want %v", i, got, want)
		}
	}
	wantSame(t, "remembered", len(p.recent.calls), maxRecent)
	wantSame(t, "pending", p.len(), 0)
}

func TestPendingReplacesAnIDInUse(t *testing.T) {
	t.Parallel()
	p, first := newPending(DefaultMaxInFlight, DefaultMaxInFlightBytes), pendingCall("a")
	second := newCall(first.req, testRoute()) // the very same request, as middleware may send it
	mustAdd(t, p, first)
	mustAdd(t, p, second)
	wantSame(t, "pending", p.len(), 2)
	wantSame(t, "first id", first.req.text(), "a")
	if second.req.text() == "a" {
		t.Error("two calls share an id")
	}
	p.matchOne(responseDelivery(second.req.text(), false))
	wantSame(t, "responses of the first", len(first.wake), 0)
	wantSame(t, "responses of the second", len(second.wake), 1)
	p.remove(second)
	wantSame(t, "still pending", p.len(), 1)
}

func TestPendingReturnSettlesOnlyItsCall(t *testing.T) {
	t.Parallel()
	p, a, b := newPending(DefaultMaxInFlight, DefaultMaxInFlightBytes), pendingCall("a"), pendingCall("b")
	mustAdd(t, p, a)
	mustAdd(t, p, b)
	for _, k := range []*call{a, b} {
		k.send()
		k.first.BeginSend(1)
	}
	p.returned(amqp.Return{CorrelationId: "nobody"})
	p.returned(amqp.Return{CorrelationId: "a"})
	wantSame(t, "fates before the confirm", len(a.wake), 0)
	a.first.OnResult(publish.Confirmed)
	b.first.OnResult(publish.Confirmed)
	wantSame(t, "fates of a", len(a.wake), 1)
	wantSame(t, "fate of a", resultOfAttempt(a), publish.Returned)
	wantSame(t, "fates of b", len(b.wake), 0)
	a.send()
	wantSame(t, "mark left for the next attempt", a.current.Load().isReturned(), false)
}

// resultOfAttempt returns the result of the current attempt, publish.Confirmed if there is none.
func resultOfAttempt(k *call) publish.Result {
	if a := k.takeEnded(); a != nil {
		return a.publishResult()
	}
	return publish.Confirmed
}

func TestPendingClosedTakesNoCalls(t *testing.T) {
	t.Parallel()
	p, k := newPending(DefaultMaxInFlight, DefaultMaxInFlightBytes), pendingCall("a")
	mustAdd(t, p, k)
	p.close()
	_, err := p.add(pendingCall("b"), false)
	wantSame(t, "added after it", err, ErrClosed)
	wantSame(t, "calls before the close", p.len(), 1)
}

func TestPendingHandsAResponseToOneOfManyReaders(t *testing.T) {
	t.Parallel()
	p := newPending(DefaultMaxInFlight, DefaultMaxInFlightBytes)
	for i := range 200 {
		k := pendingCall(fmt.Sprint(i))
		mustAdd(t, p, k)
		verdicts := make(chan matchResult, 4)
		var wg sync.WaitGroup
		for range cap(verdicts) {
			wg.Go(func() { verdicts <- p.matchOne(responseDelivery(k.req.text(), false)) })
		}
		wg.Go(func() { p.remove(k) })
		wg.Wait()
		close(verdicts)
		taken := 0
		for v := range verdicts {
			if v == verdictTaken {
				taken++
			}
		}
		if taken > 1 || taken != len(k.wake) {
			t.Fatalf("taken %d times, %d responses handed over", taken, len(k.wake))
		}
	}
}
