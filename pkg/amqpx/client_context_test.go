package amqpx

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// hop is a handler that calls the method "second" with its own context.
type hop func(ctx context.Context, c *Client) ([]byte, error)

func hops() map[string]hop {
	return map[string]hop{
		"Call": func(ctx context.Context, c *Client) ([]byte, error) { return c.Call(ctx, "second", nil) },
		"Go":   func(ctx context.Context, c *Client) ([]byte, error) { return c.Go(ctx, "second", nil).Wait() },
		"Call, detached from the deadline": func(ctx context.Context, c *Client) ([]byte, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			return c.Call(ctx, "second", nil)
		},
	}
}

// startHops starts a caller, a server with the method "first", which makes the hop, and a server
// with the method "second", which runs until its context ends.
func startHops(t *testing.T, h hop) (caller *Client, first, second *watchedHandler) {
	t.Helper()
	b := brokertest.New()
	first, second = newWatchedHandler(), newWatchedHandler()
	inner := startClient(t, b, WithQueue(Queue{Name: "second"}), WithControl(true))
	ready(t, startServer(t, b, handlers{"second": second.run},
		WithQueue(Queue{Name: "second"}), WithControl(true)).WaitReady)
	ready(t, startServer(t, b, handlers{"first": func(ctx context.Context, req *Request) ([]byte, error) {
		first.begun <- string(req.Body)
		body, err := h(ctx, inner)
		first.ended <- err
		return body, err
	}}, WithControl(true)).WaitReady)
	caller = startClient(t, b, WithControl(true))
	ready(t, inner.WaitReady)
	ready(t, caller.WaitReady)
	return caller, first, second
}

func TestCancellationReachesTheSecondHop(t *testing.T) {
	t.Parallel()
	for name, h := range hops() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				caller, first, second := startHops(t, h)
				ctx, cancel := context.WithCancel(within(t, time.Hour))
				done := goCall(caller, ctx, "first", nil)
				<-first.begun
				<-second.begun
				start := time.Now()
				cancel()
				wantIs(t, (<-done).err, context.Canceled)
				wantIs(t, <-first.ended, context.Canceled)
				wantIs(t, <-second.ended, context.Canceled)
				wantSame(t, "took", time.Since(start), 0)
			})
		})
	}
}

func TestDeadlineReachesTheSecondHop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		caller, first, second := startHops(t, hops()["Call"])
		start := time.Now()
		wantIs(t, (<-goCall(caller, within(t, time.Second), "first", nil)).err, context.DeadlineExceeded)
		wantIs(t, <-first.ended, context.DeadlineExceeded)
		wantIs(t, <-second.ended, context.DeadlineExceeded)
		if took := time.Since(start); took > time.Second+10*time.Millisecond {
			t.Errorf("the second hop ended after %v", took)
		}
	})
}

func TestHandlersContextIsOverAfterTheHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var kept context.Context
		r := startRig(t, handlers{"echo": echo, "keep": func(ctx context.Context, _ *Request) ([]byte, error) {
			kept = ctx //nolint:fatcontext // it is used after its end on purpose.
			return nil, nil
		}})
		wantResponse(t, <-goCall(r.client, t.Context(), "keep", nil), "")
		for name, call := range map[string]func() ([]byte, error){
			"Call": func() ([]byte, error) { return r.client.Call(kept, "echo", nil) },
			"Go":   func() ([]byte, error) { return r.client.Go(kept, "echo", nil).Wait() },
		} {
			start := time.Now()
			_, err := call()
			wantIs(t, err, context.Canceled)
			wantSame(t, name+": code", CodeOf(err), CodeCanceled)
			wantSame(t, name+": outcome", OutcomeOf(err), DidNotRun)
			wantSame(t, name+": took", time.Since(start), 0)
		}
	})
}

// A handler's context stays usable after a call made with Go has settled.
func TestFutureLeavesTheCallersContextAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, startServer(t, b, handlers{"echo": echo, "m": func(ctx context.Context, _ *Request) ([]byte, error) {
			if _, err := c.Go(ctx, "echo", nil).Wait(); err != nil {
				return nil, err
			}
			return []byte("over"), ctx.Err()
		}}).WaitReady)
		wantResponse(t, <-goCall(c, within(t, time.Minute), "m", nil), "over")
	})
}

func TestMiddlewareMayDetachTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"echo": echo, "hangs": pastDeadline}).WaitReady)
		c := startClient(t, b, WithMiddleware(func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				return next(context.WithoutCancel(ctx), req)
			}
		}))
		ready(t, c.WaitReady)
		wantResponse(t, <-goCall(c, t.Context(), "echo", []byte("x")), "x")
		got := <-goCall(c, t.Context(), "hangs", nil)
		wantIs(t, got.err, context.DeadlineExceeded)
		wantSame(t, "took", got.took, DefaultTimeout)
	})
}

// Middleware may send a request in a goroutine and return before the response. The remaining
// call ends with the context of the outer call.
func TestCallLeftOverByMiddlewareEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"hangs": pastDeadline}).WaitReady)
		var leftOver atomic.Pointer[error]
		c := startClient(t, b, WithMiddleware(func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				go func() { // ends with the call's context
					_, err := next(ctx, req)
					leftOver.Store(&err)
				}()
				<-time.After(time.Second) // ignores the context
				return []byte("enough"), nil
			}
		}))
		ready(t, c.WaitReady)
		wantResponse(t, <-goCall(c, t.Context(), "hangs", nil), "enough")
		settle()
		if err := leftOver.Load(); err == nil {
			t.Error("the call that was left over goes on")
		} else {
			wantIs(t, *err, context.Canceled)
		}
	})
}
