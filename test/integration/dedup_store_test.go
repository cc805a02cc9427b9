//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
	"rabbitmq-rpc/pkg/amqpxredis"
	"rabbitmq-rpc/test/internal/rig"
)

// sharing returns the options of a server with a store in Redis, with room for one request.
func sharing(store *rig.Redis) []amqpx.ServerOption {
	return []amqpx.ServerOption{amqpx.WithDedupStore(store.Store()), amqpx.WithWorkers(1), amqpx.WithPrefetch(1)}
}

// numberedRuns returns a handler that responds with the number of its run once release is closed, and
// tells each start.
func numberedRuns(release <-chan struct{}) (h amqpx.Handler, runs *atomic.Int64, entered <-chan struct{}) {
	runs, starts := new(atomic.Int64), make(chan struct{}, 16)
	return func(context.Context, *amqpx.Request) ([]byte, error) {
		n := runs.Add(1)
		starts <- struct{}{}
		<-release
		return fmt.Append(nil, n), nil
	}, runs, starts
}

// TestRedisStoreKeepsItsPromises runs the check for stores on a real Redis.
func TestRedisStoreKeepsItsPromises(t *testing.T) {
	t.Parallel()
	if err := amqpxtest.CheckDedupStore(rig.Patience(t), rig.StartRedis(t).Store(), "test/"); err != nil {
		t.Error(err)
	}
}

// TestDedupStoreInRedis: the same key, twice at the same time and once later, runs once on two servers.
func TestDedupStoreInRedis(t *testing.T) {
	t.Parallel()
	r, store, release := rig.New(t), rig.StartRedis(t), make(chan struct{})
	h, runs, entered := numberedRuns(release)
	a := r.Serve(rig.Methods{"m": h}, sharing(store)...)
	b := r.Serve(rig.Methods{"m": h}, sharing(store)...)
	client := r.Ready(amqpx.WithBatch(amqpx.BatchOff)) // a batch would go to one server
	key := amqpx.WithIdempotencyKey("key")
	first := begin(rig.Patience(t), client, "m", []byte("body"), key)
	rig.Recv(t, entered, "the first request to run")
	second := begin(rig.Patience(t), client, "m", []byte("body"), key)
	rig.Eventually(t, "both servers have a request", func() bool { return a.Stats().Requests == 1 && b.Stats().Requests == 1 })
	close(release)
	for _, call := range []<-chan outcome{first, second} {
		if got := rig.Recv(t, call, "a response"); string(got.response) != "1" || got.err != nil {
			t.Errorf("got %q, %v, want the response of the only run", got.response, got.err)
		}
	}
	if replayed := a.Stats().Replayed + b.Stats().Replayed; replayed != 1 || runs.Load() != 1 {
		t.Errorf("%d runs and %d stored responses, want 1 and 1", runs.Load(), replayed)
	}
	for _, s := range []*rig.Server{a, b} {
		if err := s.Drain(); err != nil {
			t.Error(err)
		}
	}
	r.Serve(rig.Methods{"m": h}, sharing(store)...) // it remembers nothing itself
	if got := rig.Call(t, client, "m", []byte("body"), key); string(got) != "1" {
		t.Errorf("got %q from a new server, want the stored response", got)
	}
	_, err := client.Call(rig.Patience(t), "m", []byte("other"), key)
	want{code: amqpx.CodeFailedPrecondition, outcome: amqpx.DidNotRun, remote: true}.check(t, err)
	if got := rig.Call(t, client, "m", []byte("body"), amqpx.WithIdempotencyKey("other")); string(got) != "2" {
		t.Errorf("got %q for another key, want a run", got)
	}
}

// TestRedeliveredRequestWhoseResponseAnotherServerSent: a server loses its connection after its response,
// before it has acknowledged the request. The broker delivers the request to another server, which does
// not run it.
func TestRedeliveredRequestWhoseResponseAnotherServerSent(t *testing.T) {
	t.Parallel()
	r, store, release := rig.New(t), rig.StartRedis(t), make(chan struct{})
	h, runs, entered := numberedRuns(release)
	proxy := r.Proxy()
	r.ServeAt(proxy.URL(), rig.Methods{"m": h}, sharing(store)...)
	client := r.Ready(amqpx.WithBatch(amqpx.BatchOff))
	call := begin(rig.Patience(t), client, "m", []byte("body"), amqpx.WithIdempotencyKey("key"))
	rig.Recv(t, entered, "the request to run")
	b := r.Serve(rig.Methods{"m": h}, sharing(store)...)
	proxy.MuteAt(rig.Ack) // the confirm of the response
	close(release)
	if got := rig.Recv(t, call, "the response"); string(got.response) != "1" || got.err != nil {
		t.Errorf("got %q, %v", got.response, got.err)
	}
	proxy.Refuse(true)
	proxy.Cut()
	rig.Eventually(t, "the other server answers from the store", func() bool { return b.Stats().Replayed == 1 })
	if n := runs.Load(); n != 1 {
		t.Errorf("%d runs, want 1", n)
	}
}

// The environment of the server that TestServerIsKilledWithAClaim kills: a process of this program.
const (
	envMortalQueue = "AMQPX_TEST_MORTAL_QUEUE"
	envMortalRedis = "AMQPX_TEST_MORTAL_REDIS"
)

// mortalLease is the lease of the claim of a killed server.
const mortalLease = 3 * time.Second

// serveUntilKilled is the process of the server that is killed: it runs a request that does not end.
func serveUntilKilled(ctx context.Context) error {
	client := redis.NewClient(&redis.Options{Addr: os.Getenv(envMortalRedis), ContextTimeoutEnabled: true})
	defer func() { _ = client.Close() }()
	store, err := amqpxredis.New(client)
	if err != nil {
		return err
	}
	server, err := amqpx.NewServer(rig.URL(), amqpx.WithQueue(amqpx.Queue{Name: os.Getenv(envMortalQueue), Type: amqpx.QueueClassic}),
		amqpx.WithDedupStore(store), amqpx.WithDedupLease(mortalLease))
	if err != nil {
		return err
	}
	if err := server.Handle("m", func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		_, _ = fmt.Fprintln(os.Stderr, "the request runs")
		<-ctx.Done()
		return nil, ctx.Err()
	}); err != nil {
		return err
	}
	return server.Serve(ctx)
}

// TestServerIsKilledWithAClaim: the broker delivers the request of a killed server to the next one, which
// runs it when the lease of the claim has ended.
func TestServerIsKilledWithAClaim(t *testing.T) {
	t.Parallel()
	r, store, release := rig.New(t), rig.StartRedis(t), make(chan struct{})
	close(release)
	killed := rig.Run(t, []string{envMortalQueue + "=" + r.Queue.Name, envMortalRedis + "=" + store.Address}, os.Args[0])
	client := r.Ready(amqpx.WithBatch(amqpx.BatchOff), amqpx.WithCallOptions(amqpx.WaitForServer()))
	call := begin(rig.Patience(t), client, "m", []byte("body"), amqpx.WithIdempotencyKey("key"))
	killed.Says("the request runs")
	h, runs, _ := numberedRuns(release)
	next := r.Serve(rig.Methods{"m": h}, append(sharing(store), amqpx.WithDedupLease(mortalLease))...)
	died := time.Now()
	killed.Signal(syscall.SIGKILL)
	rig.Eventually(t, "the next server has the request", func() bool { return next.Stats().Requests > 0 })
	got := rig.Recv(t, call, "the response")
	if took := time.Since(died); string(got.response) != "1" || got.err != nil || took < mortalLease/3 {
		t.Errorf("got %q, %v after %v, want a run after the end of the claim", got.response, got.err, took)
	}
	if n := runs.Load(); n != 1 {
		t.Errorf("%d runs, want 1", n)
	}
}

// TestRedisIsAway: without Redis a request with a key does not run, and runs when Redis is back.
func TestRedisIsAway(t *testing.T) {
	t.Parallel()
	r, store, release := rig.New(t), rig.StartRedis(t), make(chan struct{})
	close(release)
	h, runs, _ := numberedRuns(release)
	r.Serve(rig.Methods{"m": h}, sharing(store)...)
	client := r.Ready(amqpx.WithBatch(amqpx.BatchOff))
	key := amqpx.WithIdempotencyKey("key")
	store.Kill()
	_, err := client.Call(rig.Within(t, 1900*time.Millisecond), "m", []byte("body"), key) // the claim fails after a second, and the hint is a second
	want{code: amqpx.CodeUnavailable, outcome: amqpx.DidNotRun, remote: true}.check(t, err)
	if n := runs.Load(); n != 0 {
		t.Errorf("%d runs without Redis", n)
	}
	if got := rig.Call(t, client, "m", []byte("body")); string(got) != "1" {
		t.Errorf("got %q without a key", got)
	}
	retried := client.Stats().Retried
	call := begin(rig.Patience(t), client, "m", []byte("body"), key)
	rig.Eventually(t, "the call is made again", func() bool { return client.Stats().Retried > retried })
	store.Start()
	if got := rig.Recv(t, call, "the response"); string(got.response) != "2" || got.err != nil {
		t.Errorf("got %q, %v, want a run when Redis is back", got.response, got.err)
	}
	if got := rig.Call(t, client, "m", []byte("body"), key); string(got) != "2" {
		t.Errorf("got %q, want the stored response", got)
	}
}
