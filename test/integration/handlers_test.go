//go:build integration

package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// hostileObserver panics whatever it is told.
type hostileObserver struct{}

func (hostileObserver) CallSettled(string, amqpx.Code, time.Duration) { panic("call settled") }
func (hostileObserver) BatchSent(int)                                 { panic("batch sent") }
func (hostileObserver) HandlerEnded(string, amqpx.Code, time.Duration, time.Duration) {
	panic("handler ended")
}
func (hostileObserver) RequestRefused(string, amqpx.Code) { panic("request refused") }
func (hostileObserver) BatchReceived(int)                 { panic("batch received") }

// validated is what a validation returns whose result is declared as *amqpx.Error.
func validated() *amqpx.Error { return nil }

// panickyError is an error that cannot even be asked for its text.
type panickyError struct{}

func (panickyError) Error() string   { panic("no text") }
func (panickyError) Is(error) bool   { panic("no comparison") }
func (panickyError) Unwrap() []error { panic("nothing inside") }

// Calls alone and in batches are answered, and every process lives.
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
					want{code: codes[i], outcome: amqpx.Ran, remote: true}.check(t, rig.Recv(t, call, "an answer").err)
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
