//go:build integration

package integration

import (
	"context"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestCancellationReachesTheSecondHop: a handler's call with the handler's context is canceled
// together with the handler, without middleware.
func TestCancellationReachesTheSecondHop(t *testing.T) {
	t.Parallel()
	second := rig.New(t)
	inner := &canceled{begun: make(chan string, 1), ended: make(chan string, 1)}
	second.Serve(rig.Methods{"wait": inner.handle})
	onward := second.Ready()

	first := rig.New(t)
	hop := make(chan error, 1)
	first.Serve(rig.Methods{"hop": func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		body, err := onward.Call(ctx, "wait", req.Body)
		hop <- err
		return body, err
	}})
	ctx, cancel := context.WithCancel(rig.Patience(t))
	call := begin(ctx, first.Ready(), "hop", []byte("far"))
	rig.Recv(t, inner.begun, "the second handler to begin")
	cancel()
	wantCanceled := want{code: amqpx.CodeCanceled, outcome: amqpx.MayHaveRun, is: []error{context.Canceled}}
	wantCanceled.check(t, rig.Recv(t, call, "the call to settle").err)
	wantCanceled.check(t, rig.Recv(t, hop, "the second hop to settle"))
	if got := rig.Recv(t, inner.ended, "the second handler's context to end"); got != "far context canceled" {
		t.Errorf("the second handler ended with %q", got)
	}
}
