package amqpxtest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// TestCallerSeesOptions: the function of a Caller gets the options of a call.
func TestCallerSeesOptions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var got amqpx.Request
		var left time.Duration
		fake := Caller(func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			deadline, _ := ctx.Deadline()
			got, left = *req, time.Until(deadline)
			return []byte("response"), nil
		})
		call := func(ctx context.Context, opts ...amqpx.CallOption) {
			t.Helper()
			if response, err := fake.Call(ctx, "m", []byte("body"), opts...); string(response) != "response" || err != nil {
				t.Errorf("%q, %v", response, err)
			}
		}
		call(t.Context(), amqpx.WithHeader(map[string]any{"tenant": "a"}), amqpx.WithContentType("text/plain", "gzip"),
			amqpx.WithIdempotencyKey("k"), amqpx.CallTimeout(time.Second))
		if got.Method != "m" || string(got.Body) != "body" || got.Header["tenant"] != "a" || got.ContentType != "text/plain" ||
			got.ContentEncoding != "gzip" || got.IdempotencyKey != "k" || got.CorrelationID == "" || left != time.Second {
			t.Errorf("the function got %+v with %v", got, left)
		}
		call(t.Context(), amqpx.Idempotent())
		if !got.Idempotent || got.IdempotencyKey != got.CorrelationID || left != amqpx.DefaultTimeout {
			t.Errorf("the function got %+v with %v", got, left)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if call(ctx); got.IdempotencyKey != "" || left != time.Minute {
			t.Errorf("the function got %+v with %v", got, left)
		}
	})
}

func TestCallerErrors(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	own := Error(amqpx.CodeUnavailable, amqpx.DidNotRun, Cause(amqpx.ErrUnroutable))
	for name, c := range map[string]struct {
		ctx     context.Context //nolint:containedctx // of one case.
		err     error
		opts    []amqpx.CallOption
		code    amqpx.Code
		outcome amqpx.Outcome
		is      error
		text    string
	}{
		"its own":          {t.Context(), own, nil, amqpx.CodeUnavailable, amqpx.DidNotRun, amqpx.ErrUnroutable, "unavailable (did not run)"},
		"of a handler":     {t.Context(), amqpx.Errorf(amqpx.CodeNotFound, "no tv"), nil, amqpx.CodeNotFound, amqpx.Ran, nil, "not_found: no tv"},
		"a secret":         {t.Context(), errors.New("secret"), nil, amqpx.CodeInternal, amqpx.Ran, nil, "internal: internal error"},
		"end of a context": {t.Context(), context.DeadlineExceeded, nil, amqpx.CodeDeadlineExceeded, amqpx.MayHaveRun, context.DeadlineExceeded, "deadline_exceeded (may have run)"},
		"canceled before":  {ended, nil, nil, amqpx.CodeCanceled, amqpx.DidNotRun, context.Canceled, "canceled (did not run)"},
		"no time":          {t.Context(), nil, []amqpx.CallOption{amqpx.CallTimeout(0)}, amqpx.CodeInvalidArgument, amqpx.DidNotRun, nil, "invalid_argument: CallTimeout: want more than 0 (did not run)"},
		"a nil option":     {t.Context(), nil, []amqpx.CallOption{nil}, amqpx.CodeInvalidArgument, amqpx.DidNotRun, nil, "invalid_argument: a CallOption is nil (did not run)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := Caller(func(context.Context, *amqpx.Request) ([]byte, error) {
				if c.err == nil {
					t.Error("the function was called")
				}
				return nil, c.err
			})
			_, err := fake.Call(c.ctx, "m", nil, c.opts...)
			if amqpx.CodeOf(err) != c.code || amqpx.OutcomeOf(err) != c.outcome || c.is != nil && !errors.Is(err, c.is) || err.Error() != c.text {
				t.Errorf("%v; %v", err, amqpx.OutcomeOf(err))
			}
		})
	}
}

// TestCallerOfMethod: the handler of a typed method is a Caller, with validation and details.
func TestCallerOfMethod(t *testing.T) {
	t.Parallel()
	type request struct{ Count int }
	double := amqpx.NewMethod[request, int]("double", amqpx.JSON(), amqpx.Compress(amqpx.Gzip(), 0), amqpx.Validate(func(r request) error {
		if r.Count < 0 {
			return amqpx.Errorf(amqpx.CodeInvalidArgument, "negative").
				WithDetail(amqpx.BadRequest{FieldViolations: []amqpx.FieldViolation{{Field: "Count"}}})
		}
		return nil
	}))
	fake := Caller(double.Handler(func(_ context.Context, r request) (int, error) { return 2 * r.Count, nil }))
	if got, err := double.Call(t.Context(), fake, request{Count: 21}); got != 42 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	var wrong amqpx.BadRequest
	_, err := double.Call(t.Context(), fake, request{Count: -1})
	if !amqpx.Detail(err, &wrong) || wrong.FieldViolations[0].Field != "Count" {
		t.Errorf("%v, %+v", err, wrong)
	}
}
