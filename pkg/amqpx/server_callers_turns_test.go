package amqpx

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// putOf puts a request of a user.
func putOf(c *callers, user string) { putUrgent(c, user, "", 0) }

// putUrgent puts a request of a user with an id and a priority.
func putUrgent(c *callers, user, id string, priority uint8) {
	message := amqp.Delivery{Priority: priority}
	req := &inboundRequest{in: &incoming{Request: wire.Request{ID: id}, user: user}, delivery: &delivery{message: message}}
	_, _, _ = c.admit(req, newCallerID(user, ""), 1, true)
	c.put([]task{req})
}

// A caller with two requests is not passed by new callers without end.
func TestNewCallersDoNotStarveACaller(t *testing.T) {
	t.Parallel()
	for _, waiting := range []int{1, 2, 10} { // new callers that always wait
		c, queue := newTestCallers(CallerLimits{Fair: true}, 1)
		c.load.average.Store(int64(time.Millisecond))
		putOf(c, "a")
		putOf(c, "a")
		for i := range waiting {
			putOf(c, "first "+strconv.Itoa(i))
		}
		turns, runs := 0, 0
		for ; runs < 2 && turns < 1000; turns++ {
			putOf(c, strconv.Itoa(turns))
			if runNext(c, queue, time.Millisecond).in.user == "a" {
				runs++
			}
		}
		if turns > 6*(waiting+1) {
			t.Errorf("with %d waiting: two requests took %d turns", waiting, turns)
		}
	}
}

// A caller that always has requests waiting keeps its share beside ever new callers, and the new
// callers keep theirs.
func TestShareBesideNewCallers(t *testing.T) {
	t.Parallel()
	c, queue := newTestCallers(CallerLimits{Fair: true}, 1)
	c.load.average.Store(int64(time.Millisecond))
	for range 1000 {
		putOf(c, "a")
	}
	putOf(c, "first")
	runs := 0
	for i := range 600 {
		if runNext(c, queue, time.Millisecond).in.user == "a" {
			runs++
		} else {
			putOf(c, strconv.Itoa(i))
		}
	}
	if runs < 200 || runs > 400 {
		t.Errorf("%d of 600 runs", runs)
	}
}

// A caller that makes one long call at a time has no larger share than a caller with many short
// calls.
func TestOneLongCallAtATimeHasTheSameShare(t *testing.T) {
	t.Parallel()
	c, queue := newTestCallers(CallerLimits{Fair: true}, 1)
	takes := map[string]time.Duration{"many": time.Millisecond, "long": 100 * time.Millisecond}
	for range 2000 {
		putOf(c, "many")
	}
	putOf(c, "long")
	got := map[string]time.Duration{}
	for got["many"]+got["long"] < 2*time.Second {
		next, _ := queue.Pop()
		req, _ := next.(*inboundRequest)
		user := req.in.user
		got[user] += takes[user]
		c.leaveWorker(req.admission, takes[user])
		c.leave(req.admission)
		if user == "long" {
			putOf(c, "long")
		}
	}
	if got["long"] < 800*time.Millisecond || got["long"] > 1200*time.Millisecond {
		t.Errorf("times: %v", got)
	}
}

// The debts of forgotten callers are bounded, and void when a worker is free.
func TestDebtsAreBounded(t *testing.T) {
	t.Parallel()
	c, queue := newTestCallers(CallerLimits{Fair: true}, 1)
	putOf(c, "one that always waits")
	for i := range 10 * maxDebts {
		putOf(c, strconv.Itoa(i))
		runNext(c, queue, time.Duration(i)*time.Millisecond)
	}
	if n := len(c.debts.fresh) + len(c.debts.old); n == 0 || n > maxDebts {
		t.Errorf("%d debts", n)
	}
	for c.occupied > 0 {
		runNext(c, queue, time.Millisecond)
	}
	wantSame(t, "debts without waiting callers", len(c.debts.fresh)+len(c.debts.old), 0)
	wantSame(t, "runnable", c.runnable, 0)
}

// The requests that one caller may not run yet do not keep batches out, while workers are free.
func TestBacklogOfOneCallerLeavesRoomForBatches(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits CallerLimits
		room   bool
	}{
		"workers are free":     {CallerLimits{MaxRunning: 4}, true},
		"all workers are busy": {CallerLimits{MaxRunning: 1000}, false},
		"no bound":             {CallerLimits{Fair: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": newTakesTime().handle}, WithWorkers(8), WithPrefetch(1000), WithCallerLimits(c.limits))
				for i := range queueRoom + 100 {
					putRequest(b, callOf("greedy", i, time.Second))
				}
				settle()
				wantSame(t, "room", s.hasRoom(), c.room)
				if !c.room {
					select { // the token of the time before
					case <-s.room():
					default:
					}
					pass(20 * time.Second)
					wantSame(t, "tokens", len(s.room()), 1)
				}
				pass(10 * time.Minute)
				wantSame(t, "room", s.hasRoom(), true)
				wantSame(t, "runnable", s.callers.runnable, 0)
			})
		})
	}
}

// Lost requests that waited for the confirms of copies take turns like all others.
func TestParkedRequestsTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newTakesTime()
		b, s := serve(t, handlers{"m": h.handle}, WithWorkers(8), WithPrefetch(100), WithCallerLimits(CallerLimits{MaxRunning: 1}))
		b.HoldConfirms()
		redelivered(b, callOf("another", 0, time.Millisecond)) // its copy is not confirmed
		settle()
		for i := range 3 {
			putRequest(b, with(callOf("a", i, time.Second), copied(int64(1))))
		}
		settle()
		wantSame(t, "occupied workers while all wait", s.callers.occupied, 0)
		putRequest(b, callOf("a", 9, time.Second))
		settle()
		b.ReleaseConfirms()
		pass(time.Minute)
		wantSame(t, "most at once", h.most["a"], 1)
		wantSame(t, "runs", len(h.ended), 5)
		wantSame(t, "callers left", len(s.callers.all), 0)
		wantSame(t, "occupied", s.callers.occupied, 0)
	})
}

// A worker that has parked a request leaves the request alone: another worker may run it before
// the first worker continues.
func TestParkedRequestHasLeftItsWorker(t *testing.T) {
	t.Parallel()
	s, err := NewServer(testURL, WithWorkers(1), WithCallerLimits(CallerLimits{MaxRunning: 1}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Handle("m", echo); err != nil {
		t.Fatal(err)
	}
	lostOnce := func() *inboundRequest {
		message := amqp.Delivery{AppId: "m", UserId: "a", CorrelationId: "id", Headers: amqp.Table{wire.HeaderDeliveries: int64(1)}}
		req := &inboundRequest{
			delivery: &delivery{message: message, consumer: &consumer{server: s, done: make(chan struct{})}, arrived: time.Now()},
			in:       &incoming{},
		}
		_, _, _ = s.callers.admit(req, newCallerID("a", ""), 1, true)
		s.putWaiting(0, req)
		return req
	}
	s.moves.Add(1)
	first, second := lostOnce(), lostOnce()
	for _, req := range []*inboundRequest{first, second} {
		next, _ := s.waiting.Pop()
		wantSame(t, "the next is the one that was put", next == task(req), true)
		wantSame(t, "parked", s.process(t.Context(), req), true)
	}
	wantSame(t, "occupied", s.callers.occupied, 0)
	s.moves.Done() // as a confirm does, before the workers continue
	wantSame(t, "in the queue of the workers", s.waiting.Len(), 1)
	wantSame(t, "waiting", s.callers.waiting(), 1)
	wantSame(t, "occupied", s.callers.occupied, 1)
	// Without a copy in progress the request runs, and occupies a worker.
	req, _ := s.waiting.Pop()
	parked, _ := req.(*inboundRequest)
	parked.parked = false
	wantSame(t, "parked again", s.park(parked), false)
	wantSame(t, "occupies", parked.admission.occupies, true)
}
