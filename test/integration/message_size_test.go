//go:build integration

package integration

import (
	"context"
	"errors"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// limited is a broker with a limit of 8 KiB for frames and of 16 KiB for messages.
//
//nolint:gochecknoglobals // several tests share it.
var limited = rig.Shared("frame_max = 8192\nmax_message_size = 16384")

func TestMessageAboveTheBrokersLimit(t *testing.T) {
	t.Parallel()
	r := rig.On(t, limited.For(t).URL)
	server := r.Serve(rig.Methods{"echo": echo, "large": func(context.Context, *amqpx.Request) ([]byte, error) {
		return make([]byte, 200_000), nil
	}})
	client := r.Ready()
	for range 3 {
		var innocent []<-chan outcome
		for range 20 {
			innocent = append(innocent, begin(rig.Patience(t), client, "echo", []byte("x"), amqpx.Idempotent()))
		}
		_, err := client.Call(rig.Patience(t), "echo", make([]byte, 200_000), amqpx.Idempotent())
		want{code: amqpx.CodeInvalidArgument, outcome: amqpx.DidNotRun, is: []error{amqpx.ErrTooLarge}}.check(t, err)
		_, err = client.Call(rig.Patience(t), "large", nil)
		want{code: amqpx.CodeResourceExhausted, outcome: amqpx.Ran, remote: true}.check(t, err)
		for _, call := range innocent {
			if got := rig.Recv(t, call, "a call to settle"); got.err != nil || string(got.response) != "x" {
				t.Errorf("an innocent call: %q, %v", got.response, got.err)
			}
		}
	}
	if got := client.Stats().Reconnects + server.Stats().Reconnects; got != 0 {
		t.Errorf("%d reconnects", got)
	}
}

func TestBatchesBelowTheBrokersLimit(t *testing.T) {
	t.Parallel()
	r := rig.On(t, limited.For(t).URL)
	server := r.Serve(rig.Methods{"echo": echo}, amqpx.WithBatch(amqpx.BatchAuto))
	client := r.Ready(amqpx.WithBatch(amqpx.BatchAuto))
	openLane(t, client)
	failed := 0
	for range 20 {
		var calls []<-chan outcome
		for range 64 {
			calls = append(calls, begin(rig.Patience(t), client, "echo", make([]byte, 1000)))
		}
		for _, call := range calls {
			// A call that was unconfirmed when the client learned the limit is not sent again.
			if got := rig.Recv(t, call, "a call to settle"); errors.Is(got.err, amqpx.ErrOutcomeUnknown) {
				failed++
			} else if got.err != nil {
				t.Errorf("a call: %v", got.err)
			}
		}
	}
	if got := client.Stats().Reconnects + server.Stats().Reconnects; got != 0 {
		t.Errorf("%d reconnects", got)
	}
	if failed > 64 {
		t.Errorf("%d calls failed while the limit was learned", failed)
	}
	_, err := client.Call(rig.Patience(t), "echo", make([]byte, 20_000))
	want{code: amqpx.CodeInvalidArgument, outcome: amqpx.DidNotRun, is: []error{amqpx.ErrTooLarge}}.check(t, err)
	if client.Stats().Batched == 0 {
		t.Error("no call travelled in a batch")
	}
}
