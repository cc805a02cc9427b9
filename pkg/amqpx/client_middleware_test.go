package amqpx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// passOn is middleware that changes nothing.
func passOn(next Handler) Handler { return next }

// waysToCall returns the ways to make a call.
func waysToCall() map[string]func(c *Client, ctx context.Context) error {
	return map[string]func(c *Client, ctx context.Context) error{
		"Call": func(c *Client, ctx context.Context) error { _, err := c.Call(ctx, "m", nil); return err },
		"Go":   func(c *Client, ctx context.Context) error { _, err := c.Go(ctx, "m", nil).Wait(); return err },
	}
}

// With middleware that passes the context on, a call without a deadline ends by its context, at
// the client's default deadline and with its client, as without middleware.
func TestEndOfACallWithMiddleware(t *testing.T) {
	t.Parallel()
	const timeout, early = time.Minute, time.Second
	for kind, call := range waysToCall() {
		for name, c := range map[string]struct {
			end  func(c *Client, cancel context.CancelFunc) // after early; nil: nothing ends the call early
			took time.Duration
			want error
		}{
			"deadline": {nil, timeout, context.DeadlineExceeded},
			"context":  {func(_ *Client, cancel context.CancelFunc) { cancel() }, early, context.Canceled},
			"close":    {func(c *Client, _ context.CancelFunc) { _ = c.Close(context.Background()) }, early, ErrClosed},
		} {
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := brokertest.New()
					ready(t, startServer(t, b, handlers{"m": untilDone}, WithControl(true)).WaitReady)
					client := startClient(t, b, WithControl(true), WithTimeout(timeout), WithMiddleware(passOn))
					ready(t, client.WaitReady)
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					if c.end != nil {
						time.AfterFunc(early, func() { c.end(client, cancel) })
					}
					start := time.Now()
					wantIs(t, call(client, ctx), c.want)
					wantSame(t, "took", time.Since(start), c.took)
				})
			})
		}
	}
}

// The deadline of a call counts from the call, not from the moment when middleware lets it go,
// even if the timer of the other calls runs longer.
func TestMiddlewareHoldsACall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const timeout, held = 10 * time.Second, 4 * time.Second
		hold := make(chan struct{}, 1)
		holding := func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				if req.Method == "slow" {
					<-hold
				}
				return next(ctx, req)
			}
		}
		released := make(chan struct{})
		deaf := func(context.Context, *Request) ([]byte, error) { <-released; return nil, nil } // no response tells of the deadline
		r := startRig(t, handlers{"quick": echo, "slow": deaf})
		client := startClient(t, r.broker, WithTimeout(timeout), WithMiddleware(holding))
		ready(t, client.WaitReady)
		start := time.Now()
		slow := goCall(client, context.Background(), "slow", nil)
		pass(held)
		wantResponse(t, <-goCall(client, context.Background(), "quick", []byte("x")), "x") // starts the timer
		hold <- struct{}{}
		wantIs(t, (<-slow).err, context.DeadlineExceeded)
		wantSame(t, "took", time.Since(start), timeout)
		close(released)
	})
}

// A round trip that middleware has started beside its call ends with the call.
func TestRoundTripsEndWithTheirCall(t *testing.T) {
	t.Parallel()
	for name, trips := range map[string]int{"one": 1, "two": 2} {
		for kind, call := range waysToCall() {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					errReturned := errors.New("returned")
					h := newWatchedHandler()
					ended := make(chan error, trips)
					ahead := func(next Handler) Handler {
						return func(ctx context.Context, req *Request) ([]byte, error) {
							for range trips {
								copied := *req
								copied.CorrelationID = newID()
								go func() { // ends with the call
									_, err := next(ctx, &copied)
									ended <- err
								}()
							}
							for range trips {
								<-h.begun
							}
							return nil, errReturned
						}
					}
					b := brokertest.New()
					ready(t, startServer(t, b, handlers{"m": h.run}, WithControl(true)).WaitReady)
					client := startClient(t, b, WithControl(true), WithTimeout(time.Hour), WithMiddleware(ahead))
					ready(t, client.WaitReady)
					start := time.Now()
					wantIs(t, call(client, context.Background()), errReturned)
					for range trips {
						wantIs(t, <-ended, context.Canceled)
						wantIs(t, <-h.ended, context.Canceled)
					}
					wantSame(t, "took", time.Since(start), 0)
				})
			})
		}
	}
}

// A call of another client with the context of a call does not last longer than this context.
func TestCallOfAnotherClientInMiddleware(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const timeout = time.Second
		r := startRig(t, handlers{"m": untilDone, "token": untilDone})
		other := startClient(t, r.broker, WithTimeout(time.Hour), WithMiddleware(passOn))
		asking := func(Handler) Handler {
			return func(ctx context.Context, _ *Request) ([]byte, error) { return other.Call(ctx, "token", nil) }
		}
		client := startClient(t, r.broker, WithTimeout(timeout), WithMiddleware(asking))
		ready(t, other.WaitReady)
		start := time.Now()
		wantIs(t, (<-goCall(client, context.Background(), "m", nil)).err, context.DeadlineExceeded)
		wantSame(t, "took", time.Since(start), timeout)
	})
}

// A request that is not traced does not pass the tracing middleware, unless it has headers or the
// decision says so; it passes all other middleware. The server gets the decision, alone and in
// batches.
func TestDecisionBeforeTheTracing(t *testing.T) {
	t.Parallel()
	header := func() []CallOption { return []CallOption{WithHeader(map[string]any{"a": "b"})} }
	info := func() []CallOption { return []CallOption{WithCallInfo(new(CallInfo))} }
	none := func() []CallOption { return nil }
	for kind, call := range map[string]func(*Client, context.Context, ...CallOption) error{
		"Call": func(c *Client, ctx context.Context, opts ...CallOption) error {
			_, err := c.Call(ctx, "m", nil, opts...)
			return err
		},
		"Go": func(c *Client, ctx context.Context, opts ...CallOption) error {
			_, err := c.Go(ctx, "m", nil, opts...).Wait()
			return err
		},
	} {
		for name, c := range map[string]struct {
			unsampled, skip bool
			opts            func() []CallOption
			passes          int64
		}{
			"traced":                {false, false, none, 1},
			"traced, skip":          {false, true, none, 1},
			"not traced":            {true, false, none, 1},
			"not traced, skip":      {true, true, none, 0},
			"not traced, a header":  {true, true, header, 1},
			"not traced, call info": {true, true, info, 0},
		} {
			for _, others := range [][]Middleware{nil, {passOn}} {
				t.Run(fmt.Sprint(kind, " ", name, " ", len(others)), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						var passed, passedOthers atomic.Int64
						var got atomic.Bool
						counting := func(n *atomic.Int64) Middleware {
							return func(next Handler) Handler { return counted(n, next) }
						}
						others := slices.Clone(others)
						if others != nil {
							others = append(others, counting(&passedOthers))
						}
						r := startRig(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) { got.Store(req.Unsampled); return nil, nil }})
						client := startClient(t, r.broker, WithMiddleware(others...),
							WithTracing(counting(&passed), func(context.Context) (bool, bool) { return c.unsampled, c.skip }))
						ready(t, client.WaitReady)
						wantIs(t, call(client, context.Background(), c.opts()...), nil)
						wantSame(t, "unsampled", got.Load(), c.unsampled)
						wantSame(t, "passes of the tracing", passed.Load(), c.passes)
						wantSame(t, "passes of other middleware", passedOthers.Load() == 1, others != nil)
					})
				})
			}
		}
	}
}

func TestWithTracingOfNothing(t *testing.T) {
	t.Parallel()
	_, err := NewClient(testURL, WithTracing(nil, nil))
	if err == nil || !strings.Contains(err.Error(), "WithTracing") {
		t.Errorf("error %v", err)
	}
	c, err := NewClient(testURL, WithTracing(passOn, nil))
	if err != nil {
		t.Fatal(err)
	}
	wantIs(t, c.Close(context.Background()), nil)
}
