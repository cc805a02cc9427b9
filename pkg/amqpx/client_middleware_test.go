package amqpx

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// passOn is middleware that changes nothing.
func passOn(next Handler) Handler { return next }

// callers are the ways to make a call.
func callers() map[string]func(c *Client, ctx context.Context) error { //nolint:revive // the client is the subject.
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
	for kind, call := range callers() {
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
		for kind, call := range callers() {
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
