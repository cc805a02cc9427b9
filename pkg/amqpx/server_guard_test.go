package amqpx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// wrapping is a handler author's error type around another error.
type wrapping struct{ inner error }

func (w wrapping) Error() string { return "wrapping" }
func (w wrapping) Unwrap() error { return w.inner }

// hostileError is an error with one harmful method.
type hostileError struct {
	method string
	act    func()
}

func (h hostileError) on(method string) {
	if h.method == method {
		h.act()
	}
}
func (h hostileError) Error() string { h.on("Error"); return "hostile" }
func (h hostileError) Unwrap() error { h.on("Unwrap"); return nil }
func (h hostileError) Is(error) bool { h.on("Is"); return false }
func (h hostileError) As(any) bool   { h.on("As"); return false }

// noError returns a nil *Error, like a successful validation function with the result type
// *Error.
func noError() *Error { return nil }

func TestWhateverErrorAHandlerReturnsTheServerAnswersAndLives(t *testing.T) {
	t.Parallel()
	boom := func() { panic("boom") }
	for name, c := range map[string]struct {
		err  error
		code Code
	}{
		"nil *Error":            {noError(), CodeInternal},
		"wrapped nil *Error":    {fmt.Errorf("check: %w", noError()), CodeInternal},
		"joined nil *Error":     {errors.Join(io.EOF, noError()), CodeInternal},
		"nil *Error by Unwrap":  {wrapping{noError()}, CodeInternal},
		"coded behind nil":      {errors.Join(noError(), Errorf(CodeNotFound, "no")), CodeNotFound},
		"deadline behind nil":   {errors.Join(noError(), context.DeadlineExceeded), CodeDeadlineExceeded},
		"Errorf of nil *Error":  {Errorf(CodeAborted, "x: %w", noError()), CodeAborted},
		"Error panics":          {hostileError{"Error", boom}, CodeInternal},
		"Unwrap panics":         {hostileError{"Unwrap", boom}, CodeInternal},
		"Is panics":             {hostileError{"Is", boom}, CodeInternal},
		"As panics":             {hostileError{"As", boom}, CodeInternal},
		"Is ends the goroutine": {hostileError{"Is", runtime.Goexit}, CodeInternal},
		"As panics with itself": {hostileError{"As", func() { panic(hostileError{"Error", boom}) }}, CodeInternal},
		"empty code":            {Errorf("", "x"), CodeUnknown},
		"code of its own":       {Errorf("teapot", "x"), CodeUnknown},
		"zero *Error":           {new(Error), CodeUnknown},
		"zero *Error, wrapped":  {wrapping{new(Error)}, CodeUnknown},
	} {
		for _, mode := range []BatchMode{BatchOff, BatchAuto} {
			t.Run(name+", batch "+string(mode), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					r := startRig(t, handlers{
						"bad":            func(context.Context, *Request) ([]byte, error) { return []byte("partial"), c.err },
						"m":              echo,
						"start batching": echo,
					}, WithBatch(mode))
					calls := []<-chan result{goCall(r.client, within(t, time.Minute), "bad", nil)}
					if mode == BatchAuto {
						r.awaitBatching()
						calls = append(calls, r.batchOf(3, "bad")...)
					}
					for _, call := range calls {
						got := <-call
						wantSame(t, "code", CodeOf(got.err), c.code)
						wantSame(t, "outcome", OutcomeOf(got.err), Ran)
						wantSame(t, "answer", string(got.response), "")
					}
					wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
					pass(time.Second) // the acknowledgements
					wantSame(t, "failed", r.server.Stats().Failed, uint64(len(calls)))
					wantSame(t, "in flight", r.server.Stats().InFlight, 0)
				})
			})
		}
	}
}

func TestNilErrorIsLoggedAsWhatItIs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.DebugLevel)
		b, _ := serve(t, handlers{
			"bare":    func(context.Context, *Request) ([]byte, error) { return nil, noError() },
			"wrapped": func(context.Context, *Request) ([]byte, error) { return nil, fmt.Errorf("check: %w", noError()) },
			"hostile": func(context.Context, *Request) ([]byte, error) {
				return nil, hostileError{"As", func() { panic("boom") }}
			},
		}, WithLogger(log), WithWorkers(1))
		for _, m := range []string{"bare", "wrapped", "hostile"} {
			putRequest(b, request(m))
		}
		settle()
		entries := logs.FilterMessage("handler failed").All()
		if len(entries) != 3 {
			t.Fatalf("%d entries", len(entries))
		}
		wantSame(t, "bare", entries[0].ContextMap()["error"], any(errNilError.Error()))
		wantSame(t, "wrapped", entries[1].ContextMap()["error"], any("check: a nil *amqpx.Error, which has no code"))
		wantSame(t, "hostile", entries[2].ContextMap()["error"], any("its error, of type amqpx.hostileError, panicked: boom"))
	})
}

func TestMethodsOfANilError(t *testing.T) {
	t.Parallel()
	e := noError()
	wantSame(t, "text", e.Error(), "a nil *amqpx.Error, which has no code")
	wantSame(t, "code", e.Code(), CodeUnknown)
	wantSame(t, "message", e.Message(), "")
	wantSame(t, "outcome", e.Outcome(), MayHaveRun)
	wantSame(t, "remote", e.Remote(), false)
	wantSame(t, "retry after", e.RetryAfter(), 0)
	wantSame(t, "causes", len(e.Unwrap()), 0)
	for _, err := range []error{e, fmt.Errorf("x: %w", e), errors.Join(e, io.EOF), wrapping{e}} {
		wantSame(t, "CodeOf", CodeOf(err), CodeUnknown)
		wantSame(t, "OutcomeOf", OutcomeOf(err), MayHaveRun)
	}
	behind := errors.Join(e, Errorf(CodeAborted, "x"))
	wantSame(t, "CodeOf", CodeOf(behind), CodeAborted)
	wantSame(t, "OutcomeOf", OutcomeOf(behind), Ran)
}

// hostileObserver is an observer. Every method calls act.
type hostileObserver struct{ act func() }

func (o hostileObserver) CallSettled(string, Code, time.Duration)                 { o.act() }
func (o hostileObserver) BatchSent(int)                                           { o.act() }
func (o hostileObserver) HandlerEnded(string, Code, time.Duration, time.Duration) { o.act() }
func (o hostileObserver) RequestRefused(string, Code)                             { o.act() }
func (o hostileObserver) BatchReceived(int)                                       { o.act() }

func TestObserverThatPanicsHarmsNoCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.ErrorLevel)
		hostile := hostileObserver{func() { panic("boom") }}
		var client, server observerNotes
		b := brokertest.New()
		s := startServer(t, b, handlers{"m": echo, "start batching": echo}, WithBatch(BatchAuto), WithLogger(log),
			WithServerObserver(hostile), WithServerObserver(nil), WithServerObserver(&server))
		c := startClient(t, b, WithBatch(BatchAuto), WithLogger(log),
			WithClientObserver(hostile), WithClientObserver(nil), WithClientObserver(&client))
		ready(t, s.WaitReady)
		r := &rig{t: t, broker: b, client: c, server: s}
		ready(t, r.client.WaitReady)
		r.awaitBatching()
		for range 3 {
			for _, call := range r.batchOf(3, "m") {
				wantSame(t, "error", (<-call).err, nil)
			}
			_, err := c.Call(within(t, time.Minute), "unknown", nil)
			wantSame(t, "code", CodeOf(err), CodeUnimplemented)
			response, err := c.Go(within(t, time.Minute), "m", []byte("x")).Wait()
			wantResponse(t, result{response: response, err: err}, "x")
		}
		panicked := logs.FilterMessage("observer panicked")
		for _, method := range []string{"CallSettled", "BatchSent", "HandlerEnded", "RequestRefused", "BatchReceived"} {
			wantSame(t, method+" logged", panicked.FilterField(zap.String("observer_method", method)).Len(), 1)
		}
		wantSame(t, "reconnects", s.Stats().Reconnects+c.Stats().Reconnects, 0)
		for name, o := range map[string]*observerNotes{"client": &client, "server": &server} {
			o.mu.Lock()
			if len(o.notes) < 12 {
				t.Errorf("the second observer of the %s was told %q", name, o.notes)
			}
			o.mu.Unlock()
		}
	})
}

// If an observer ends its goroutine, like t.FailNow, the process loses connections but does not
// end, and every call is settled.
func TestObserverThatEndsItsGoroutine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		s := startServer(t, b, handlers{"m": echo, "start batching": echo}, WithBatch(BatchAuto), WithWorkers(2),
			WithServerObserver(hostileObserver{runtime.Goexit}))
		c := startClient(t, b, WithBatch(BatchAuto))
		ready(t, s.WaitReady)
		r := &rig{t: t, broker: b, client: c, server: s}
		ready(t, r.client.WaitReady)
		r.awaitBatching()
		for range 5 {
			wantResponse(t, <-goCall(c, within(t, time.Minute), "m", []byte("x")), "x")
		}
		calls := r.batchOf(3, "m")
		for _, call := range calls {
			if got := <-call; got.took > time.Minute {
				t.Errorf("ended after %v with %v", got.took, got.err)
			}
		}
		// Each session of the server ends when it gets the batch, until the batch expires after a minute.
		// The pause before the next session is random.
		wantResponse(t, <-goCall(c, within(t, 5*time.Minute), "m", []byte("x"), Idempotent(), WaitForServer()), "x")
	})
}

func TestClientMiddlewareOfAFutureThatNeverReturns(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(){"panics": func() { panic("boom") }, "ends its goroutine": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				c := startClient(t, b, WithMiddleware(func(Handler) Handler {
					return func(context.Context, *Request) ([]byte, error) { end(); return nil, nil }
				}))
				_, err := c.Go(within(t, time.Minute), "m", nil).Wait()
				wantSame(t, "code", CodeOf(err), CodeInternal)
				wantSame(t, "outcome", OutcomeOf(err), MayHaveRun)
			})
		})
	}
}

// A handler that overwrites its request does not change the response: the server keeps its own
// copy.
func TestHandlerThatOverwritesItsRequestIsAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			body := req.Body
			*req = Request{OneWay: true}
			return body, nil
		}})
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), Idempotent()), "x")
	})
}

func TestNilLoggersLogNothing(t *testing.T) {
	t.Parallel()
	h := Chain(func(context.Context, *Request) ([]byte, error) { panic("boom") }, AccessLog(nil), Recover(nil))
	if _, err := h(t.Context(), &Request{}); err == nil {
		t.Error("no error")
	}
}
