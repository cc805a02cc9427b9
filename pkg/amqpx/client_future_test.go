package amqpx

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// resultOf waits for a future and returns its result.
func resultOf(f *Future) result {
	begun := time.Now()
	response, err := f.Wait()
	return result{response, err, time.Since(begun)}
}

func TestGoSettlesLikeCall(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		method  string
		timeout time.Duration // 0: the client's default
		arrange func(*rig)
		during  func(r *rig, cancel context.CancelFunc)
		opts    []CallOption

		response string
		code     Code
		outcome  Outcome
		takes    time.Duration
	}{
		{name: "answer", method: "echo", response: "body"},
		{name: "coded error", method: "fails", code: CodeNotFound, outcome: Ran},
		{name: "unknown method", method: "nobody knows", code: CodeUnimplemented, outcome: DidNotRun},
		{name: "the client's deadline", method: "hangs", code: CodeDeadlineExceeded, outcome: MayHaveRun, takes: DefaultTimeout},
		{name: "its context's deadline", method: "hangs", timeout: 3 * time.Second, code: CodeDeadlineExceeded, outcome: MayHaveRun, takes: 3 * time.Second},
		{
			name: "cancelled", method: "hangs", code: CodeCanceled, outcome: MayHaveRun,
			during: func(_ *rig, cancel context.CancelFunc) { cancel() },
		},
		{
			name: "closed", method: "hangs", code: CodeUnavailable, outcome: MayHaveRun,
			during: func(r *rig, _ context.CancelFunc) { _ = r.client.Close(within(r.t, time.Minute)) },
		},
		{
			name: "link lost", method: "echo", code: CodeUnavailable, outcome: MayHaveRun,
			arrange: func(r *rig) { r.broker.Fail(DefaultQueue, brokertest.FaultLostUnconfirmed) },
		},
		{
			name: "link lost, idempotent", method: "echo", response: "body", opts: []CallOption{Idempotent()},
			arrange: func(r *rig) { r.broker.Fail(DefaultQueue, brokertest.FaultLostUnconfirmed) },
		},
		{
			name: "nacked once, idempotent", method: "echo", response: "body", opts: []CallOption{Idempotent()},
			arrange: func(r *rig) { r.broker.Fail(DefaultQueue, brokertest.FaultNack) },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, handlers{
					"echo":  echo,
					"hangs": pastDeadline,
					"fails": func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeNotFound, "no") },
				})
				if c.arrange != nil {
					c.arrange(r)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.timeout > 0 {
					ctx = within(t, c.timeout)
				}
				f := r.client.Go(ctx, c.method, []byte("body"), c.opts...)
				if c.during != nil {
					settle()
					c.during(r, cancel)
				}
				got := resultOf(f)
				if got.took < c.takes || got.took >= c.takes+time.Second {
					t.Errorf("took %v, want about %v", got.took, c.takes)
				}
				if c.code == "" {
					wantResponse(t, got, c.response)
				} else {
					wantSame(t, "code", CodeOf(got.err), c.code)
					wantSame(t, "outcome", OutcomeOf(got.err), c.outcome)
				}
				settle()
				wantSame(t, "in flight", r.client.Stats().InFlight, 0)
			})
		})
	}
}

func TestCallsMadeWithGoTakeNoGoroutines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const calls, slack = 2000, 500 // other tests run in parallel
		start := make(chan struct{})
		r := startRig(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			<-start
			return req.Body, nil
		}})
		before := runtime.NumGoroutine()
		var all []*Future
		for i := range calls {
			all = append(all, r.client.Go(t.Context(), "m", fmt.Append(nil, i)))
		}
		settle()
		if more := runtime.NumGoroutine() - before; more > slack {
			t.Errorf("%d goroutines for %d calls", more, calls)
		}
		wantSame(t, "in flight", r.client.Stats().InFlight, calls)
		close(start)
		for i, f := range all {
			wantResponse(t, resultOf(f), fmt.Sprint(i))
		}
	})
}

func TestGoOwnsACopyOfTheBody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		body := []byte("first")
		f := c.Go(t.Context(), "m", body, WaitForServer())
		copy(body, "other")
		ready(t, startServer(t, b, handlers{"m": echo}).WaitReady)
		wantResponse(t, resultOf(f), "first")
	})
}

func TestGoWithMiddleware(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var seen atomic.Int64
		count := func(next Handler) Handler { return counted(&seen, next) }
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"m": echo}).WaitReady)
		c := startClient(t, b, WithMiddleware(count))
		wantResponse(t, resultOf(c.Go(t.Context(), "m", []byte("x"))), "x")
		wantSame(t, "calls that it saw", seen.Load(), 1)
		_ = c.Close(t.Context())
		wantIs(t, resultOf(c.Go(t.Context(), "m", nil)).err, ErrClosed)
	})
}

func TestFutureIsDoneForEverybody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": slow})
		var info CallInfo
		f := r.client.Go(t.Context(), "m", []byte("x"), WithCallInfo(&info))
		waiting := make(chan result, 2)
		for range cap(waiting) {
			go func() { waiting <- resultOf(f) }()
		}
		select {
		case <-f.Done():
			t.Error("done before it was answered")
		default:
		}
		wantResponse(t, <-waiting, "x")
		wantResponse(t, <-waiting, "x")
		<-f.Done()
		wantResponse(t, resultOf(f), "x")
		wantSame(t, "attempts", info.Attempts, 1)
	})
}

// atDone is a context. Its first call of Done runs do.
type atDone struct {
	context.Context //nolint:containedctx // it is one.

	once sync.Once
	do   func()
}

func (a *atDone) Done() <-chan struct{} {
	a.once.Do(a.do)
	return a.Context.Done()
}

// Close during a call of Go settles the registered call.
func TestCloseWhileAFutureIsMade(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		startScript(t, b, silent)
		c := startClient(t, b)
		ready(t, c.WaitReady)
		pending := make(chan int, 1)
		ctx := &atDone{Context: within(t, time.Hour), do: func() { // the call is registered but not sent
			go func() {
				_ = c.Close(context.WithoutCancel(t.Context()))
				pending <- c.pending.len()
			}()
			settle()
		}}
		f := c.Go(ctx, "m", nil)
		wantSame(t, "pending after Close", <-pending, 0)
		_, err := f.Wait()
		wantIs(t, err, ErrClosed)
	})
}
