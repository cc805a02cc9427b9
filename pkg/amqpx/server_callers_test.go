package amqpx

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// takesTime is a handler that runs for the time in the request's body, and counts how many runs
// each caller has at once.
type takesTime struct {
	mu      sync.Mutex
	running map[string]int
	most    map[string]int
	ended   []string // the callers, in the order in which their calls ended
}

func newTakesTime() *takesTime {
	return &takesTime{running: make(map[string]int), most: make(map[string]int)}
}

func (h *takesTime) handle(_ context.Context, req *Request) ([]byte, error) {
	d, err := time.ParseDuration(string(req.Body))
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.running[req.User]++
	h.most[req.User] = max(h.most[req.User], h.running[req.User])
	h.mu.Unlock()
	<-time.After(d)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running[req.User]--
	h.ended = append(h.ended, req.User)
	return []byte(req.User), nil
}

// callOf returns the request of a user that runs for some time.
func callOf(user string, n int, takes time.Duration) amqp.Publishing {
	return with(request("m"), func(p *amqp.Publishing) {
		p.UserId, p.CorrelationId, p.Body = user, user+strconv.Itoa(n), []byte(takes.String())
	})
}

// codesOf returns how many responses have each code; "" is a result.
func codesOf(b *brokertest.Broker) map[string]int {
	codes := make(map[string]int)
	for _, a := range takeResponses(b) {
		code, _ := a.Headers[wire.HeaderCode].(string)
		codes[code]++
	}
	return codes
}

// A flood of slow calls of one user does not delay the quick calls of another user by more than
// a worker's wait, because the flood may not run on all workers.
func TestOneCallerDoesNotHoldAllWorkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newTakesTime()
		b, s := serve(t, handlers{"m": h.handle}, WithWorkers(8), WithPrefetch(1000), WithCallerLimits(CallerLimits{MaxRunning: 4}))
		for i := range 200 {
			putRequest(b, callOf("greedy", i, time.Second))
		}
		settle()
		wantSame(t, "busy", s.Stats().Busy, 4)
		wantSame(t, "waiting", s.Stats().Waiting, 196)
		for i := range 20 {
			putRequest(b, callOf("polite", i, time.Millisecond))
			pass(2 * time.Millisecond)
			wantSame(t, "responses to the polite caller", len(takeResponses(b)), 1)
		}
		pass(time.Minute)
		wantSame(t, "responses", len(takeResponses(b)), 200)
		wantSame(t, "most of the greedy caller", h.most["greedy"], 4)
		wantSame(t, "callers left", len(s.callers.all), 0)
		wantSame(t, "stats", s.Stats(), ServerStats{Requests: 220, DefaultExchange: 220, OK: 220, Workers: 8})
	})
}

// While all workers are busy, callers get the same share of the workers' time, however many
// requests each has waiting and however long its calls run.
func TestCallersTakeTurns(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		takes map[string]time.Duration // of the calls of each user
		calls int                      // of each user
		want  map[string]int           // calls in the first ten seconds, within one fifth
	}{
		"alike":   {map[string]time.Duration{"a": 100 * time.Millisecond, "b": 100 * time.Millisecond}, 1000, map[string]int{"a": 100, "b": 100}},
		"1 to 10": {map[string]time.Duration{"a": 100 * time.Millisecond, "b": 10 * time.Millisecond}, 2000, map[string]int{"a": 100, "b": 1000}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newTakesTime()
				b, _ := serve(t, handlers{"m": h.handle}, WithWorkers(2), WithPrefetch(10_000), WithCallerLimits(CallerLimits{Fair: true}))
				for user, takes := range c.takes { // one after the other
					for i := range c.calls {
						putRequest(b, callOf(user, i, takes))
					}
				}
				pass(10 * time.Second)
				h.mu.Lock()
				got := make(map[string]int)
				for _, user := range h.ended {
					got[user]++
				}
				h.mu.Unlock()
				for user, want := range c.want {
					if n := got[user]; n < want*4/5 || n > want*6/5 {
						t.Errorf("%d calls of %s, want about %d", n, user, want)
					}
				}
			})
		})
	}
}

func TestCallsOfOneCallerStartInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var order []string
		b, _ := serve(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			order = append(order, req.CorrelationID)
			<-time.After(time.Millisecond)
			return nil, nil
		}}, WithWorkers(1), WithPrefetch(1000), WithCallerLimits(CallerLimits{Fair: true}))
		for i := range 100 {
			putRequest(b, callOf("a", i, 0))
		}
		pass(time.Second)
		for i, id := range order {
			wantSame(t, "call", id, "a"+strconv.Itoa(i))
		}
		wantSame(t, "calls", len(order), 100)
	})
}

// Requests beyond a caller's quota were not run, and other callers are not refused.
func TestQuotaOfACaller(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits CallerLimits
		one    change // of all requests of the greedy caller
		ok     int
	}{
		"calls":                 {CallerLimits{MaxCalls: 5}, ofUser("greedy"), 5},
		"bytes":                 {CallerLimits{MaxBytes: 10}, ofUser("greedy"), 5}, // of two bytes each
		"calls of a reply_to":   {CallerLimits{MaxCalls: 5}, ofUser(""), 5},
		"with turns":            {CallerLimits{MaxCalls: 5, Fair: true}, ofUser("greedy"), 5},
		"calls, with MaxBytes":  {CallerLimits{MaxCalls: 5, MaxBytes: 1000}, ofUser("greedy"), 5},
		"one larger than bytes": {CallerLimits{MaxBytes: 1}, ofUser("greedy"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, logs := observed(zap.WarnLevel)
				b, s := serve(t, handlers{"m": newTakesTime().handle}, WithCallerLimits(c.limits), WithLogger(log))
				for i := range 20 {
					putRequest(b, with(callOf("", i, time.Second), c.one)) // the body is "1s"
				}
				settle()
				refused := takeResponses(b)
				wantSame(t, "refused", len(refused), 20-c.ok)
				for _, a := range refused {
					wantSame(t, "code", a.Headers[wire.HeaderCode], any("resource_exhausted"))
					wantSame(t, "ran", a.Headers[wire.HeaderRan], any(false))
					wantSame(t, "hint", a.Headers[wire.HeaderRetryAfter] != nil, true)
				}
				putRequest(b, callOf("another", 0, time.Millisecond))
				pass(10 * time.Millisecond)
				wantSame(t, "responses to another caller", codesOf(b)[""], 1)
				pass(time.Second)
				wantSame(t, "responses to admitted calls", codesOf(b)[""], c.ok)
				wantSame(t, "lines", logs.Len(), 1)
				putRequest(b, with(callOf("", 21, time.Second), c.one))
				pass(2 * time.Second)
				wantSame(t, "responses later", codesOf(b)[""], 1)
				wantSame(t, "limited", s.Stats().CallerLimited, uint64(20-c.ok))
				wantSame(t, "callers left", len(s.callers.all), 0)
			})
		})
	}
}

// Requests which the broker delivers again after a loss, copies by servers, and repetitions of a
// running call are not refused for their caller's quota.
func TestQuotaDoesNotRefuseWhatIsDeliveredAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newTakesTime()
		b, s := serve(t, handlers{"m": h.handle}, WithCallerLimits(CallerLimits{MaxCalls: 1}))
		first := with(callOf("a", 1, time.Minute), func(p *amqp.Publishing) { p.MessageId, p.Type = "key", wire.TypeRequest })
		putRequest(b, first)
		settle()
		putRequest(b, with(first, func(p *amqp.Publishing) { p.CorrelationId = "again" }))
		putRequest(b, with(callOf("app", 2, time.Second), func(p *amqp.Publishing) {
			p.Headers = amqp.Table{wire.HeaderUser: "a"}
		}))
		putLost(b, callOf("a", 3, time.Second))
		settle()
		wantSame(t, "refused", len(takeResponses(b)), 0)
		putRequest(b, callOf("a", 4, time.Second))
		settle()
		wantSame(t, "refused", codesOf(b)["resource_exhausted"], 1)
		pass(2 * time.Minute)
		wantSame(t, "responses", codesOf(b)[""], 4)
		wantSame(t, "callers left", len(s.callers.all), 0)
	})
}

// A one-way request beyond the quota is not run, and is left to a dead-letter policy.
func TestQuotaOfOneWayRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newTakesTime()
		b, s := serve(t, handlers{"m": h.handle}, WithCallerLimits(CallerLimits{MaxCalls: 1}))
		for i := range 3 {
			putRequest(b, with(callOf("a", i, time.Second), func(p *amqp.Publishing) { p.ReplyTo = "" }))
		}
		pass(time.Minute)
		wantSame(t, "runs", len(h.ended), 1)
		wantSame(t, "stats", s.Stats(), ServerStats{Requests: 3, DefaultExchange: 3, OK: 1, Refused: 2, CallerLimited: 2, Workers: DefaultWorkers})
		wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
	})
}

// A drain puts the requests that wait for their turns back into the queue.
func TestDrainWithWaitingCallers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newTakesTime()
		b, s := serve(t, handlers{"m": h.handle}, WithWorkers(2), WithPrefetch(100), WithCallerLimits(CallerLimits{MaxRunning: 1}))
		for i := range 20 {
			putRequest(b, callOf("a", i, time.Second))
		}
		settle()
		s.stop()
		if err := s.wait(t); err != nil {
			t.Error(err)
		}
		wantSame(t, "responses", codesOf(b)[""], 1)
		wantSame(t, "requeued", s.Stats().Requeued, 19)
		wantSame(t, "ready", b.Ready(DefaultQueue), 19)
		wantSame(t, "callers left", len(s.callers.all), 0)
	})
}

// When a connection is lost, its waiting requests make room for their new deliveries.
func TestConnectionLossWithWaitingCallers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newTakesTime()
		b, s := serve(t, handlers{"m": h.handle}, WithWorkers(4), WithPrefetch(100), WithCallerLimits(CallerLimits{MaxRunning: 1}), WithDeliveryLimit(0))
		for i := range 10 {
			putRequest(b, callOf("a", i, 10*time.Second))
		}
		settle()
		b.Kick(brokertest.BrokenSocket())
		pass(5 * time.Second)
		wantSame(t, "waiting", s.Stats().Waiting <= 10, true)
		pass(5 * time.Minute)
		wantSame(t, "ready", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
		wantSame(t, "most at once", h.most["a"], 1)
		wantSame(t, "callers left", len(s.callers.all), 0)
		wantSame(t, "waiting", s.Stats().Waiting, 0)
	})
}

// A duplicate that waits for a running call occupies no worker, and its caller's bound counts
// only what runs.
func TestDuplicatesAndStuckHandlersOfACaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		b, s := serve(t, handlers{"m": newTakesTime().handle, "stuck": stuck.handle}, WithWorkers(4), WithPrefetch(100),
			WithMaxHandlerTime(5*time.Second), WithCallerLimits(CallerLimits{MaxRunning: 2}))
		first := with(callOf("a", 1, 2*time.Second), func(p *amqp.Publishing) { p.MessageId, p.Type = "key", wire.TypeRequest })
		putRequest(b, first)
		putRequest(b, with(first, func(p *amqp.Publishing) { p.CorrelationId = "again" }))
		putRequest(b, with(request("stuck"), ofUser("a")))
		putRequest(b, callOf("a", 2, time.Second))
		pass(time.Second)
		wantSame(t, "stuck handlers", stuck.entered.Load(), 1) // the duplicate has left its place
		wantSame(t, "waiting", s.Stats().Waiting, 1)
		pass(3 * time.Second)
		wantSame(t, "responses", codesOf(b)[""], 3)
		putRequest(b, with(request("stuck"), ofUser("a")))
		putRequest(b, callOf("a", 3, time.Second))
		settle()
		wantSame(t, "waiting", s.Stats().Waiting, 1)
		pass(5 * time.Second) // the first stuck handler is replaced, and the last call runs
		codes := codesOf(b)
		wantSame(t, "timed out", codes["deadline_exceeded"], 1)
		wantSame(t, "ran", codes[""], 1)
		stuck.release <- struct{}{}
		stuck.release <- struct{}{}
		settle()
		wantSame(t, "callers left", len(s.callers.all), 0)
		wantSame(t, "occupied", s.callers.occupied, 0)
	})
}

// The requests of a batch count one by one.
func TestCallersInBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newTakesTime()
		r := startRig(t, handlers{"m": h.handle, "start batching": echo}, WithBatch(BatchAuto),
			onServer{WithCallerLimits(CallerLimits{MaxRunning: 3, MaxCalls: 100})})
		r.awaitBatching()
		calls := r.together(func() (all []<-chan result) {
			for range 30 {
				all = append(all, goCall(r.client, within(t, time.Minute), "m", []byte("100ms")))
			}
			return all
		})
		for _, call := range calls {
			wantResponse(t, <-call, "app")
		}
		wantSame(t, "most at once", h.most["app"], 3)
		settle()
		wantSame(t, "callers left", len(r.server.callers.all), 0)
	})
}

// newTestCallers returns callers without a server, and the queue of their workers.
func newTestCallers(limits CallerLimits, workers int) (*callers, *xsync.Queue[task]) {
	queue, l := xsync.NewQueue[task](queueRoom), newLoad(workers)
	return newCallers(limits, workers, queue, &l), queue
}

// run lets a worker run the next request, and finishes it.
func runNext(c *callers, queue *xsync.Queue[task], took time.Duration) *inboundRequest {
	t, _ := queue.Pop()
	req, _ := t.(*inboundRequest)
	c.leaveWorker(req.admission, took)
	c.leave(req.admission)
	return req
}

// The number of callers in memory is bounded by the work in hand, and the number of callers
// without a user by a constant.
func TestManyCallersTakeLittleMemory(t *testing.T) {
	t.Parallel()
	c, queue := newTestCallers(CallerLimits{MaxCalls: 10, Fair: true}, 1)
	for i := range 100_000 {
		req := &inboundRequest{delivery: &delivery{}}
		if _, _, err := c.admit(req, newCallerID(fmt.Sprint("user ", i), ""), 1, false); err != nil {
			t.Fatal(err)
		}
		c.put([]task{req})
		if i >= 100 {
			runNext(c, queue, time.Millisecond)
		}
	}
	wantSame(t, "callers with work", len(c.all), 100)
	refused := 0
	for i := range 100_000 {
		if _, _, err := c.admit(&inboundRequest{delivery: &delivery{}}, newCallerID("", fmt.Sprint("queue ", i)), 1, false); err != nil {
			refused++
		}
	}
	wantSame(t, "refused", refused, 100_000-maxAnonymousCallers-10)
	wantSame(t, "callers", len(c.all), 100+maxAnonymousCallers+1)
}

// A caller who comes back gets its share from then on, and no more.
func TestAbsenceEarnsNoCredit(t *testing.T) {
	t.Parallel()
	c, queue := newTestCallers(CallerLimits{Fair: true}, 1)
	put := func(user string, n int) {
		for range n {
			req := &inboundRequest{delivery: &delivery{}}
			req.in = &incoming{user: user}
			_, _, _ = c.admit(req, newCallerID(user, ""), 1, false)
			c.put([]task{req})
		}
	}
	put("a", 1000)
	for range 500 {
		runNext(c, queue, time.Millisecond)
	}
	put("b", 500)
	got := map[string]int{}
	for range 100 {
		got[runNext(c, queue, time.Millisecond).in.user]++
	}
	if got["a"] < 45 || got["b"] < 45 {
		t.Errorf("the next 100 runs: %v", got)
	}
}

func TestInvalidCallerLimits(t *testing.T) {
	t.Parallel()
	_, err := NewServer(testURL, WithCallerLimits(CallerLimits{MaxCalls: -1}))
	if err == nil {
		t.Fatal("accepted")
	}
	wantTexts(t, err, "limits of each caller of -1 calls, 0 bytes and 0 running")
}

// Many goroutines use the callers at once.
func TestCallersAtOnce(t *testing.T) {
	t.Parallel()
	c, queue := newTestCallers(CallerLimits{MaxRunning: 2, Fair: true}, 4)
	const senders, each = 8, 500
	var ran atomic.Int64
	var all, workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for {
				t, open := queue.Pop()
				if !open {
					return
				}
				req, _ := t.(*inboundRequest)
				c.leaveWorker(req.admission, time.Microsecond)
				c.leave(req.admission)
				if ran.Add(1) == senders*each {
					queue.Close()
				}
			}
		})
	}
	for i := range senders {
		all.Go(func() {
			for range each {
				req := &inboundRequest{delivery: &delivery{}}
				_, _, _ = c.admit(req, newCallerID(strconv.Itoa(i%5), ""), 1, false)
				c.put([]task{req})
			}
		})
	}
	all.Wait()
	workers.Wait()
	wantSame(t, "callers left", len(c.all), 0)
	wantSame(t, "backlog", c.backlog, 0)
}

func BenchmarkCallers(b *testing.B) {
	for _, n := range []int{1, 16, 256, 4096} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			c, queue := newTestCallers(CallerLimits{MaxRunning: 32, Fair: true}, 64)
			ids := make([]callerID, n)
			for i := range ids {
				ids[i] = newCallerID("user "+strconv.Itoa(i), "")
			}
			one := make([]task, 1)
			put := func(i int) {
				req := &inboundRequest{delivery: &delivery{}}
				_, _, _ = c.admit(req, ids[i%n], 1, true)
				one[0] = req
				c.put(one)
			}
			for i := range 2 * n {
				put(i)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				put(i)
				runNext(c, queue, time.Microsecond)
			}
		})
	}
}
