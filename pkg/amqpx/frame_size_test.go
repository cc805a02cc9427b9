package amqpx

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const smallFrame = 8192

func TestTracingHeadersThatDoNotFitAreLeftOut(t *testing.T) {
	t.Parallel()
	text := func(n int) string { return strings.Repeat("x", n) }
	for name, c := range map[string]struct {
		header amqp.Table
		left   string // names that travel, sorted by fmt
		fits   bool
	}{
		"fits":                   {amqp.Table{"baggage": text(100), "traceparent": "p"}, "[baggage traceparent]", true},
		"baggage goes first":     {amqp.Table{"baggage": text(5000), "tracestate": text(5000), "traceparent": "p", "own": "x"}, "[own traceparent tracestate]", true},
		"then the state":         {amqp.Table{"baggage": text(10), "tracestate": text(500), "traceparent": "p", "own": text(8000)}, "[own traceparent]", true},
		"then the parent":        {amqp.Table{"traceparent": text(500), "own": text(8000)}, "[own]", true},
		"nothing is enough":      {amqp.Table{"baggage": text(5000), "traceparent": "p", "own": text(9000)}, "[baggage own traceparent]", false},
		"there are none of them": {amqp.Table{"own": text(9000)}, "[own]", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			msg := amqp.Publishing{Headers: c.header}
			before := len(c.header)
			err := fitFrame(&msg, smallFrame)
			wantSame(t, "fits", err == nil, c.fits)
			names := make(map[string]bool, len(msg.Headers))
			for name := range msg.Headers {
				names[name] = true
			}
			got := strings.ReplaceAll(fmt.Sprint(names), ":true", "")
			wantSame(t, "headers", got, "map"+c.left)
			wantSame(t, "the request's own headers", len(c.header), before)
		})
	}
}

// Whether headers fit does not depend on whether a call could share a message.
func TestCallThatFitsNoFrame(t *testing.T) {
	t.Parallel()
	large := WithHeader(map[string]any{"x": strings.Repeat("x", 12000)})
	traced := WithHeader(map[string]any{"baggage": strings.Repeat("x", smallFrame), "traceparent": "p"})
	for _, mode := range []BatchMode{BatchOff, BatchAuto} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, handlers{"m": echo, "open the lane": echo}, WithBatch(mode))
				r.broker.with(func(b *fakeBroker) { b.frameSize = smallFrame })
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
					r.openLane()
					all = r.together(calls)
				} else {
					all = calls()
				}
				for i, done := range all {
					got := <-done
					if i%4 > 1 {
						wantAnswer(t, got, "x")
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

// A response whose headers do not fit a frame is replaced by an error without them; a handler
// that failed keeps its error.
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
		b.with(func(b *fakeBroker) { b.frameSize = smallFrame })
		for method, code := range map[string]Code{"m": CodeResourceExhausted, "failing": CodeAborted} {
			b.put(request(method))
			settle()
			answers := b.take()
			if len(answers) != 1 {
				t.Fatalf("%s: answers %v", method, answers)
			}
			wantSame(t, method, answers[0].Headers[headerCode], any(string(code)))
			wantSame(t, "has the header", answers[0].Headers["x"] != nil, false)
		}
		wantSame(t, "reconnects", s.Stats().Reconnects, 0)
		wantSame(t, "undeliverable", s.Stats().Undeliverable, 0)
	})
}
