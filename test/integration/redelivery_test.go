//go:build integration

package integration

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// mortal holds the living server and its predecessors.
type mortal struct {
	r     *rig.Rig
	stops atomic.Int64 // number of stops
	again chan struct{}

	mu  sync.Mutex
	all []*rig.Server
}

// mortals keeps a server of r alive; the method "stop" stops the server.
func mortals(t *testing.T, r *rig.Rig) *mortal {
	t.Helper()
	m := &mortal{r: r, again: make(chan struct{}, 100)}
	m.again <- struct{}{}
	go func() { // a new server for each stopped server; ends with the test
		for range m.again {
			m.start()
		}
	}()
	t.Cleanup(func() { close(m.again) })
	return m
}

func (m *mortal) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var s *rig.Server
	made := make(chan struct{})
	s = m.r.Start(rig.Methods{"echo": echo, "stop": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		<-made
		m.stops.Add(1)
		s.Server.Close()
		<-ctx.Done()
		m.again <- struct{}{}
		return nil, ctx.Err()
	}})
	close(made)
	m.all = append(m.all, s)
}

// drain ends the living server, and waits for the end of all.
func (m *mortal) drain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.all {
		_ = s.Drain() // most of them were stopped in the middle
	}
}

// TestRequestThatStopsEveryServer: a request which stops every server is dead-lettered, and
// other calls are answered. test/fault does the same with dying processes.
func TestRequestThatStopsEveryServer(t *testing.T) {
	t.Parallel()
	for _, kind := range []amqpx.QueueType{amqpx.QueueClassic, amqpx.QueueQuorum} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Queue.Type = kind
			servers := mortals(t, r)
			client := r.Ready(amqpx.WithCallOptions(amqpx.WaitForServer()))
			poison := begin(rig.Patience(t), client, "stop", []byte("poison"))
			var beside []<-chan outcome
			for range 50 {
				beside = append(beside, begin(rig.Patience(t), client, "echo", []byte("x")))
			}
			for _, call := range beside {
				if got := rig.Recv(t, call, "a response beside the poison"); got.err != nil {
					t.Errorf("beside the poison: %v", got.err)
				}
			}
			err := rig.Recv(t, poison, "the call to settle").err
			want{code: amqpx.CodeInternal, outcome: amqpx.MayHaveRun, remote: true}.check(t, err)
			if n := servers.stops.Load(); n != amqpx.DefaultDeliveryLimit {
				t.Errorf("it ran %d times, want %d", n, amqpx.DefaultDeliveryLimit)
			}
			deadLetter(t, r)
			if got := rig.Call(t, client, "echo", []byte("after")); string(got) != "after" {
				t.Errorf("the next call got %q", got)
			}
		})
	}
}

// deadLetter takes the only dead letter and checks it.
func deadLetter(t *testing.T, r *rig.Rig) {
	t.Helper()
	d, ok, err := r.Raw().Get(r.Queue.Name+".dead", true)
	if err != nil || !ok || d.MessageCount != 0 {
		t.Fatalf("dead letters: found %v, %d more, %v; want one", ok, d.MessageCount, err)
	}
	if reason, _ := d.Headers["rpc-dead-reason"].(string); !strings.Contains(reason, "delivered 5 times") {
		t.Errorf("reason %q", reason)
	}
	if d.AppId != "stop" || string(d.Body) != "poison" || d.Headers["rpc-dead-queue"] != r.Queue.Name ||
		d.Headers["rpc-deliveries"] != int64(5) || d.DeliveryMode != amqp.Persistent {
		t.Errorf("dead letter %+v", d)
	}
}

// onceServer is a server with an at-most-once method.
type onceServer struct {
	*amqpx.Server

	drain func() // waits for the end
}

// serveOnce starts a onceServer.
func serveOnce(t *testing.T, r *rig.Rig, h amqpx.Handler) onceServer {
	t.Helper()
	server, err := amqpx.NewServer(r.URL, amqpx.WithQueue(r.Queue))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Handle("once", h, amqpx.AtMostOnce()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan struct{})
	go func() { // ends with the test
		defer close(served)
		_ = server.Serve(ctx)
	}()
	t.Cleanup(func() {
		stop()
		server.Close()
		<-served
	})
	drain := func() {
		stop()
		rig.Recv(t, served, "the server to stop")
	}
	if err := server.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	return onceServer{server, drain}
}

// TestAtMostOnceOverTheEndOfAServer: the second server does not run a redelivered at-most-once
// request of a stopped server, and the caller gets an error at once.
func TestAtMostOnceOverTheEndOfAServer(t *testing.T) {
	t.Parallel()
	for _, opts := range [][]amqpx.CallOption{nil, {amqpx.Idempotent()}} {
		r := rig.New(t)
		var runs atomic.Int64
		entered := make(chan struct{}, 8)
		h := func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
			runs.Add(1)
			entered <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		first := serveOnce(t, r, h)
		client := r.Ready()
		call := begin(rig.Patience(t), client, "once", []byte("x"), opts...)
		rig.Recv(t, entered, "the request to run")
		serveOnce(t, r, h)
		first.Close()
		want{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, remote: true}.
			check(t, rig.Recv(t, call, "the call to settle").err)
		if n := runs.Load(); n != 1 {
			t.Errorf("it ran %d times", n)
		}
	}
}

// TestServerKnowsARequestThatComesBack: a server recognises a running request redelivered to
// it after a lost connection.
func TestServerKnowsARequestThatComesBack(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	proxy := r.Proxy()
	server := r.StartAt(proxy.URL(), rig.Methods{"slow": slow.handle})
	if err := server.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	client := r.Ready()
	call := begin(rig.Patience(t), client, "slow", []byte("x"), amqpx.WaitForServer())
	rig.Recv(t, slow.entered, "the request to run")
	proxy.Cut()
	rig.Eventually(t, "the request comes back", func() bool { return server.Stats().InFlight == 2 })
	close(slow.release)
	if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "x" {
		t.Errorf("got %q, %v", got.response, got.err)
	}
	if n := len(slow.entered); n != 0 {
		t.Errorf("%d more runs", n)
	}
	nothingHeld(t, r, server)
}

// TestStoredResponse: a repeated call with the same key gets the stored response, also on
// another connection.
func TestStoredResponse(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	var runs atomic.Int64
	server := r.Serve(rig.Methods{"count": func(context.Context, *amqpx.Request) ([]byte, error) {
		return []byte{byte('0' + runs.Add(1))}, nil
	}})
	for range 3 {
		if got := rig.Call(t, r.Ready(), "count", nil, amqpx.WithIdempotencyKey("order 7")); string(got) != "1" {
			t.Errorf("got %q, want the stored response", got)
		}
	}
	if got := rig.Call(t, r.Ready(), "count", nil, amqpx.WithIdempotencyKey("order 8")); string(got) != "2" {
		t.Errorf("got %q, want a new run", got)
	}
	if got := server.Stats().Replayed; got != 2 {
		t.Errorf("%d replayed, want 2", got)
	}
}

// TestBusyServerRefusesWhatWouldExpire: a server refuses a call if its only worker is busy for
// longer than the call's deadline. The refusal comes while the worker is still busy, not at
// the deadline.
func TestBusyServerRefusesWhatWouldExpire(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	const takes, learns = 100 * time.Millisecond, 20
	var runs atomic.Int64
	release := make(chan struct{})
	server := r.Serve(rig.Methods{"work": func(_ context.Context, _ *amqpx.Request) ([]byte, error) {
		if runs.Add(1) > learns {
			<-release
			return nil, nil
		}
		timer := time.NewTimer(takes) // the work
		defer timer.Stop()
		<-timer.C
		return nil, nil
	}}, amqpx.WithWorkers(1), amqpx.WithPrefetch(100))
	client := r.Ready()
	for range learns { // the server learns the duration
		rig.Call(t, client, "work", nil)
	}
	var waiting []<-chan outcome
	for range 30 { // 3 s of work
		waiting = append(waiting, begin(rig.Patience(t), client, "work", nil))
	}
	rig.Eventually(t, "the server has them", func() bool { return server.Stats().InFlight == 30 })
	// The worker is blocked, so the refusal cannot come from a free worker.
	_, err := client.Call(rig.Within(t, 2*time.Second), "work", nil)
	want{code: amqpx.CodeResourceExhausted, outcome: amqpx.DidNotRun, remote: true}.check(t, err)
	close(release)
	for _, call := range waiting {
		if got := rig.Recv(t, call, "a response"); got.err != nil {
			t.Errorf("a call with time enough: %v", got.err)
		}
	}
}
