//go:build fault

package fault

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestClusterSlowQueue publishes single requests to a quorum queue that lost its majority. The
// broker then stops reading from the publishing connection, while the node of the connection
// is healthy: the client must keep its connections.
func TestClusterSlowQueue(t *testing.T) {
	const (
		calls     = 2000
		heartbeat = 5 * time.Second
		patience  = 4 * heartbeat // longer than the 1.5 heartbeats after which a silent connection counts as dead
	)
	nodes := rig.TheCluster(t)
	near, home := nodes[0], nodes[2]
	declared := rig.On(t, home.URL)
	declared.Queue.Type = amqpx.QueueQuorum
	declared.Declare(true, amqp.Table{"x-queue-type": "quorum", "x-quorum-initial-group-size": 1})
	r := rig.Beyond(t, near.URL)
	r.Queue = declared.Queue
	r.Start(rig.Methods{"b": func(_ context.Context, req *amqpx.Request) ([]byte, error) { return req.Body, nil }})
	client := r.Ready(amqpx.WithHeartbeat(heartbeat), amqpx.WithBatch(amqpx.BatchOff), amqpx.WithCallOptions(amqpx.WaitForServer()))
	rig.Call(t, client, "b", []byte("before"))
	home.Do("kill")
	t.Cleanup(func() { home.Do("start") })

	body := bytes.Repeat([]byte("x"), 1<<10)
	outcomes := make(chan error, calls)
	ctx := rig.Within(t, patience)
	var callers sync.WaitGroup
	for range calls {
		callers.Go(func() {
			_, err := client.Call(ctx, "b", body)
			outcomes <- err
		})
	}
	callers.Wait()
	close(outcomes)
	counts, lost := make(map[string]int), 0
	for err := range outcomes {
		counts[amqpx.CodeOf(err).String()]++
		if errors.Is(err, amqpx.ErrOutcomeUnknown) {
			lost++
		}
	}
	t.Logf("outcomes by code: %v", counts)
	if lost > 0 {
		t.Errorf("%d calls ended in %v, although the client's node is healthy", lost, amqpx.ErrOutcomeUnknown)
	}
	if n := client.Stats().Reconnects; n != 0 {
		t.Errorf("the client connected %d times again", n)
	}
}

// TestClusterDrain puts a node with many connections of clients and servers into maintenance.
// On RabbitMQ 3.10 the command fails if a connection on its list has ended before its turn.
func TestClusterDrain(t *testing.T) {
	const pairs, rounds = 5, 3
	home := rig.TheCluster(t)[1]
	r := rig.On(t, home.URL)
	r.Declare(true, nil)
	var clients []*amqpx.Client
	for range pairs {
		r.Start(rig.Methods{"b": func(_ context.Context, req *amqpx.Request) ([]byte, error) { return req.Body, nil }})
		clients = append(clients, r.Client(amqpx.WithCallOptions(amqpx.WaitForServer())))
	}
	for round := range rounds {
		for _, c := range clients {
			rig.Call(t, c, "b", []byte("x"))
		}
		_, err := home.Tool("rabbitmq-upgrade", "-q", "drain")
		if err != nil {
			t.Errorf("round %d: the first attempt to drain the node failed: %v", round, err)
		}
		if out, err := home.Tool("rabbitmq-upgrade", "-q", "revive"); err != nil {
			t.Fatalf("revive: %v: %s", err, out)
		}
	}
}
