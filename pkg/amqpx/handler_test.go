package amqpx

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// tag returns middleware to append its name to order at each request.
func tag(order *[]string, name string) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			*order = append(*order, name)
			return next(ctx, req)
		}
	}
}

// around returns middleware that adds its name before the request body and after the response.
func around(name string) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			inner := *req
			inner.Body = append([]byte(name), req.Body...)
			response, err := next(ctx, &inner)
			return append([]byte(name), response...), err
		}
	}
}

// observed returns a logger and its recorded logs.
func observed(level zapcore.Level) (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(level)
	return zap.New(core), logs
}

func TestFirstMiddlewareIsOutermostOnBothSides(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		seen := make(chan string, 1)
		s := startServer(t, b, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			seen <- string(req.Body)
			return []byte("|"), nil
		}}, WithMiddleware(around("3"), around("4")))
		ready(t, s.WaitReady)
		c := startClient(t, b, WithMiddleware(around("1")), WithMiddleware(around("2")))
		response, err := c.Call(t.Context(), "m", []byte("-"))
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "request", <-seen, "4321-")
		wantSame(t, "answer", string(response), "1234|")
	})
}

func TestMiddlewareIsBuiltOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		built := 0
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"m": echo}).WaitReady)
		c := startClient(t, b, WithMiddleware(func(next Handler) Handler { built++; return next }))
		for range 3 {
			if _, err := c.Call(t.Context(), "m", nil); err != nil {
				t.Fatal(err)
			}
		}
		wantSame(t, "built", built, 1)
	})
}

func TestClientMiddlewareMaySendARequestTwiceAtOnce(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]CallOption{"once": nil, "idempotent": {Idempotent()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testRequestSentTwiceAtOnce(t, opts)
		})
	}
}

func testRequestSentTwiceAtOnce(t *testing.T, opts []CallOption) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		twice := func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				first := make(chan []byte)
				go func() {
					response, _ := next(ctx, req)
					first <- response
				}()
				response, err := next(ctx, req)
				return append(response, <-first...), err
			}
		}
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"m": echo}).WaitReady)
		c := startClient(t, b, WithMiddleware(twice))
		for range 20 {
			response, err := c.Call(t.Context(), "m", []byte("x"), opts...)
			wantResponse(t, result{response: response, err: err}, "xx")
		}
	})
}

func TestRecoverLogsThePanicAndHidesItsText(t *testing.T) {
	t.Parallel()
	log, logs := observed(zap.DebugLevel)
	h := Recover(log)(func(context.Context, *Request) ([]byte, error) { panic("boom") })
	response, err := h(t.Context(), &Request{Method: "m", CorrelationID: "id"})
	if response != nil || err == nil {
		t.Fatalf("answer %q, error %v", response, err)
	}
	entry := logs.FilterMessage("handler panicked").All()[0]
	wantSame(t, "level", entry.Level, zap.ErrorLevel)
	fields := entry.ContextMap()
	wantSame(t, "method", fields["method"], any("m"))
	wantSame(t, "correlation_id", fields["correlation_id"], any("id"))
	if stack, _ := fields["stack"].(string); !strings.Contains(stack, "TestRecoverLogs") {
		t.Errorf("the stack does not show who panicked: %v", fields["stack"])
	}
}

func TestTimeoutOnlyShortens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		_, err := Timeout(time.Second)(untilDone)(t.Context(), &Request{})
		wantIs(t, err, context.DeadlineExceeded)
		wantSame(t, "took", time.Since(begun), time.Second)

		begun = time.Now()
		_, err = Timeout(time.Hour)(untilDone)(within(t, time.Second), &Request{})
		wantIs(t, err, context.DeadlineExceeded)
		wantSame(t, "took", time.Since(begun), time.Second)
	})
}

func TestAccessLog(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		err   error
		level zapcore.Level
		code  string
	}{
		{"success at debug", nil, zap.DebugLevel, ""},
		{"coded failure at info", Errorf(CodeAborted, "x"), zap.InfoLevel, "aborted"},
		{"other failure at info", errors.New("x"), zap.InfoLevel, "unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			log, logs := observed(zap.DebugLevel)
			h := AccessLog(log)(func(context.Context, *Request) ([]byte, error) { return []byte("four"), c.err })
			if _, err := h(t.Context(), &Request{Method: "m", Body: []byte("abc")}); !errors.Is(err, c.err) {
				t.Errorf("error %v", err)
			}
			entry := logs.All()[0]
			fields := entry.ContextMap()
			wantSame(t, "level", entry.Level, c.level)
			wantSame(t, "code", fields["code"], any(c.code))
			wantSame(t, "request_bytes", fields["request_bytes"], any(int64(3)))
			wantSame(t, "response_bytes", fields["response_bytes"], any(int64(4)))
		})
	}
}

// The time that AccessLog logs begins with the request's middleware if the context is still the
// request's own, so that the clock is not read again.
func TestAccessLogOfAServerTellsTheTime(t *testing.T) {
	t.Parallel()
	late := func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			xsync.Sleep(ctx, time.Second)
			return next(ctx, req)
		}
	}
	other := func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			return next(context.WithValue(ctx, tenantKey{}, ""), req)
		}
	}
	for name, c := range map[string]struct {
		outer []Middleware
		want  time.Duration
	}{
		"outermost":          {nil, 2 * time.Second},
		"after a pause":      {[]Middleware{late}, 3 * time.Second},
		"with a context":     {[]Middleware{other}, 2 * time.Second},
		"a pause, and so on": {[]Middleware{late, other}, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, logs := observed(zap.DebugLevel)
				b, _ := serve(t, handlers{"m": slow}, WithMiddleware(append(c.outer, AccessLog(log))...))
				putRequest(b, request("m"))
				pass(time.Minute)
				calls := logs.FilterMessage("call").All()
				if len(calls) != 1 {
					t.Fatalf("%d lines, want 1", len(calls))
				}
				wantSame(t, "took", calls[0].ContextMap()["took"], any(c.want))
			})
		})
	}
}

// A handler that makes a call with its own context logs the time of the call, and not the time
// since the start of the handler.
func TestAccessLogOfACallInAHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.DebugLevel)
		b := brokertest.New()
		inner := startClient(t, b, WithMiddleware(AccessLog(log)))
		relay := func(ctx context.Context, _ *Request) ([]byte, error) {
			xsync.Sleep(ctx, time.Second)
			return inner.Call(ctx, "slow", nil)
		}
		ready(t, startServer(t, b, handlers{"relay": relay, "slow": slow}).WaitReady)
		c := startClient(t, b)
		if _, err := c.Call(within(t, time.Minute), "relay", nil); err != nil {
			t.Fatal(err)
		}
		calls := logs.FilterMessage("call").All()
		if len(calls) != 1 {
			t.Fatalf("%d lines, want 1", len(calls))
		}
		wantSame(t, "took", calls[0].ContextMap()["took"], any(2*time.Second))
	})
}

// againAfter returns middleware to end the first try after the duration d and then send the
// same request again.
func againAfter(d time.Duration, bounded func(context.Context, time.Duration) (context.Context, context.CancelFunc)) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			first, cancel := bounded(ctx, d)
			defer cancel()
			if response, err := next(first, req); first.Err() == nil {
				return response, err
			}
			return next(ctx, req)
		}
	}
}

func canceledAfter(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	time.AfterFunc(d, cancel)
	return ctx, cancel
}

// A late response to the first try does not answer the second.
func TestMiddlewareThatTriesAgainGetsItsOwnResponse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		expired := func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
			send(errorTo(d, refusal(CodeDeadlineExceeded, "expired in the server")))
		}
		second := make(chan string, 1)
		result := func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
			second <- d.MessageId
			send(resultTo(d))
		}
		startScript(t, b, each(after(2*time.Second, expired), after(5*time.Second, result)))
		c := startClient(t, b, WithMiddleware(againAfter(time.Second, context.WithTimeout)))
		ready(t, c.WaitReady)
		got := <-goCall(c, within(t, time.Minute), "m", []byte("x"))
		wantSame(t, "error", got.err, nil)
		wantSame(t, "late responses", c.Stats().Late, 1)
		wantSame(t, "key of the second", <-second, b.MessagesTo(DefaultQueue)[0].Msg.CorrelationId)
	})
}

// A canceled try does not keep a server from running the next try of the same request.
func TestMiddlewareThatTriesAgainAfterACancelledTry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		release := make(chan struct{})
		busy := func(ctx context.Context, req *Request) ([]byte, error) { <-release; return echo(ctx, req) }
		start := func() {
			s := startServer(t, b, handlers{"m": echo, "busy": busy}, WithControl(true), WithWorkers(1), WithPrefetch(2))
			ready(t, s.WaitReady)
		}
		start()
		c := startClient(t, b, WithControl(true), WithMiddleware(againAfter(time.Second, canceledAfter)))
		ready(t, c.WaitReady)
		other := startClient(t, b)
		first := goCall(other, within(t, time.Hour), "busy", nil)
		settle()
		call := goCall(c, within(t, time.Minute), "m", []byte("x"))
		settle() // the first server has the request, and no room for another
		start()
		pass(2 * time.Second)
		wantResponse(t, <-call, "x")
		close(release)
		<-first
	})
}
