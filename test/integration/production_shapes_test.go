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

// shareKey makes calls with an idempotency key to two servers of production with one store. The broker
// needs no permission for the store, and the key belongs to the user whom the broker has validated.
func shareKey(t *testing.T, p *production) {
	t.Helper()
	store, release := rig.StartRedis(t), make(chan struct{})
	h, runs, entered := numberedRuns(release)
	var servers []*amqpx.Server
	for range 2 {
		server, err := amqpx.NewServer(p.url(asServer), append(serverInProduction(t), sharing(store)...)...)
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Handle("numbered", h); err != nil {
			t.Fatal(err)
		}
		serveUntilEnd(t, server)
		servers = append(servers, server)
	}
	client := p.as(asClient).Client(append(clientInProduction(), amqpx.WithBatch(amqpx.BatchOff))...)
	rig.Connected(t, client)
	key := amqpx.WithIdempotencyKey("key")
	first := begin(rig.Patience(t), client, "numbered", []byte("body"), key)
	rig.Recv(t, entered, "the first request to run")
	second := begin(rig.Patience(t), client, "numbered", []byte("body"), key)
	rig.Eventually(t, "both servers have a request", func() bool {
		return servers[0].Stats().Requests == 1 && servers[1].Stats().Requests == 1
	})
	close(release)
	for _, call := range []<-chan outcome{first, second} {
		if got := rig.Recv(t, call, "a response"); string(got.response) != "1" || got.err != nil {
			t.Errorf("got %q, %v, want the response of the only run", got.response, got.err)
		}
	}
	if n := runs.Load(); n != 1 {
		t.Errorf("%d runs, want 1", n)
	}
	other := p.as(asOther).Client(clientInProduction()...)
	rig.Connected(t, other)
	if got := rig.Call(t, other, "numbered", []byte("body"), key); string(got) != "2" {
		t.Errorf("another user with the same key got %q, want a run of its own", got)
	}
	if n := client.Stats().Reconnects + other.Stats().Reconnects + servers[0].Stats().Reconnects + servers[1].Stats().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}
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

	shareKey(t, inProduction(t))

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
