package amqpx

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// startWithMiddleware starts a client, and a server with middleware.
func startWithMiddleware(t *testing.T, m Middleware, h Handler) *rig {
	t.Helper()
	r := &rig{t: t, broker: brokertest.New()}
	r.server = startServer(t, r.broker, handlers{"m": h}, WithMiddleware(m))
	r.client = startClient(t, r.broker)
	ready(t, r.server.WaitReady)
	ready(t, r.client.WaitReady)
	return r
}

// refuseFirst is middleware that refuses the first n calls.
func refuseFirst(n int64, e *Error) Middleware {
	var calls atomic.Int64
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			if calls.Add(1) <= n {
				return nil, fmt.Errorf("around: %w", e)
			}
			return next(ctx, req)
		}
	}
}

// A refusal of middleware did not run, and the client tries again after the hint.
func TestRefusalOfMiddlewareIsRetried(t *testing.T) {
	t.Parallel()
	for _, code := range []Code{CodeResourceExhausted, CodeUnavailable} {
		t.Run(string(code), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				r := startWithMiddleware(t, refuseFirst(2, Refuse(code, "limit").WithRetryAfter(3*time.Second)), counted(&runs, echo))
				got := <-goCall(r.client, within(t, time.Minute), "m", []byte("x"))
				wantResponse(t, got, "x")
				if got.took < 6*time.Second || got.took > 6*time.Second+3*resendMin {
					t.Errorf("took %v, want the two hints and a little", got.took)
				}
				wantSame(t, "runs", runs.Load(), 1)
				wantSame(t, "refused", r.server.Stats().Refused, 2)
				wantSame(t, "retried", r.client.Stats().Retried, 2)
			})
		})
	}
}

// Codes that a retry does not help are told at once, with hint, details and headers.
func TestRefusalThatIsNotRetried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refusal := Refuse(CodePermissionDenied, "not you").WithRetryAfter(90 * time.Minute).WithDetail(ErrorInfo{Reason: "TENANT"})
		r := startWithMiddleware(t, func(Handler) Handler {
			return func(ctx context.Context, _ *Request) ([]byte, error) {
				if err := errors.Join(SetResponseHeader(ctx, "h", "v"), SetResponseTrailer(ctx, "t", "u")); err != nil {
					return nil, err
				}
				return nil, refusal
			}
		}, echo)
		var info CallInfo
		got := <-goCall(r.client, within(t, time.Minute), "m", nil, WithCallInfo(&info))
		e := codedError(got.err)
		wantSame(t, "code", e.Code(), CodePermissionDenied)
		wantSame(t, "outcome", e.Outcome(), DidNotRun)
		wantSame(t, "hint", e.RetryAfter(), 90*time.Minute)
		wantSame(t, "attempts", info.Attempts, 1)
		var detail ErrorInfo
		if !Detail(got.err, &detail) || detail.Reason != "TENANT" {
			t.Errorf("detail %+v", detail)
		}
		if info.Response == nil || info.Response.Header["h"] != "v" || info.Response.Trailer["t"] != "u" || info.Server == "" {
			t.Errorf("info %+v, response %+v", info, info.Response)
		}
	})
}

// A handler may refuse a call too. Nothing is stored under its key.
func TestRefusalOfAHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startWithMiddleware(t, passOn, func(context.Context, *Request) ([]byte, error) {
			if runs.Add(1) == 1 {
				return nil, Refuse(CodeFailedPrecondition, "not yet")
			}
			return []byte("done"), nil
		})
		got := <-goCall(r.client, within(t, time.Minute), "m", nil, WithIdempotencyKey("key"))
		wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		wantSame(t, "code", CodeOf(got.err), CodeFailedPrecondition)
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil, WithIdempotencyKey("key")), "done")
	})
}

// Middleware cannot refuse what ran: the outcome would be a lie.
func TestRefusalAfterTheHandlerIsAnErrorThatRan(t *testing.T) {
	t.Parallel()
	var refusal error = Refuse(CodeResourceExhausted, "too late")
	for name, m := range map[string]Middleware{
		"after a result": func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				_, _ = next(ctx, req)
				return nil, refusal
			}
		},
		"in another context": func(next Handler) Handler {
			return func(_ context.Context, req *Request) ([]byte, error) {
				_, _ = next(context.Background(), req)
				return nil, refusal
			}
		},
		"with a copy of the request": func(next Handler) Handler {
			return func(_ context.Context, req *Request) ([]byte, error) {
				own := *req
				_, _ = next(context.Background(), &own)
				return nil, refusal
			}
		},
		"beside it": func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				begun := make(chan struct{})
				go func() { // ends with the handler
					close(begun)
					_, _ = next(ctx, req)
				}()
				<-begun
				settle()
				return nil, refusal
			}
		},
		"after a run and a refusal": func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				_, _ = next(ctx, req)
				return next(context.WithValue(ctx, invocationKey{}, nil), req)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				r := startWithMiddleware(t, m, func(ctx context.Context, _ *Request) ([]byte, error) {
					if runs.Add(1) == 2 {
						return nil, refusal
					}
					if name == "beside it" {
						<-ctx.Done()
					}
					return nil, nil
				})
				got := <-goCall(r.client, within(t, time.Minute), "m", nil)
				wantSame(t, "outcome", OutcomeOf(got.err), Ran)
				wantSame(t, "code", CodeOf(got.err), CodeResourceExhausted)
				wantSame(t, "refused", r.server.Stats().Refused, 0)
			})
		})
	}
}

// A refusal is not the handler's own when it comes from another server.
func TestRefusalOfAnotherServerIsNotPassedOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{
			"inner": func(context.Context, *Request) ([]byte, error) { return nil, Refuse(CodeFailedPrecondition, "not yet") },
		})
		outer := startServer(t, r.broker, handlers{"outer": func(ctx context.Context, _ *Request) ([]byte, error) {
			return r.client.Call(ctx, "inner", nil)
		}}, WithQueue(Queue{Name: "outer"}))
		ready(t, outer.WaitReady)
		client := startClient(t, r.broker, WithQueue(Queue{Name: "outer"}))
		got := <-goCall(client, within(t, time.Minute), "outer", nil)
		wantSame(t, "code", CodeOf(got.err), CodeFailedPrecondition)
		wantSame(t, "outcome", OutcomeOf(got.err), Ran)
	})
}

// A request that was delivered before may have run elsewhere, whatever this server does.
func TestRefusalOfARedeliveredRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := serve(t, handlers{"m": echo}, WithMiddleware(refuseFirst(9, Refuse(CodeFailedPrecondition, "limit"))))
		putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderResent: true} }))
		settle()
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 1)
		wantSame(t, "ran", responses[0].Headers[wire.HeaderRan], nil)
	})
}

// A hint with an error of a handler reaches the caller; the call ran, so it is not retried.
func TestRetryAfterOfAHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": func(context.Context, *Request) ([]byte, error) {
			return nil, Errorf(CodeUnavailable, "later").WithRetryAfter(1500 * time.Microsecond)
		}})
		var info CallInfo
		got := <-goCall(r.client, within(t, time.Minute), "m", nil, WithCallInfo(&info))
		wantSame(t, "hint", codedError(got.err).RetryAfter(), 2*time.Millisecond)
		wantSame(t, "outcome", OutcomeOf(got.err), Ran)
		wantSame(t, "attempts", info.Attempts, 1)
	})
	wantSame(t, "hint below 0", Errorf(CodeAborted, "").WithRetryAfter(-1).RetryAfter(), 0)
	wantSame(t, "nil", (*Error)(nil).WithRetryAfter(1).RetryAfter(), 0)
}

func TestHide(t *testing.T) {
	t.Parallel()
	if err := Hide(nil); err != nil {
		t.Errorf("Hide(nil) = %v", err)
	}
	plain := errors.New("secret")
	for in, want := range map[error]Code{
		plain:                                 CodeInternal,
		context.DeadlineExceeded:              CodeDeadlineExceeded,
		context.Canceled:                      CodeCanceled,
		Errorf(CodeUnauthenticated, "secret"): CodeInternal,
		Errorf(CodeAborted, "secret"):         CodeUnavailable,
		Errorf(CodeResourceExhausted, "secret").WithRetryAfter(time.Second).WithDetail(ErrorInfo{Reason: "secret"}): CodeUnavailable,
		localError(CodeUnavailable, DidNotRun, ErrUnroutable, "secret"):                                             CodeUnavailable,
	} {
		err := Hide(fmt.Errorf("around: %w", in))
		e := codedError(err)
		if e.Code() != want || strings.Contains(err.Error(), "secret") || len(e.Details()) != 0 || e.Outcome() != Ran || !errors.Is(err, in) {
			t.Errorf("Hide(%v) = %v, %+v, want %q", in, err, e, want)
		}
		wantSame(t, "hint", e.RetryAfter(), codedError(in).RetryAfter())
	}
}

// The server logs what Hide hides, and why details are missing.
func TestHiddenErrorsAndMissingDetailsAreLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.WarnLevel)
		r := startRig(t, handlers{
			"hidden":  func(context.Context, *Request) ([]byte, error) { return nil, Hide(errors.New("secret")) },
			"details": func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeAborted, "no").WithDetail(nil) },
		}, WithLogger(zap.New(core)))
		got := <-goCall(r.client, within(t, time.Minute), "hidden", nil)
		wantSame(t, "code", CodeOf(got.err), CodeInternal)
		wantSame(t, "text", codedError(got.err).Message(), "internal error")
		failed := logs.FilterMessage("handler failed").TakeAll()
		if len(failed) != 1 || !strings.Contains(fmt.Sprint(failed[0].ContextMap()["error"]), "secret") {
			t.Errorf("lines %+v", failed)
		}
		got = <-goCall(r.client, within(t, time.Minute), "details", nil)
		wantSame(t, "code", CodeOf(got.err), CodeAborted)
		if left := logs.FilterMessage("details of an error were left out").TakeAll(); len(left) != 1 || fmt.Sprint(left[0].ContextMap()["error"]) != "a detail is nil" {
			t.Errorf("lines %+v", left)
		}
	})
}

func TestRequestFromContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": func(ctx context.Context, req *Request) ([]byte, error) {
			type key struct{}
			got, ok := RequestFromContext(context.WithValue(ctx, key{}, 1))
			if !ok || got.CorrelationID != req.CorrelationID || got.Method != "m" || string(got.Body) != "x" {
				return nil, Errorf(CodeInternal, "got %+v, %v", got, ok)
			}
			return nil, nil
		}})
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "")
	})
	for _, ctx := range []context.Context{nil, context.Background()} {
		if req, ok := RequestFromContext(ctx); ok || req != nil {
			t.Errorf("got %+v", req)
		}
	}
}

// Details that do not fit a frame of the server's connection are left out, alone and in a batch.
func TestDetailsBeyondAFrameAreLeftOut(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(string, ...any) *Error{
		"error":   func(format string, args ...any) *Error { return Errorf(CodeAborted, format, args...) },
		"refusal": func(format string, args ...any) *Error { return Refuse(CodeAborted, format, args...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zapcore.WarnLevel)
				b := brokertest.New()
				b.With(func(b *brokertest.Broker) { b.FrameSize = 8192 })
				s := startServer(t, b, handlers{"m": func(ctx context.Context, _ *Request) ([]byte, error) {
					err := SetResponseHeader(ctx, "h", "v")
					return nil, errors.Join(fail("no").WithDetail(AnyDetail{"a/B", make([]byte, 7000)}), err)
				}}, WithLogger(zap.New(core)))
				c := startClient(t, b)
				ready(t, s.WaitReady)
				ready(t, c.WaitReady)
				var info CallInfo
				got := <-goCall(c, within(t, time.Minute), "m", nil, WithCallInfo(&info))
				wantSame(t, "code", CodeOf(got.err), CodeAborted)
				wantSame(t, "details", len(codedError(got.err).Details()), 0)
				if info.Response == nil || info.Response.Header["h"] != "v" {
					t.Errorf("response %+v", info.Response)
				}
				wantSame(t, "lines", logs.FilterMessage("details of an error were left out").Len(), 1)
			})
		})
	}
}
