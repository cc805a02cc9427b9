package amqpx

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// stuckHandler is a handler that ignores its context.
type stuckHandler struct {
	entered atomic.Int64
	causes  chan error // errors of its contexts at the end
	release chan struct{}
	end     func() // called at the end of a run; nil: the handler returns
}

// newStuckHandler returns a stuckHandler. The end of the test releases all its runs.
func newStuckHandler(t *testing.T) *stuckHandler {
	t.Helper()
	h := &stuckHandler{causes: make(chan error, 100), release: make(chan struct{}, 100)}
	t.Cleanup(func() { close(h.release) })
	return h
}

func (h *stuckHandler) handle(ctx context.Context, _ *Request) ([]byte, error) {
	h.entered.Add(1)
	<-h.release
	h.causes <- ctx.Err()
	if h.end != nil {
		h.end()
	}
	return []byte("too late"), nil
}

// wantTimeout checks the response for a stuck handler.
func wantTimeout(t *testing.T, a amqp.Publishing) {
	t.Helper()
	wantSame(t, "code", a.Headers[wire.HeaderCode], any("deadline_exceeded"))
	wantSame(t, "ran", a.Headers[wire.HeaderRan], nil)
}

func TestStuckHandlerIsAnsweredForAndReplaced(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(){
		"returns": nil, "panics": func() { panic("boom") }, "ends its goroutine": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, logs := observed(zap.InfoLevel)
				stuck := newStuckHandler(t)
				stuck.end = end
				var notes observerNotes
				b, s := serve(t, handlers{"stuck": stuck.handle, "m": echo}, WithWorkers(1), WithPrefetch(4),
					WithMaxHandlerTime(10*time.Second), WithLogger(log), WithServerObserver(&notes))
				putRequest(b, request("stuck"))
				putRequest(b, request("m"))
				pass(9 * time.Second)
				wantSame(t, "responses before the limit", len(takeResponses(b)), 0)
				st := s.Stats()
				wantSame(t, "stuck before the limit", st.Stuck, 0)
				wantSame(t, "oldest handler", st.OldestHandler, 9*time.Second)
				pass(4 * time.Second)
				responses := takeResponses(b)
				wantSame(t, "responses", len(responses), 2)
				wantTimeout(t, responses[0])
				wantSame(t, "answer of the next", string(responses[1].Body), "request")
				wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
				st = s.Stats()
				wantSame(t, "stuck", st.Stuck, 1)
				wantSame(t, "busy", st.Busy, 0)
				wantSame(t, "oldest handler", st.OldestHandler, 13*time.Second)
				entry := logs.FilterMessage("handler is stuck: its time limit has passed and it runs on")
				wantSame(t, "logged", entry.Len(), 1)
				wantSame(t, "replaced", entry.All()[0].ContextMap()["replaced"], any(true))

				stuck.release <- struct{}{}
				settle()
				wantSame(t, "its context said", <-stuck.causes, context.DeadlineExceeded)
				wantSame(t, "responses in the end", len(takeResponses(b)), 0)
				putRequest(b, request("m"))
				settle()
				wantSame(t, "responses of the one worker", len(takeResponses(b)), 1)
				wantSame(t, "stats", s.Stats(), ServerStats{Requests: 3, DefaultExchange: 3, OK: 2, Failed: 1, Workers: 1})
				wantSame(t, "end logged", logs.FilterMessage("stuck handler ended").Len(), 1)
				notes.mu.Lock()
				wantSame(t, "observed", len(notes.notes), 3)
				notes.mu.Unlock()
			})
		})
	}
}

func TestStuckHandlersAreReplacedUpToABound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		b, s := serve(t, handlers{"stuck": stuck.handle, "m": echo}, WithWorkers(2), WithPrefetch(10), WithMaxHandlerTime(10*time.Second))
		for range 6 {
			putRequest(b, request("stuck"))
		}
		pass(13 * time.Second)
		wantSame(t, "stuck at first", s.Stats().Stuck, 2)
		pass(13 * time.Second)
		wantSame(t, "stuck in the end", s.Stats().Stuck, 4)
		wantSame(t, "busy", s.Stats().Busy, 2)
		wantSame(t, "responses", len(takeResponses(b)), 4)
		pass(time.Minute)
		wantSame(t, "started", stuck.entered.Load(), 4)
		putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderTimeout: int64(20_000)} }))
		settle()
		refused := takeResponses(b)
		wantSame(t, "refused at once", len(refused), 1)
		wantSame(t, "code", refused[0].Headers[wire.HeaderCode], any("resource_exhausted"))

		for range 4 { // after four returns, in any order, two workers are free and take the rest
			stuck.release <- struct{}{}
		}
		settle()
		wantSame(t, "started", stuck.entered.Load(), 6)
		wantSame(t, "stuck", s.Stats().Stuck, 0)
		stuck.release <- struct{}{}
		stuck.release <- struct{}{}
		settle()
		late := takeResponses(b)
		wantSame(t, "responses", len(late), 2)
		for _, a := range late {
			wantSame(t, "answer", string(a.Body), "too late")
		}
		putRequest(b, request("stuck"))
		putRequest(b, request("stuck"))
		putRequest(b, request("stuck"))
		settle()
		wantSame(t, "workers", s.Stats().Busy, 2)
	})
}

// At the bound of stuck handlers, the return of a stuck handler lets the server replace another.
func TestStuckHandlerIsReplacedOnceAnotherHasReturned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := newStuckHandler(t), newStuckHandler(t)
		b, s := serve(t, handlers{"first": first.handle, "second": second.handle, "m": echo},
			WithWorkers(1), WithPrefetch(10), WithMaxHandlerTime(10*time.Second))
		putRequest(b, request("first"))
		putRequest(b, request("second"))
		pass(30 * time.Second)
		wantSame(t, "stuck", s.Stats().Stuck, 2)
		putRequest(b, request("m"))
		pass(time.Minute)
		wantSame(t, "responses", len(takeResponses(b)), 2)
		first.release <- struct{}{}
		pass(2 * time.Second)
		wantSame(t, "responses", len(takeResponses(b)), 1)
		wantSame(t, "stuck", s.Stats().Stuck, 1)
		second.release <- struct{}{}
		settle()
		wantSame(t, "stats", s.Stats(), ServerStats{Requests: 3, DefaultExchange: 3, OK: 1, Failed: 2, Workers: 1})
	})
}

// Each server runs one request of the retry queue at a time. A stuck handler gives up this place
// for the next.
func TestStuckHandlerLeavesTheRetryQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		b, _ := serve(t, handlers{"stuck": stuck.handle, "m": echo}, WithMaxHandlerTime(10*time.Second))
		retry := Queue{Name: DefaultQueue}.retryQueue().Name
		lost := copied(int64(2))
		b.PutIn(retry, with(request("stuck"), lost))
		b.PutIn(retry, with(request("m"), lost))
		pass(5 * time.Second)
		wantSame(t, "behind it", b.Ready(retry), 1)
		pass(10 * time.Second)
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 2)
		wantTimeout(t, responses[0])
		wantSame(t, "answer of the next", string(responses[1].Body), "request")
		wantSame(t, "left", b.Ready(retry)+b.Unacked(retry), 0)
	})
}

// All requests that wait for a stuck handler are answered, duplicates and batches included, and
// the batch is acknowledged.
func TestStuckHandlerInABatchAndItsDuplicates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		r := startRig(t, handlers{"stuck": stuck.handle, "m": echo, "start batching": echo}, WithBatch(BatchAuto), limit{5 * time.Second})
		r.awaitBatching()
		for _, call := range r.batchOf(3, "stuck") {
			got := <-call
			wantSame(t, "code", CodeOf(got.err), CodeDeadlineExceeded)
			wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
		}
		r.broker.With(func(b *brokertest.Broker) { _ = b.Declare(rawQueue, true, nil) })
		putRequest(r.broker, keyed("stuck", "key", "first"))
		putRequest(r.broker, keyed("stuck", "key", "second"))
		pass(10 * time.Second)
		responses := takeResponses(r.broker)
		wantSame(t, "responses of duplicates", len(responses), 2)
		for _, a := range responses {
			wantTimeout(t, a)
		}
		wantSame(t, "unacknowledged", r.broker.Unacked(DefaultQueue)+r.broker.Unacked(batchQueueName), 0)
		wantSame(t, "stuck", r.server.Stats().Stuck, 4)
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
	})
}

// limit is WithMaxHandlerTime as an Option.
type limit struct{ d time.Duration }

func (limit) applyClient(*clientConfig)     {}
func (l limit) applyServer(c *serverConfig) { c.maxHandlerTime = l.d }

func TestDrainDoesNotWaitForStuckHandlers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		b, s := serve(t, handlers{"stuck": stuck.handle, "m": slow}, WithWorkers(1), WithMaxHandlerTime(10*time.Second))
		putRequest(b, request("stuck"))
		putRequest(b, request("stuck"))
		pass(30 * time.Second) // one handler is replaced, the other keeps the worker
		wantSame(t, "stuck", s.Stats().Stuck, 2)
		s.stop()
		drained(t, s, nil, 0)
		wantSame(t, "responses", len(takeResponses(b)), 2)
	})
}

// A handler that gets stuck during a drain delays the drain only by the handler time limit.
func TestHandlerThatGetsStuckDuringADrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		b, s := serve(t, handlers{"stuck": stuck.handle}, WithWorkers(1), WithMaxHandlerTime(5*time.Second), WithDrainTimeout(time.Minute))
		putRequest(b, request("stuck"))
		settle()
		s.stop()
		drained(t, s, nil, 6*time.Second)
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 1)
		wantTimeout(t, responses[0])
	})
}

func TestWithoutATimeLimitAHandlerHasAllTheTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		b, s := serve(t, handlers{"stuck": stuck.handle}, WithWorkers(1), WithMaxHandlerTime(0))
		putRequest(b, request("stuck"))
		pass(24 * time.Hour)
		st := s.Stats()
		wantSame(t, "stuck", st.Stuck, 0)
		wantSame(t, "oldest handler", st.OldestHandler, 24*time.Hour)
		stuck.release <- struct{}{}
		settle()
		wantSame(t, "answer", string(takeResponses(b)[0].Body), "too late")
		wantSame(t, "its context said", <-stuck.causes, error(nil))
	})
}

// The estimate of the wait for a worker also counts handlers that have never returned.
func TestServerThatIsStuckFromTheStartRefusesWhatWouldExpire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		b, s := serve(t, handlers{"stuck": stuck.handle, "m": echo}, WithWorkers(4), WithPrefetch(20))
		for range 4 {
			putRequest(b, request("stuck"))
		}
		pass(time.Minute)
		putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderTimeout: int64(2000)} }))
		settle()
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 1)
		wantSame(t, "code", responses[0].Headers[wire.HeaderCode], any("resource_exhausted"))
		wantSame(t, "shed", s.Stats().Shed, 1)
	})
}

func TestObserverThatEndsTheWatchdog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		b, s := serve(t, handlers{"stuck": stuck.handle}, WithWorkers(1), WithMaxHandlerTime(10*time.Second),
			WithServerObserver(hostileObserver{runtime.Goexit}))
		putRequest(b, request("stuck"))
		putRequest(b, request("stuck"))
		pass(30 * time.Second)
		wantSame(t, "responses", len(takeResponses(b)), 2)
		wantSame(t, "stuck", s.Stats().Stuck, 2)
	})
}

// The tracker for which Serve waits counts the next worker before the worker of a handler that
// ended its goroutine has left: otherwise Serve could return while the next worker starts.
func TestWorkersAreCountedWithoutAGap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"exit": func(context.Context, *Request) ([]byte, error) {
			runtime.Goexit()
			return nil, nil
		}}, WithWorkers(1))
		idle := make(chan struct{})
		wantSame(t, "a worker is counted", s.workers.CallWhenIdle(func() { close(idle) }), true)
		for range 3 {
			putRequest(b, request("exit"))
		}
		settle()
		wantSame(t, "responses", len(takeResponses(b)), 3)
		select {
		case <-idle:
			t.Error("no worker was counted while the server served")
		default:
		}
		s.stop()
		wantIs(t, s.wait(t))
		<-idle
		wantSame(t, "workers", s.workers.Count(), 0)
	})
}

func TestFleetTellsOfStuckHandlers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := newStuckHandler(t)
		r := startRig(t, handlers{"stuck": stuck.handle}, WithControl(true), limit{10 * time.Second})
		call := goCall(r.client, within(t, time.Minute), "stuck", nil)
		pass(20 * time.Second)
		wantSame(t, "code", CodeOf((<-call).err), CodeDeadlineExceeded)
		servers, err := r.client.Servers(within(t, time.Minute))
		if err != nil || len(servers) != 1 {
			t.Fatalf("%d servers, %v", len(servers), err)
		}
		wantSame(t, "stuck", servers[0].Stats.Stuck, 1)
		if oldest := servers[0].Stats.OldestHandler; oldest < 20*time.Second || oldest > 21*time.Second {
			t.Errorf("oldest handler %v s", oldest)
		}
	})
}

func TestEstimateOfTheWaitForAWorker(t *testing.T) {
	t.Parallel()
	l := newLoad(2)
	now := l.start.Add(time.Hour)
	run := func(ages ...time.Duration) { // sets how long each handler has run
		l.busy.Store(int64(len(ages)))
		for i, age := range ages {
			l.take(&invocation{place: i}, now.Add(-age))
		}
	}
	waits := func(name string, want ...time.Duration) {
		t.Helper()
		for waiting, want := range want {
			if got := l.wait(waiting, now); got < want*95/100 || got > want*101/100 {
				t.Errorf("%s, behind %d: %v, want about %v", name, waiting, got, want)
			}
		}
	}
	wantSame(t, "idle", l.wait(5, now), 0)
	run(time.Minute, time.Minute)
	waits("stuck from the start", time.Minute, 90*time.Second, 2*time.Minute)
	run()
	for range 100 {
		l.started()
		l.ended(time.Second)
	}
	wantSame(t, "idle again", l.wait(5, now), 0)
	run(0)
	wantSame(t, "one of two is free", l.wait(0, now), 0)
	run(0, 0)
	waits("both have begun", 500*time.Millisecond, time.Second, 1500*time.Millisecond)
	run(0, time.Hour)
	waits("one is stuck", time.Second, 2*time.Second)
	run(time.Hour, 11*time.Second)
	waits("both take long", 11*time.Second, 22*time.Second)
}

// A server refuses a request at once if its deadline would pass before a worker is free. The
// refusal says when to retry.
func TestRequestThatWouldExpireInTheServerIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": counted(&runs, slow)}, WithWorkers(1), WithPrefetch(10))
		budget := func(ms int64) func(*amqp.Publishing) {
			return func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderTimeout: ms} }
		}
		for range 30 { // the server learns how long its handlers take
			putRequest(b, request("m"))
			pass(3 * time.Second)
		}
		takeResponses(b)
		putRequest(b, request("m"))
		settle()
		begun := time.Now()
		putRequest(b, with(request("m"), budget(500)))
		settle()
		wantSame(t, "time to the refusal", time.Since(begun), 0)
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 1)
		h := responses[0].Headers
		wantSame(t, "code", h[wire.HeaderCode], any("resource_exhausted"))
		wantSame(t, "ran", h[wire.HeaderRan], any(false))
		if after, _ := h[wire.HeaderRetryAfter].(int64); after < 1500 || after > 2000 {
			t.Errorf("retry after %v ms", h[wire.HeaderRetryAfter])
		}
		wantSame(t, "shed", s.Stats().Shed, 1)
		wantSame(t, "refused", s.Stats().Refused, 1)
		putRequest(b, keyed("m", "key", "first"))
		pass(3 * time.Second)
		putRequest(b, with(keyed("m", "key", "again"), budget(500))) // may need no handler
		takeResponses(b)
		putRequest(b, with(request("m"), budget(60_000))) // has the time to wait
		putRequest(b, request("m"))                       // sets no limit
		pass(time.Minute)
		wantSame(t, "executions", runs.Load(), 34)
		wantSame(t, "expired", s.Stats().Expired, 1)
		wantSame(t, "shed in the end", s.Stats().Shed, 1)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}

func TestQueueBound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		queue Queue
		args  amqp.Table
	}{
		{"none", Queue{}, nil},
		{"messages", Queue{MaxLength: 5}, amqp.Table{"x-max-length": int64(5), "x-overflow": "reject-publish"}},
		{"bytes, quorum", Queue{MaxBytes: 7, Type: QueueQuorum}, amqp.Table{
			"x-max-length-bytes": int64(7), "x-overflow": "reject-publish", "x-queue-type": "quorum",
		}},
		{"of the dead letters", Queue{}.deadQueue(), amqp.Table{"x-max-length": int64(maxDead)}},
	} {
		got := c.queue.arguments()
		if len(got) != len(c.args) || (got == nil) != (c.args == nil) {
			t.Errorf("%s: %v, want %v", c.name, got, c.args)
		}
		for name, want := range c.args {
			wantSame(t, c.name+": "+name, got[name], want)
		}
	}
}
