//go:build integration

package integration

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// amidOthers runs f while other callers make calls of "b" that must all succeed.
func amidOthers(t *testing.T, client *amqpx.Client, f func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	var calls atomic.Int64
	for range 16 {
		others.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				if got, err := client.Call(rig.Patience(t), "b", []byte("request")); err != nil || string(got) != "b" {
					t.Errorf("another call: got %q, %v", got, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	f()
	after := calls.Load()
	rig.Eventually(t, "the others go on", func() bool { return calls.Load() > after+100 })
	stop()
	others.Wait()
}

// TestRequestThatFitsNoFrame: a request with headers larger than a frame is refused without
// harm to other calls. Of tracing headers that are too large, baggage is omitted first.
func TestRequestThatFitsNoFrame(t *testing.T) {
	t.Parallel()
	r := rig.On(t, limited.For(t).URL)
	var runs atomic.Int64
	server := r.Serve(rig.Methods{
		"echo": echo,
		"b":    letter,
		"large": func(context.Context, *amqpx.Request) ([]byte, error) {
			runs.Add(1)
			return nil, nil
		},
		"traced": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
			if _, has := req.Header["baggage"]; has {
				return nil, amqpx.Errorf(amqpx.CodeInternal, "with baggage")
			}
			parent, _ := req.Header["traceparent"].(string)
			return []byte(parent), nil
		},
	})
	for _, mode := range []amqpx.BatchMode{amqpx.BatchAuto, amqpx.BatchOff} {
		client := r.Ready(amqpx.WithBatch(mode))
		if mode == amqpx.BatchAuto {
			openLane(t, client)
		}
		amidOthers(t, client, func() {
			for range 20 {
				for _, opts := range [][]amqpx.CallOption{nil, {amqpx.Idempotent()}} {
					opts = append(opts, amqpx.WithHeader(map[string]any{"x": strings.Repeat("x", 12000)}))
					_, err := client.Call(rig.Patience(t), "large", []byte("request"), opts...)
					if amqpx.CodeOf(err) != amqpx.CodeInvalidArgument || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
						t.Errorf("batch %s: got %v, %v", mode, err, amqpx.OutcomeOf(err))
					}
				}
				got, err := client.Call(rig.Patience(t), "traced", nil,
					amqpx.WithHeader(map[string]any{"traceparent": "parent", "baggage": strings.Repeat("x", 8192)}))
				if string(got) != "parent" || err != nil {
					t.Errorf("batch %s: a traced call got %q, %v", mode, got, err)
				}
			}
		})
		if got := client.Stats(); got.Reconnects != 0 || got.Resent != 0 {
			t.Errorf("batch %s: client counted %+v", mode, got)
		}
	}
	if got := server.Stats(); got.Reconnects != 0 || runs.Load() != 0 {
		t.Errorf("server counted %+v, and ran %d", got, runs.Load())
	}
}

// TestResponseThatFitsNoFrame: a response with headers larger than a frame is replaced by an
// error for the caller, also for a program in another language.
func TestResponseThatFitsNoFrame(t *testing.T) {
	t.Parallel()
	r := rig.On(t, limited.For(t).URL)
	server := r.Serve(rig.Methods{
		"b": letter,
		"large": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
			return []byte("result"), amqpx.SetResponseHeader(ctx, "x", strings.Repeat("x", 12000))
		},
		"failing": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
			if err := amqpx.SetResponseHeader(ctx, "x", strings.Repeat("x", 4000)); err != nil {
				return nil, err
			}
			return nil, amqpx.Errorf(amqpx.CodeAborted, "%s", strings.Repeat("y", 12000))
		},
	})
	client := r.Ready()
	inbox := r.Inbox()
	amidOthers(t, client, func() {
		for range 20 {
			_, err := client.Call(rig.Patience(t), "large", nil)
			if amqpx.CodeOf(err) != amqpx.CodeResourceExhausted || amqpx.OutcomeOf(err) != amqpx.Ran {
				t.Errorf("got %v, %v", err, amqpx.OutcomeOf(err))
			}
			if _, err := client.Call(rig.Patience(t), "failing", nil); amqpx.CodeOf(err) != amqpx.CodeAborted {
				t.Errorf("a long error: got %v", amqpx.CodeOf(err))
			}
			r.Request(amqp.Publishing{AppId: "large", ReplyTo: inbox.Name, CorrelationId: uuid.NewString()})
			if got := inbox.Next(); got.Headers["rpc-code"] != string(amqpx.CodeResourceExhausted) {
				t.Errorf("a plain client got %q, %v", got.Body, got.Headers)
			}
		}
	})
	if got := server.Stats().Reconnects + client.Stats().Reconnects; got != 0 {
		t.Errorf("%d connections were lost", got)
	}
}
