package amqpx

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// lost returns a request that other servers have lost and republished.
func lost(method string) amqp.Publishing {
	return with(request(method), copied(int64(1)))
}

// A request which waits for the confirms of copies occupies no worker.
func TestOtherRequestsRunWhileALostRequestWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var waited, others atomic.Int64
		b, s := serve(t, handlers{"m": counted(&waited, echo), "n": counted(&others, echo)}, WithWorkers(1), WithPrefetch(10))
		b.HoldConfirms()
		redelivered(b, request("m")) // its copy is not confirmed, and so its original not acknowledged
		settle()
		putRequest(b, lost("m"))
		for range 3 {
			putRequest(b, request("n"))
		}
		settle()
		wantSame(t, "runs of other requests", others.Load(), 3)
		wantSame(t, "runs of the request that waits", waited.Load(), 0)
		b.ReleaseConfirms()
		settle()
		wantSame(t, "runs of the request that waited, and of the copy", waited.Load(), 2)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
	})
}

// A request that waits for the confirms of copies when the connection is lost is delivered again.
func TestLostConnectionEndsTheWaitOfALostRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": counted(&runs, echo)}, WithWorkers(1))
		b.HoldConfirms()
		redelivered(b, request("m"))
		settle()
		putRequest(b, lost("m"))
		settle()
		wantSame(t, "runs", runs.Load(), 0)
		b.Kick(nil)
		settle()
		wantSame(t, "in flight before the reconnect", s.Stats().InFlight, 0)
		b.ReleaseConfirms()
		pass(time.Minute)
		if n := runs.Load(); n < 2 || n > 3 { // the copy of the first may have arrived
			t.Errorf("%d runs", n)
		}
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
	})
}

func TestRedeliveryPolicy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		in   redelivery
		want redeliveryAction
	}{
		{"first delivery", redelivery{limit: 5, retryUp: true}, redeliveryRun},
		{"first delivery of a request that was sent before", redelivery{sentBefore: true, limit: 5}, redeliveryRun},
		{"first delivery of a copy", redelivery{sentBefore: true, lost: 1, limit: 5}, redeliveryPark},
		{"first delivery of a copy beyond the limit, which is now smaller", redelivery{sentBefore: true, lost: 9, limit: 5}, redeliveryPark},
		{"lost once", redelivery{marked: true, sentBefore: true, limit: 5, retryUp: true}, redeliveryRepublish},
		{"lost twice", redelivery{marked: true, sentBefore: true, lost: 1, limit: 5, retryUp: true}, redeliveryRetry},
		{"lost twice, without a retry queue", redelivery{marked: true, sentBefore: true, lost: 1, limit: 5}, redeliveryRepublish},
		{"lost as often as the limit", redelivery{marked: true, sentBefore: true, lost: 4, limit: 5, retryUp: true}, redeliveryDeadLetter},
		{"lost more often than the limit", redelivery{marked: true, sentBefore: true, lost: 7, limit: 5, retryUp: true}, redeliveryDeadLetter},
		{"lost once, limit 1", redelivery{marked: true, sentBefore: true, limit: 1, retryUp: true}, redeliveryDeadLetter},
		{"lost once, a duplicate runs", redelivery{marked: true, sentBefore: true, known: true, limit: 5, retryUp: true}, redeliveryRun},
		{"lost again, a duplicate runs", redelivery{marked: true, sentBefore: true, known: true, lost: 4, limit: 5}, redeliveryPark},
		{"lost once, near the broker's limit", redelivery{marked: true, sentBefore: true, nearBrokerLimit: true, limit: 5}, redeliveryRepublish},
		{"not counted", redelivery{marked: true, sentBefore: true}, redeliveryRun},
		{"not counted, copy of a server that counts", redelivery{marked: true, sentBefore: true, lost: 9}, redeliveryPark},
		{"not counted, near the broker's limit", redelivery{marked: true, sentBefore: true, nearBrokerLimit: true}, redeliveryRepublish},
		{"no room for the body before", redelivery{marked: true, sentBefore: true, deferred: true, limit: 5, retryUp: true}, redeliveryRun},
		{"no room for the body of a copy before", redelivery{marked: true, sentBefore: true, deferred: true, lost: 4, limit: 5}, redeliveryPark},
		{
			"no room for the body before, near the broker's limit",
			redelivery{marked: true, sentBefore: true, deferred: true, nearBrokerLimit: true, limit: 5, retryUp: true},
			redeliveryRepublish,
		},
		{"at most once, first delivery", redelivery{atMostOnce: true, limit: 5}, redeliveryRun},
		{"at most once, sent before", redelivery{atMostOnce: true, sentBefore: true, limit: 5}, redeliveryRefuse},
		{"at most once, lost", redelivery{atMostOnce: true, marked: true, sentBefore: true, limit: 5, retryUp: true}, redeliveryRefuse},
		{"at most once, lost, not counted", redelivery{atMostOnce: true, marked: true, sentBefore: true}, redeliveryRefuse},
		{"at most once, a duplicate has a response", redelivery{atMostOnce: true, marked: true, sentBefore: true, known: true, limit: 5}, redeliveryRun},
	} {
		wantSame(t, c.name, c.in.action(), c.want)
	}
}

// No request of a parked set is lost or taken twice.
func TestParkedRequestsAreTakenOnce(t *testing.T) {
	t.Parallel()
	var p parkedRequests
	one, two := &consumer{}, &consumer{}
	first := &inboundRequest{delivery: &delivery{consumer: one}}
	second := &inboundRequest{delivery: &delivery{consumer: two}}
	p.add(first)
	p.add(second)
	wantSame(t, "of the first consumer", len(p.takeOf(one)), 1)
	wantSame(t, "taken again", p.take(first), false)
	wantSame(t, "the other", p.take(second), true)
	wantSame(t, "left", len(p.takeOf(nil)), 0)
}
