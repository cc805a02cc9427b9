//go:build integration

package integration

import (
	"context"
	"errors"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// serveShapes starts a server of production with a method for each kind of call.
func serveShapes(t *testing.T, p *production) *amqpx.Server {
	t.Helper()
	server, err := amqpx.NewServer(p.url(asServer), serverInProduction(t)...)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		server.Handle("echo", echo, amqpx.OnEveryServer()), server.Handle("one", echo),
		server.HandleStream("mirror", mirror),
		server.HandleStream("wait", func(ctx context.Context, _ *amqpx.ServerStream) error {
			<-ctx.Done()
			return ctx.Err()
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	serveUntilEnd(t, server)
	return server
}

// stream opens a stream with one item, and returns how many items came back.
func stream(ctx context.Context, client *amqpx.Client) (n int, err error) {
	for _, failed := range client.Stream(ctx, "mirror", []byte("1")) {
		if failed != nil {
			return n, failed
		}
		n++
	}
	return n, nil
}

// TestProductionCallShapes: what the users of production can do without and with the permissions on
// demand, and what a client is told otherwise.
func TestProductionCallShapes(t *testing.T) {
	t.Parallel()
	p := inProduction(t)
	server := serveShapes(t, p)
	client := p.as(asClient).Client(clientInProduction()...)
	rig.Connected(t, client)
	rig.Call(t, client, "one", nil, amqpx.WithRetry(amqpx.RetryPolicy{}), amqpx.WithHedge(time.Second), amqpx.Idempotent())
	before := server.Stats().OK
	if err := client.Send(rig.Patience(t), "one", nil); err != nil {
		t.Errorf("Send: %v", err)
	}
	rig.Eventually(t, "the server runs the one-way request", func() bool { return server.Stats().OK == before+1 })
	// The server declares the exchange beside its start.
	rig.Eventually(t, "the exchange for calls to all servers is there", func() bool {
		_, err := responses(rig.Patience(t), client, "echo", 1)
		return !errors.Is(err, amqpx.ErrUnroutable)
	})
	want{code: amqpx.CodePermissionDenied, outcome: amqpx.DidNotRun}.check(t, errorOf(responses(rig.Patience(t), client, "echo", 1)))
	_, err := stream(rig.Patience(t), client)
	want{code: amqpx.CodeUnavailable, outcome: amqpx.DidNotRun, is: []error{amqpx.ErrUnroutable}}.check(t, err)
	rig.Call(t, client, "one", nil)
	if n := client.Stats().Reconnects + server.Stats().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}

	p = inProduction(t, "-streams", "-call-all", asClient)
	for range 2 {
		serveShapes(t, p)
	}
	client = p.as(asClient).Client(clientInProduction()...)
	rig.Connected(t, client)
	if n, err := responses(rig.Patience(t), client, "echo", 2); n != 2 || err != nil {
		t.Errorf("CallAll: %d servers, %v", n, err)
	}
	for range 10 {
		if n, err := stream(rig.Patience(t), client); n != 1 || err != nil {
			t.Errorf("a stream: %d items, %v", n, err)
		}
	}
	s, err := client.Open(rig.Patience(t), "wait")
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Send(nil)
	s.Close()
	if _, err := s.Recv(); amqpx.CodeOf(err) != amqpx.CodeCanceled {
		t.Errorf("a canceled stream: %v", err)
	}
	other := p.as(asOther).Client(clientInProduction()...)
	rig.Connected(t, other)
	want{code: amqpx.CodePermissionDenied, outcome: amqpx.DidNotRun}.check(t, errorOf(responses(rig.Patience(t), other, "echo", 1)))
	if n, err := stream(rig.Patience(t), other); n != 1 || err != nil {
		t.Errorf("a stream of another client: %d items, %v", n, err)
	}
	if n := client.Stats().Reconnects + other.Stats().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}
}
