package amqpx

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The usual retry middleware repeats a failed call by calling next again.
func TestRetryMiddleware(t *testing.T) {
	t.Parallel()
	retry := func(attempts int, again ...Code) Middleware {
		return func(next Handler) Handler {
			return func(ctx context.Context, req *Request) (response []byte, err error) {
				for range attempts {
					try, cancel := context.WithTimeout(ctx, 10*time.Second)
					response, err = next(try, req)
					cancel()
					if err == nil || CodeOf(err) != again[0] {
						return response, err
					}
				}
				return response, err
			}
		}
	}
	for name, opts := range map[string][]CallOption{"plain": nil, "idempotent": {Idempotent()}} {
		for _, c := range []struct {
			name  string
			again Code
			h     func(run int64) ([]byte, error)
			runs  int64
			code  Code
		}{
			{"transient", CodeUnavailable, func(run int64) ([]byte, error) {
				if run < 5 {
					return nil, Errorf(CodeUnavailable, "not yet")
				}
				return []byte("done"), nil
			}, 5, ""},
			{"for good", CodeUnavailable, func(int64) ([]byte, error) { return nil, Errorf(CodeUnavailable, "never") }, 5, CodeUnavailable},
			{"after a final result", CodeNotFound, func(run int64) ([]byte, error) {
				if run < 3 {
					return nil, Errorf(CodeNotFound, "not there yet")
				}
				return []byte("done"), nil
			}, 3, ""},
		} {
			t.Run(c.name+", "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var runs atomic.Int64
					b, _ := serve(t, handlers{"m": func(context.Context, *Request) ([]byte, error) { return c.h(runs.Add(1)) }})
					client := startClient(t, b, WithMiddleware(retry(5, c.again)))
					got := <-goCall(client, within(t, time.Minute), "m", nil, opts...)
					wantSame(t, "code", CodeOf(got.err), c.code)
					wantSame(t, "executions", runs.Load(), c.runs)
				})
			})
		}
	}
	t.Run("after no response", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var runs atomic.Int64
			b, s := serve(t, handlers{"m": func(context.Context, *Request) ([]byte, error) {
				runs.Add(1)
				pass(15 * time.Second) // ignores the context
				return []byte("done"), nil
			}})
			client := startClient(t, b, WithMiddleware(retry(5, CodeDeadlineExceeded)))
			got := <-goCall(client, within(t, time.Minute), "m", nil)
			wantResponse(t, got, "done")
			wantSame(t, "executions", runs.Load(), 1)
			wantSame(t, "replayed", s.Stats().Replayed, 1)
		})
	})
}

// Requests with different bodies, sent by middleware for a single call, are separate calls.
func TestMiddlewareThatSendsAnotherBody(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]CallOption{"plain": nil, "idempotent": {Idempotent()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, _ := serve(t, handlers{"m": counted(&runs, echo)})
				pages := func(next Handler) Handler {
					return func(ctx context.Context, req *Request) (all []byte, err error) {
						for _, page := range []string{"1", "2", "3"} {
							part := *req
							part.Body = []byte(page)
							response, err := next(ctx, &part)
							if err != nil {
								return nil, err
							}
							all = append(all, response...)
						}
						return all, nil
					}
				}
				client := startClient(t, b, WithMiddleware(pages))
				wantResponse(t, <-goCall(client, within(t, time.Minute), "m", nil, opts...), "123")
				wantSame(t, "executions", runs.Load(), 3)
			})
		})
	}
}
