package amqpx

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// A call that another goroutine may still use is not used again.
func TestCallIsReusedOnlyByItsLastUser(t *testing.T) {
	t.Parallel()
	confirmed := func(k *call) {
		k.first.call = k
		k.first.stage.Store(uint32(stageConfirmed))
		k.current.Store(&k.first)
	}
	respond := func(p *pending, k *call) { p.matchOne(responseDelivery(k.req.text(), false)) }
	fail := func(p *pending, k *call) {
		p.matchAll([]wire.Response{{ID: []byte(k.req.text()), Failure: &wire.Failure{Code: "aborted"}}}, nil, func(int) {})
	}
	for name, c := range map[string]struct {
		run    func(p *pending, k *call)
		reused bool
	}{
		"answered": {func(p *pending, k *call) { confirmed(k); respond(p, k) }, true},
		"one way, confirmed": {func(p *pending, k *call) {
			k.req.traits |= traitOneWay
			confirmed(k)
			k.notify(eventConfirmed)
			p.remove(k)
		}, true},
		"one way, between the event and the confirm": {func(p *pending, k *call) {
			k.req.traits |= traitOneWay
			k.first.call = k
			k.first.stage.Store(uint32(stageWritten))
			k.current.Store(&k.first)
			k.notify(eventConfirmed)
			p.remove(k)
		}, false},
		"one way, in a snapshot of attempts": {func(p *pending, k *call) {
			k.req.traits |= traitOneWay
			confirmed(k)
			p.attempts()
			k.notify(eventConfirmed)
			p.remove(k)
		}, false},
		"answered, token read": {func(p *pending, k *call) {
			confirmed(k)
			respond(p, k)
			<-k.wake
			k.woken = true
		}, true},
		"token not put yet":           {func(p *pending, k *call) { confirmed(k); respond(p, k); <-k.wake }, false},
		"no response":                 {func(_ *pending, k *call) { confirmed(k); k.wakeUp() }, false},
		"error":                       {func(p *pending, k *call) { confirmed(k); fail(p, k) }, false},
		"unconfirmed":                 {func(p *pending, k *call) { k.current.Store(&k.first); respond(p, k) }, false},
		"second attempt":              {func(p *pending, k *call) { confirmed(k); k.current.Store(&attempt{call: k}); respond(p, k) }, false},
		"in a snapshot of attempts":   {func(p *pending, k *call) { confirmed(k); p.attempts(); respond(p, k) }, false},
		"in the snapshot of Close":    {func(p *pending, k *call) { confirmed(k); p.close(); respond(p, k) }, false},
		"its deadline has passed":     {func(p *pending, k *call) { confirmed(k); k.deadline = time.Time{}; p.expire(); respond(p, k) }, false},
		"its context has ended":       {func(p *pending, k *call) { confirmed(k); p.contextEnded(k.watcher); respond(p, k) }, false},
		"late response to a snapshot": {func(p *pending, k *call) { confirmed(k); respond(p, k); p.attempts() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPending(DefaultMaxInFlight, DefaultMaxInFlightBytes)
			r := testRoute()
			k := r.makeCall(nil)
			k.req.body = make([]byte, 10)
			k.req.setID("id")
			k.deadline = time.Now().Add(time.Hour)
			if _, err := p.add(k, true); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p.watch(ctx, k)
			p.deadlines.timer.Stop()
			c.run(p, k)
			k.release()
			wantSame(t, "reused", k.route == nil, c.reused)
			if c.reused && (k.wake == nil || len(k.wake) > 0 || cap(k.req.body) == 0) {
				t.Errorf("a call to be used again: %d tokens, body of %d bytes", len(k.wake), cap(k.req.body))
			}
		})
	}
}

func TestLargeBodyIsNotKept(t *testing.T) {
	t.Parallel()
	k := testRoute().makeCall(nil)
	k.settled, k.woken, k.req.body = true, true, make([]byte, maxReusedBody+1)
	k.first.stage.Store(uint32(stageConfirmed))
	k.current.Store(&k.first)
	k.release()
	wantSame(t, "kept bytes", cap(k.req.body), 0)
}

// endedContexts gives many callers the same context, and replaces it when it has ended.
type endedContexts struct {
	parent  context.Context //nolint:containedctx // of the test.
	mu      sync.Mutex
	current context.Context //nolint:containedctx // of the callers.
	cancel  context.CancelFunc
}

func (s *endedContexts) get() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		s.current, s.cancel = context.WithCancel(s.parent)
	}
	return s.current
}

func (s *endedContexts) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		s.cancel()
		s.current = nil
	}
}

// Callers make calls with deadlines, ended contexts and lost connections. Every result belongs
// to its call, and no call that did not run has run. The bodies of the callers change after
// each call.
func TestReusedCallsUnderFaults(t *testing.T) {
	t.Parallel()
	const callers, each, kickEvery, endEvery = 64, 150, 700, 300
	var ran sync.Map
	b := brokertest.New()
	record := func(_ context.Context, req *Request) ([]byte, error) {
		ran.Store(string(req.Body), true)
		return req.Body, nil
	}
	s := startServer(t, b, handlers{"m": record}, WithBatch(BatchAuto), WithBackoff(time.Millisecond, 5*time.Millisecond))
	c := startClient(t, b, WithBatch(BatchAuto), WithBackoff(time.Millisecond, 5*time.Millisecond), WithTimeout(20*time.Second))
	if err := s.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	var (
		made      atomic.Int64
		results   atomic.Int64
		all       sync.WaitGroup
		shared    = endedContexts{parent: t.Context()}
		didNotRun sync.Map
	)
	one := func(caller, i int) {
		body := fmt.Appendf(nil, "%d.%d.%s", caller, i, bytes.Repeat([]byte("x"), rand.IntN(300)))
		sent := string(body)
		ctx, cancel := shared.get(), context.CancelFunc(func() {})
		switch rand.IntN(12) {
		case 0:
			ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(2000))*time.Microsecond)
		case 1:
			ctx, cancel = context.WithCancel(ctx)
			go cancel() // at any moment of the call
		case 2:
			ctx, cancel = context.WithTimeout(ctx, time.Minute)
		}
		var opts []CallOption
		if rand.IntN(2) == 0 {
			opts = append(opts, Idempotent())
		}
		call := c.Call
		if rand.IntN(8) == 0 {
			call = func(ctx context.Context, method string, body []byte, opts ...CallOption) ([]byte, error) {
				return c.Go(ctx, method, body, opts...).Wait()
			}
		}
		response, err := call(ctx, "m", body, opts...)
		cancel()
		for j := range body {
			body[j] = '!'
		}
		switch {
		case err == nil && string(response) != sent:
			t.Errorf("response %.40q to %.40q", response, sent)
		case err == nil:
			results.Add(1)
		case OutcomeOf(err) == DidNotRun:
			didNotRun.Store(sent, err)
		}
		n := made.Add(1)
		if n%kickEvery == 0 {
			b.Kick(nil)
		}
		if n%endEvery == 0 {
			shared.end()
		}
	}
	for caller := range callers {
		all.Go(func() {
			for i := range each {
				one(caller, i)
			}
		})
	}
	all.Wait()
	didNotRun.Range(func(body, err any) bool {
		if _, found := ran.Load(body); found {
			t.Errorf("%.40q ran: %v", body, err)
		}
		return true
	})
	if n := results.Load(); n < callers*each/2 {
		t.Errorf("%d results of %d calls", n, callers*each)
	}
	wantSame(t, "in flight", c.Stats().InFlight, 0)
}
