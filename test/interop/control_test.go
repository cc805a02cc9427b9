//go:build integration

package interop

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestControlPlaneFromPython: a program in another language can list servers and cancel a
// call.
func TestControlPlaneFromPython(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	ended := make(chan error, 1)
	r.Serve(rig.Methods{"wait": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}}, amqpx.WithName("ours"), amqpx.WithVersion("v1"))
	p := script(t, "control.py", r.URL, r.Queue.Name, "wait")
	var server amqpx.ServerInfo
	if err := json.Unmarshal([]byte(p.Says("{")), &server); err != nil {
		t.Fatalf("the Python program's answer: %v", err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the Python program ended with %v", err)
	}
	if err := rig.Recv(t, ended, "the handler to end"); !errors.Is(err, context.Canceled) {
		t.Errorf("the handler ended with %v", err)
	}
	if st := server.Stats; server.Name != "ours" || server.Version != "v1" || st == nil || st.Canceled != 1 || st.Requests != 1 {
		t.Errorf("the server said %+v, %+v", server, st)
	}
}
