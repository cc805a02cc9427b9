//go:build integration

package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// hostileObserver panics in every method.
type hostileObserver struct{}

func (hostileObserver) CallSettled(string, amqpx.Code, time.Duration) { panic("call settled") }
func (hostileObserver) BatchSent(int)                                 { panic("batch sent") }
func (hostileObserver) HandlerEnded(string, amqpx.Code, time.Duration, time.Duration) {
	panic("handler ended")
}
func (hostileObserver) RequestRefused(string, amqpx.Code) { panic("request refused") }
func (hostileObserver) BatchReceived(int)                 { panic("batch received") }

// validated returns a nil *amqpx.Error, like a validation function declared with this result
// type.
func validated() *amqpx.Error { return nil }

// panickyError is an error whose methods panic.
type panickyError struct{}

func (panickyError) Error() string   { panic("no text") }
func (panickyError) Is(error) bool   { panic("no comparison") }
func (panickyError) Unwrap() []error { panic("nothing inside") }

// TestHandlerAndObserverThatMisbehave: calls, alone and in batches, are answered and every
// process survives.
func TestHandlerAndObserverThatMisbehave(t *testing.T) {
	t.Parallel()
	for _, batch := range []amqpx.BatchMode{amqpx.BatchOff, amqpx.BatchAuto} {
		t.Run(string(batch), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			returning := func(err error) amqpx.Handler {
				return func(context.Context, *amqpx.Request) ([]byte, error) { return nil, err }
			}
			server := r.Serve(rig.Methods{
				"echo":     echo,
				"nil":      returning(validated()),
				"wrapped":  returning(fmt.Errorf("check: %w", validated())),
				"panicky":  returning(panickyError{}),
				"no code":  returning(amqpx.Errorf("", "text")),
				"own code": returning(amqpx.Errorf("teapot", "text")),
			}, amqpx.WithBatch(batch), amqpx.WithServerObserver(hostileObserver{}))
			client := r.Ready(amqpx.WithBatch(batch), amqpx.WithClientObserver(hostileObserver{}))
			for range 3 {
				var calls []<-chan outcome
				methods := map[string]amqpx.Code{
					"nil": amqpx.CodeInternal, "wrapped": amqpx.CodeInternal, "panicky": amqpx.CodeInternal,
					"no code": amqpx.CodeUnknown, "own code": amqpx.CodeUnknown,
				}
				var codes []amqpx.Code
				for method, code := range methods {
					for range 20 {
						calls, codes = append(calls, begin(rig.Patience(t), client, method, nil)), append(codes, code)
					}
				}
				for i, call := range calls {
					want{code: codes[i], outcome: amqpx.Ran, remote: true}.check(t, rig.Recv(t, call, "a response").err)
				}
				if got := rig.Call(t, client, "echo", []byte("x")); string(got) != "x" {
					t.Errorf("got %q", got)
				}
			}
			if st := server.Stats(); st.Failed != 300 || st.OK != 3 {
				t.Errorf("server counted %+v", st)
			}
		})
	}
}

// TestStuckHandlers: handlers which ignore their contexts block neither a worker forever nor
// the single slot of the retry queue, and every caller gets a response.
func TestStuckHandlers(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	stuck := hold()
	t.Cleanup(func() { close(stuck.release) })
	const workers = 2
	server := r.Serve(rig.Methods{"stuck": stuck.handle, "echo": echo}, amqpx.WithWorkers(workers), amqpx.WithPrefetch(2*workers),
		amqpx.WithMaxHandlerTime(500*time.Millisecond))
	client, inbox := r.Ready(), r.Inbox()
	timedOut := want{code: amqpx.CodeDeadlineExceeded, outcome: amqpx.MayHaveRun, remote: true}
	for range workers {
		timedOut.check(t, rig.Recv(t, begin(rig.Patience(t), client, "stuck", nil), "a response for a stuck handler").err)
	}
	if got := rig.Call(t, client, "echo", []byte("x")); string(got) != "x" {
		t.Errorf("got %q", got)
	}
	// Two more requests without a deadline, from the retry queue.
	for _, id := range []string{"a", "b"} {
		r.Publish(r.Queue.Name+".retry", amqp.Publishing{
			AppId: "stuck", CorrelationId: id, ReplyTo: inbox.Name, Headers: amqp.Table{"rpc-deliveries": int64(2)},
		})
	}
	for id, a := range inbox.ResponsesTo("a", "b") {
		if a.Code != "deadline_exceeded" || a.Ran != "" {
			t.Errorf("call %q got %+v", id, a)
		}
	}
	if st := server.Stats(); st.Stuck != 2*workers || st.OldestHandler < time.Second {
		t.Errorf("server counted %+v", st)
	}
	if fleet := listed(t, client, 1); fleet[0].Stats.Stuck != 2*workers {
		t.Errorf("listed as %+v", fleet[0].Stats)
	}
	for range 2 * workers {
		stuck.release <- struct{}{}
	}
	rig.Eventually(t, "the handlers end", func() bool { return server.Stats().Stuck == 0 })
	if got := rig.Call(t, client, "echo", []byte("y")); string(got) != "y" {
		t.Errorf("got %q", got)
	}
	nothingHeld(t, r, server)
}
