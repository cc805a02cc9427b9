package amqpx

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// limitedFrame is a frame size that headers within their bound may exceed.
const limitedFrame = 8192

// The result of the check must be the same with and without batching.
func TestCallThatFitsNoFrame(t *testing.T) {
	t.Parallel()
	large := WithHeader(map[string]any{"x": strings.Repeat("x", 12000)})
	traced := WithHeader(map[string]any{"baggage": strings.Repeat("x", limitedFrame), "traceparent": "p"})
	for _, mode := range []BatchMode{BatchOff, BatchAuto} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, handlers{"m": echo, "start batching": echo}, WithBatch(mode))
				r.broker.With(func(b *brokertest.Broker) { b.FrameSize = limitedFrame })
				const n = 10
				calls := func() (all []<-chan result) {
					for range n {
						for _, opts := range [][]CallOption{{large}, {large, Idempotent()}, nil, {traced}} {
							all = append(all, goCall(r.client, within(t, time.Minute), "m", []byte("x"), opts...))
						}
					}
					return all
				}
				var all []<-chan result
				if mode == BatchAuto {
					r.awaitBatching()
					all = r.together(calls)
				} else {
					all = calls()
				}
				for i, done := range all {
					got := <-done
					if i%4 > 1 {
						wantResponse(t, got, "x")
						continue
					}
					wantSame(t, "code", CodeOf(got.err), CodeInvalidArgument)
					wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
				}
				wantSame(t, "reconnects", r.client.Stats().Reconnects, 0)
			})
		})
	}
}

// A response with headers too large for a frame is replaced by an error without them. If the
// handler failed, the response keeps the handler's error.
func TestResponseThatFitsNoFrame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{
			"m": func(ctx context.Context, _ *Request) ([]byte, error) {
				return []byte("result"), SetResponseHeader(ctx, "x", strings.Repeat("x", 12000))
			},
			"failing": func(ctx context.Context, _ *Request) ([]byte, error) {
				if err := SetResponseHeader(ctx, "x", strings.Repeat("x", 12000)); err != nil {
					return nil, err
				}
				return nil, Errorf(CodeAborted, "%s", strings.Repeat("y", 20000))
			},
		})
		b.With(func(b *brokertest.Broker) { b.FrameSize = limitedFrame })
		for method, code := range map[string]Code{"m": CodeResourceExhausted, "failing": CodeAborted} {
			putRequest(b, request(method))
			settle()
			responses := takeResponses(b)
			if len(responses) != 1 {
				t.Fatalf("%s: responses %v", method, responses)
			}
			wantSame(t, method, responses[0].Headers[wire.HeaderCode], any(string(code)))
			wantSame(t, "has the header", responses[0].Headers["x"] != nil, false)
		}
		wantSame(t, "reconnects", s.Stats().Reconnects, 0)
		wantSame(t, "undeliverable", s.Stats().Undeliverable, 0)
	})
}
