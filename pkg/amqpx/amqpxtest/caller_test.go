package amqpxtest

import (
	"context"
	"errors"
	"reflect"
	"strings"
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

// TestCallerIsLikeAServer: a handler has the same context through a Caller as in a server, and its caller
// gets the same response and CallInfo.
func TestCallerIsLikeAServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		results := map[string]error{
			"ok":      nil,
			"coded":   amqpx.Errorf(amqpx.CodeNotFound, "no tv").WithRetryAfter(time.Second),
			"uncoded": errors.New("secret"),
			"refused": amqpx.Refuse(amqpx.CodePermissionDenied, "not you"),
		}
		handler := func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			received, ok := amqpx.RequestFromContext(context.WithoutCancel(ctx))
			if !ok || received.Method != req.Method || received.Header["tenant"] != "a" || received.CorrelationID != req.CorrelationID {
				t.Errorf("%s: the request of the context is %+v, %t", req.Method, received, ok)
			}
			for _, err := range []error{
				amqpx.SetResponseHeader(ctx, "rows", 3), amqpx.SetResponseHeader(ctx, "bytes", []byte{0, 255}),
				amqpx.SetResponseTrailer(ctx, "sum", "abc"), amqpx.SetResponseContentType(ctx, "text/plain", "identity"),
			} {
				if err != nil {
					t.Errorf("%s: %v", req.Method, err)
				}
			}
			if amqpx.SetResponseHeader(ctx, "rpc-code", "x") == nil {
				t.Errorf("%s: a reserved name was set", req.Method)
			}
			<-time.After(50 * time.Millisecond)
			return []byte("response"), results[req.Method]
		}
		broker := NewBroker()
		server, err := amqpx.NewServer(URL, broker.Option())
		if err != nil {
			t.Fatal(err)
		}
		for method := range results {
			if err := server.Handle(method, handler); err != nil {
				t.Fatal(err)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- server.Serve(ctx) }()
		client, err := amqpx.NewClient(URL, broker.Option())
		if err != nil {
			t.Fatal(err)
		}
		for _, wait := range []func(context.Context) error{server.WaitReady, client.WaitReady} {
			if err := wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for method := range results {
			call := func(c amqpx.Caller) (string, *amqpx.Error, amqpx.CallInfo) {
				info := amqpx.CallInfo{QueueTime: time.Hour}
				body, err := c.Call(t.Context(), method, []byte("body"), amqpx.WithHeader(map[string]any{"tenant": "a"}), amqpx.WithCallInfo(&info))
				coded, _ := errors.AsType[*amqpx.Error](err)
				return string(body), coded, info
			}
			wantBody, wantErr, want := call(client)
			body, failed, got := call(Caller(handler))
			if body != wantBody || failed.Code() != wantErr.Code() || failed.Outcome() != wantErr.Outcome() ||
				failed.Message() != wantErr.Message() || failed.RetryAfter() != wantErr.RetryAfter() {
				t.Errorf("%s: got %q, %v (%v), a server gives %q, %v (%v)", method, body, failed, failed.Outcome(), wantBody, wantErr, wantErr.Outcome())
			}
			if want.Server == "" || got.CorrelationID == "" {
				t.Errorf("%s: the server is %q, the correlation id %q", method, want.Server, got.CorrelationID)
			}
			want.Server, want.CorrelationID, want.QueueTime, got.CorrelationID = "", "", 0, ""
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %+v with %+v, a server gives %+v with %+v", method, got, got.Response, want, want.Response)
			}
		}
		if err := client.Close(t.Context()); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// TestCallerWithoutResponse: a CallInfo has no response after an error that a client makes itself.
func TestCallerWithoutResponse(t *testing.T) {
	t.Parallel()
	fake := Caller(func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		if err := amqpx.SetResponseHeader(ctx, "rows", 3); err != nil {
			t.Error(err)
		}
		if req.Method == "late" {
			return nil, context.DeadlineExceeded
		}
		return nil, Error(amqpx.CodeUnavailable, amqpx.DidNotRun)
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx      context.Context //nolint:containedctx // of one case.
		method   string
		attempts int
	}{{t.Context(), "lost", 1}, {t.Context(), "late", 1}, {ended, "ended", 0}} {
		info := amqpx.CallInfo{Attempts: 7, Response: new(amqpx.Response)}
		if _, err := fake.Call(c.ctx, c.method, nil, amqpx.WithCallInfo(&info)); err == nil {
			t.Errorf("%s: no error", c.method)
		}
		if info.CorrelationID == "" {
			t.Errorf("%s: no correlation id", c.method)
		}
		if info.CorrelationID = ""; info != (amqpx.CallInfo{Attempts: c.attempts}) {
			t.Errorf("%s: got %+v", c.method, info)
		}
	}
}

// TestCallerSends: a Caller receives one-way requests, and keeps the errors of their handlers to itself.
func TestCallerSends(t *testing.T) {
	t.Parallel()
	lost := Error(amqpx.CodeUnavailable, amqpx.MayHaveRun, Cause(amqpx.ErrOutcomeUnknown))
	unroutable := Error(amqpx.CodeUnavailable, amqpx.DidNotRun, Cause(amqpx.ErrUnroutable))
	for name, c := range map[string]struct {
		result  error
		want    string // the text of the error of Send
		outcome amqpx.Outcome
	}{
		"success":          {nil, "", amqpx.Ran},
		"lost":             {lost, "unavailable (may have run)", amqpx.MayHaveRun},
		"unroutable":       {unroutable, "unavailable (did not run)", amqpx.DidNotRun},
		"of a handler":     {amqpx.Errorf(amqpx.CodeNotFound, "no tv"), "", amqpx.Ran},
		"a secret":         {errors.New("secret"), "", amqpx.Ran},
		"of a server":      {Error(amqpx.CodeUnavailable, amqpx.DidNotRun, Remote()), "", amqpx.Ran},
		"of middleware":    {amqpx.Refuse(amqpx.CodeResourceExhausted, "full"), "", amqpx.Ran},
		"end of a context": {context.Canceled, "canceled (may have run)", amqpx.MayHaveRun},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			received := 0
			fake := Caller(func(_ context.Context, req *amqpx.Request) ([]byte, error) {
				if received++; !req.OneWay || string(req.Body) != "body" {
					t.Errorf("got %+v", req)
				}
				return []byte("dropped"), c.result
			})
			var info amqpx.CallInfo
			err := fake.Send(t.Context(), "m", []byte("body"), amqpx.WithCallInfo(&info))
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != c.want || amqpx.OutcomeOf(err) != c.outcome || received != 1 {
				t.Errorf("%v (%v), want %q (%v); the function was called %d times", err, amqpx.OutcomeOf(err), c.want, c.outcome, received)
			}
			if info.Attempts != 1 || info.Response != nil || info.HandlerTime != 0 {
				t.Errorf("got %+v", info)
			}
		})
	}
}

// TestCallerSendsWithTime: the time for the confirm of a one-way request is that of its options.
func TestCallerSendsWithTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var left time.Duration
		fake := Caller(func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
			deadline, _ := ctx.Deadline()
			left = time.Until(deadline)
			return nil, nil
		})
		for _, c := range []struct {
			opts []amqpx.CallOption
			want time.Duration
		}{
			{nil, amqpx.DefaultTimeout},
			{[]amqpx.CallOption{amqpx.CallTimeout(time.Second)}, time.Second},
			{[]amqpx.CallOption{amqpx.WithExpiration(time.Minute)}, amqpx.DefaultTimeout},
			{[]amqpx.CallOption{amqpx.WithExpiration(2 * time.Second)}, 2 * time.Second},
		} {
			if err := fake.Send(t.Context(), "m", nil, c.opts...); err != nil || left != c.want {
				t.Errorf("%v; the function had %v, want %v", err, left, c.want)
			}
		}
		err := fake.Send(t.Context(), "m", nil, amqpx.WithExpiration(0))
		if amqpx.CodeOf(err) != amqpx.CodeInvalidArgument || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
			t.Errorf("got %v", err)
		}
	})
}

// TestCallerCompresses: bodies of a typed method with compression pass a Caller as they pass a server, in
// both directions and one-way, and a response with another content type is refused.
func TestCallerCompresses(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 1000)
	var encodings, received []string
	echo := amqpx.NewMethod[string, string]("echo", amqpx.JSON(), amqpx.Compress(amqpx.Gzip(), 100))
	handler := echo.Handler(func(_ context.Context, text string) (string, error) {
		received = append(received, text)
		return text, nil
	})
	fake := Caller(func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		encodings = append(encodings, req.ContentEncoding)
		return handler(ctx, req)
	})
	var info amqpx.CallInfo
	if got, err := echo.Call(t.Context(), fake, long, amqpx.WithCallInfo(&info)); got != long || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if r := info.Response; r.ContentEncoding != "gzip" || r.ContentType != "application/json" || len(r.Body) >= len(long) {
		t.Errorf("the response is %+v", r)
	}
	if err := echo.Send(t.Context(), fake, long); err != nil {
		t.Error(err)
	}
	if want := []string{"gzip", "gzip"}; !reflect.DeepEqual(encodings, want) || !reflect.DeepEqual(received, []string{long, long}) {
		t.Errorf("the requests had the encodings %q, and texts of %d", encodings, len(received))
	}
	other := Caller(func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		return []byte(`"text"`), amqpx.SetResponseContentType(ctx, "text/plain", "")
	})
	if _, err := echo.Call(t.Context(), other, "text"); amqpx.CodeOf(err) != amqpx.CodeInternal || amqpx.OutcomeOf(err) != amqpx.Ran {
		t.Errorf("got %v", err)
	}
}
