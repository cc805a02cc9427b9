package amqpx

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Every message of a call with a priority has the priority, however often the request is sent.
func TestPriorityOnTheWire(t *testing.T) {
	t.Parallel()
	raising := func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			own := *req
			own.Priority++
			return next(ctx, &own)
		}
	}
	for name, c := range map[string]struct {
		client []ClientOption
		call   []CallOption
		want   uint8
	}{
		"none":                       {nil, nil, 0},
		"of the call":                {nil, []CallOption{WithPriority(7)}, 7},
		"of the method":              {[]ClientOption{WithMethod("m", WithPriority(255))}, nil, 255},
		"the call's own":             {[]ClientOption{WithCallOptions(WithPriority(9))}, []CallOption{WithPriority(0)}, 0},
		"of middleware":              {[]ClientOption{WithMiddleware(raising)}, []CallOption{WithPriority(3)}, 4},
		"of tries":                   {nil, []CallOption{WithPriority(5), WithRetry(RetryPolicy{}), WithIdempotencyKey("key")}, 5},
		"of a keyed call and a time": {nil, []CallOption{WithPriority(5), WithIdempotencyKey("key"), CallTimeout(time.Minute)}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, each(refuses(time.Second), runs), c.client...)
				wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), c.call...), "x")
				wantSame(t, "requests", len(r.requests()), 2)
				for _, msg := range r.requests() {
					wantSame(t, "priority", msg.Priority, c.want)
				}
			})
		})
	}
}

func TestPriorityOfAOneWayRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, silent)
		wantSend(t, <-goSend(r.client, within(t, time.Minute), "m", nil, WithPriority(2)), "", Ran)
		wantSame(t, "priority", r.requests()[0].Priority, 2)
	})
}

// A call that is used again has the options of its own request.
func TestPriorityIsOfOneCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, runs)
		for _, priority := range []uint8{9, 0, 1} {
			wantResponse(t, <-goCall(r.client, t.Context(), "m", []byte("x"), WithPriority(priority)), "x")
		}
		for i, want := range []uint8{9, 0, 1} {
			wantSame(t, "priority", r.requests()[i].Priority, want)
		}
	})
}

// startOrder is a handler that records the bodies of requests in the order of their starts, and runs until
// it is let go on.
type startOrder struct {
	mu      sync.Mutex
	started []string
	seen    map[string]uint8 // the priorities, by body
	goOn    chan struct{}
}

func newStartOrder() *startOrder {
	return &startOrder{seen: make(map[string]uint8), goOn: make(chan struct{})}
}

func (o *startOrder) handle(_ context.Context, req *Request) ([]byte, error) {
	o.mu.Lock()
	o.started = append(o.started, string(req.Body))
	o.seen[string(req.Body)] = req.Priority
	o.mu.Unlock()
	<-o.goOn
	return req.Body, nil
}

// starts returns the bodies in the order of their starts.
func (o *startOrder) starts() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.started, " ")
}

// In a server, a request with a priority starts before the requests that arrived earlier, and two of
// three times before the request that has waited longest.
func TestUrgentRequestsStartFirst(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]CallerLimits{"": {}, "limits without turns": {MaxCalls: 100}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, h := brokertest.New(), newStartOrder()
				s := startServer(t, b, handlers{"m": h.handle}, WithWorkers(1), WithPrefetch(100), WithCallerLimits(limits))
				c := startClient(t, b)
				ready(t, s.WaitReady)
				ready(t, c.WaitReady)
				var calls []<-chan result
				call := func(priority uint8, names ...string) {
					for _, name := range names {
						calls = append(calls, goCall(c, t.Context(), "m", []byte(name), WithPriority(priority)))
						settle()
					}
				}
				call(0, "running", "a", "b", "c", "d")
				call(5, "U", "V", "W")
				call(9, "first")
				close(h.goOn)
				for _, done := range calls {
					if got := <-done; got.err != nil {
						t.Error(got.err)
					}
				}
				wantSame(t, "order", h.starts(), "running first U a V W b c d")
				wantSame(t, "priority that the handler sees", h.seen["U"], 5)
				wantSame(t, "of a call without", h.seen["a"], 0)
			})
		})
	}
}

// Where callers take turns, a priority changes only the order of one caller's requests.
func TestPriorityWithinACaller(t *testing.T) {
	t.Parallel()
	c, queue := newTestCallers(CallerLimits{Fair: true}, 1)
	put := func(user string, priority uint8, ids ...string) {
		for _, id := range ids {
			putUrgent(c, user, id, priority)
		}
	}
	put("x", 0, "running")
	put("x", 0, "x1", "x2")
	put("y", 0, "y1", "y2")
	put("x", 5, "x-urgent", "x-urgent-2")
	put("x", 9, "x-first")
	put("x", 1, "x-low")
	put("y", 0, "y3")
	wantSame(t, "before an urgent request", c.before(admissionOf("y", c, 200)), 1)
	var got []string
	for range 10 {
		got = append(got, runNext(c, queue, time.Millisecond).in.ID)
	}
	var x, y []string
	for _, id := range got {
		if strings.HasPrefix(id, "x") {
			x = append(x, id)
		} else if strings.HasPrefix(id, "y") {
			y = append(y, id)
		}
	}
	wantSame(t, "order of x", strings.Join(x, " "), "x-first x-urgent x-urgent-2 x-low x1 x2")
	wantSame(t, "order of y", strings.Join(y, " "), "y1 y2 y3")
	if strings.HasPrefix(got[1], "x") == strings.HasPrefix(got[2], "x") {
		t.Errorf("the callers take no turns: %v", got)
	}
	wantSame(t, "waiting", c.waiting(), 0)
}

// admissionOf returns an admission of a user that does not wait.
func admissionOf(user string, c *callers, priority uint8) *admission {
	return &admission{caller: c.all[newCallerID(user, "")], request: &inboundRequest{delivery: &delivery{message: amqp.Delivery{Priority: priority}}}}
}

// A call with a priority neither joins a batch nor waits behind one.
func TestUrgentCallOvertakesBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newStartOrder()
		r := startBatching(t, handlers{"m": h.handle})
		calls := r.batchOf(2*DefaultWorkers, "m")
		batches := len(r.broker.MessagesTo(batchQueueName))
		wantSame(t, "batches", batches, 1)
		calls = append(calls, goCall(r.client, t.Context(), "m", []byte("urgent"), WithPriority(1)))
		settle()
		wantSame(t, "batches after the urgent call", len(r.broker.MessagesTo(batchQueueName)), batches)
		wantSame(t, "running", len(h.started), DefaultWorkers)
		h.goOn <- struct{}{}
		settle()
		wantSame(t, "the next to start", h.started[DefaultWorkers], "urgent")
		close(h.goOn)
		for _, done := range calls {
			if got := <-done; got.err != nil {
				t.Error(got.err)
			}
		}
	})
}

// A server sheds a call that would expire behind the others, but not a call that overtakes them.
func TestUrgentCallIsNotShed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		slow := func(context.Context, *Request) ([]byte, error) {
			<-time.After(time.Second)
			return nil, nil
		}
		s := startServer(t, b, handlers{"m": slow}, WithWorkers(1), WithPrefetch(100))
		c := startClient(t, b, WithRetryBudget(0, 0))
		ready(t, s.WaitReady)
		ready(t, c.WaitReady)
		for range 20 { // the server learns how long a request takes
			<-goCall(c, t.Context(), "m", nil)
		}
		var calls []<-chan result
		for range 20 {
			calls = append(calls, goCall(c, within(t, time.Minute), "m", nil))
		}
		settle()
		plain := <-goCall(c, within(t, 5*time.Second), "m", nil)
		wantSame(t, "code without a priority", CodeOf(plain.err), CodeResourceExhausted)
		urgent := <-goCall(c, within(t, 5*time.Second), "m", nil, WithPriority(1))
		wantResponse(t, urgent, "")
		for _, done := range calls {
			<-done
		}
		wantSame(t, "shed", s.Stats().Shed, 1)
	})
}

// The broker orders the requests that wait in the queue.
func TestQueueWithPriorities(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, h := brokertest.New(), newStartOrder()
		queue := WithQueue(Queue{Name: DefaultQueue, MaxPriority: 5})
		s := startServer(t, b, handlers{"m": h.handle}, queue, WithWorkers(1), WithPrefetch(1))
		c := startClient(t, b, queue)
		ready(t, s.WaitReady)
		ready(t, c.WaitReady)
		var calls []<-chan result
		for i, priority := range []uint8{0, 0, 0, 1, 5, 9} {
			calls = append(calls, goCall(c, t.Context(), "m", fmt.Append(nil, i), WithPriority(priority)))
			settle()
		}
		close(h.goOn)
		for _, done := range calls {
			if got := <-done; got.err != nil {
				t.Error(got.err)
			}
		}
		wantSame(t, "order", h.starts(), "0 4 5 3 1 2")
	})
}

func TestMaxPriorityOfQueues(t *testing.T) {
	t.Parallel()
	q := Queue{Name: "q", MaxPriority: 5}
	for name, got := range map[string]Queue{"batch": q.batchQueue(), "retry": q.retryQueue(), "dead": q.deadQueue(), "default": {Name: "q"}} {
		if v, ok := got.arguments()[argMaxPriority]; ok {
			t.Errorf("%s: %v", name, v)
		}
	}
	wantSame(t, "shard", q.shard(2).arguments()[argMaxPriority], any(int64(5)))
	_, err := NewServer(testURL, WithQueue(Queue{Name: "q", Type: QueueQuorum, MaxPriority: 1}))
	wantTexts(t, err, "max priority 1: want 0 for a quorum queue")
	// A queue with priorities takes batches, whoever declared it.
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.With(func(b *brokertest.Broker) {
			if refused := b.Declare(DefaultQueue, true, amqp.Table{argMaxPriority: int64(9)}); refused != nil {
				t.Fatal(refused)
			}
		})
		s := startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto))
		ready(t, s.WaitReady)
		pass(time.Second)
		b.With(func(b *brokertest.Broker) { wantSame(t, "queue of batches", b.Queues[batchQueueName] != nil, true) })
	})
}

// The requests of an ended consumer leave, whatever waits around them, and the rest keep their order.
func TestRequestsOfAnEndedConsumerLeave(t *testing.T) {
	t.Parallel()
	c, queue := newTestCallers(CallerLimits{Fair: true}, 1)
	ended := &consumer{}
	put := func(id string, priority uint8, from *consumer) {
		req := &inboundRequest{
			in:       &incoming{Request: wire.Request{ID: id}},
			delivery: &delivery{message: amqp.Delivery{Priority: priority}, consumer: from},
		}
		_, _, _ = c.admit(req, newCallerID("x", ""), 1, true)
		c.put([]task{req})
	}
	put("running", 0, nil)
	for _, id := range []string{"a", "b", "c"} {
		put(id, 5, nil)
		put(id+" ended", 5, ended)
		put(id+" plain", 0, nil)
		put(id+" plain, ended", 0, ended)
	}
	c.releaseOf(ended)
	wantSame(t, "waiting", c.waiting(), 6)
	wantSame(t, "in the queue of the workers", queue.Len(), 1+6)
	var ids []string
	for range 1 + 6 + 6 {
		ids = append(ids, runNext(c, queue, time.Millisecond).in.ID)
	}
	wantSame(t, "order", strings.Join(ids[7:], ", "), "a, b, c, a plain, b plain, c plain")
	wantSame(t, "callers left", len(c.all), 0)
}

// In a queue with priorities a hostile caller can fill the prefetch. Limits of callers keep room for
// others.
func TestHostilePriority(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		queue := WithQueue(Queue{Name: DefaultQueue, MaxPriority: 5})
		busy := func(context.Context, *Request) ([]byte, error) {
			<-time.After(10 * time.Millisecond)
			return nil, nil
		}
		s := startServer(t, b, handlers{"m": busy}, queue, WithWorkers(1), WithPrefetch(8), WithCallerLimits(CallerLimits{MaxCalls: 4, Fair: true}))
		hostile, victim := startClient(t, b, queue, WithRetryBudget(0, 0)), startClient(t, b, queue, WithUserID(false)) // two callers
		for _, wait := range []func(context.Context) error{s.WaitReady, hostile.WaitReady, victim.WaitReady} {
			ready(t, wait)
		}
		ctx, stop := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for range 50 {
			callers.Go(func() {
				for ctx.Err() == nil {
					_, _ = hostile.Call(ctx, "m", nil, WithPriority(5))
					<-time.After(5 * time.Millisecond)
				}
			})
		}
		pass(time.Second)
		for range 20 {
			wantResponse(t, <-goCall(victim, within(t, 200*time.Millisecond), "m", nil), "")
		}
		stop()
		callers.Wait()
	})
}

// A request that regains a worker has its priority, unless callers take turns.
func TestPriorityOfAReturningRequest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits CallerLimits
		first  bool
	}{"": {CallerLimits{}, true}, "turns": {CallerLimits{Fair: true}, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, err := NewServer(testURL, WithCallerLimits(c.limits))
				if err != nil {
					t.Fatal(err)
				}
				s.waiting.Put(0, &inboundRequest{})
				r := &invocation{lent: true, request: &inboundRequest{delivery: &delivery{message: amqp.Delivery{Priority: 5}}}}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan bool)
				go func() { ended <- s.regainWorker(ctx, r) }()
				settle()
				next, _ := s.waiting.Pop()
				_, isTurn := next.(*turn)
				wantSame(t, "the turn is first", isTurn, c.first)
				cancel()
				wantSame(t, "a worker", <-ended, false)
			})
		})
	}
}

// Parked requests wait with their priorities.
func TestPriorityOfParkedRequests(t *testing.T) {
	t.Parallel()
	s, err := NewServer(testURL)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Handle("m", echo); err != nil {
		t.Fatal(err)
	}
	s.moves.Add(1)
	for id, priority := range []uint8{0, 5} {
		message := amqp.Delivery{AppId: "m", Priority: priority, CorrelationId: fmt.Sprint(id), Headers: amqp.Table{wire.HeaderDeliveries: int64(1)}}
		req := &inboundRequest{
			delivery: &delivery{message: message, consumer: &consumer{server: s, done: make(chan struct{})}, arrived: time.Now()},
			in:       &incoming{},
		}
		wantSame(t, "parked", s.process(t.Context(), req), true)
	}
	s.moves.Done()
	wantSame(t, "waiting", s.waiting.Len(), 2)
	first, _ := s.waiting.Pop()
	req, _ := first.(*inboundRequest)
	wantSame(t, "priority of the first", req.delivery.message.Priority, 5)
}
