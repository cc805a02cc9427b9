//go:build fault

package fault

import (
	"context"
	"errors"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestClusterStatus kills the node of a queue and checks the status of a new server and the
// error of a client's call, both connected to another node. The queue without a majority is a
// quorum queue with one member.
func TestClusterStatus(t *testing.T) {
	nodes := rig.TheCluster(t)
	dead := amqpx.FaultQueueNodeDown
	if rig.Major() != "3" {
		dead = amqpx.FaultQueueSilent // RabbitMQ 4 does not respond
	}
	near, home := nodes[0], nodes[2]
	cases := map[string]struct {
		kind amqpx.QueueType
		args amqp.Table
		want amqpx.FaultKind
	}{
		"classic queue on a dead node":  {amqpx.QueueClassic, nil, dead},
		"quorum queue without majority": {amqpx.QueueQuorum, amqp.Table{"x-queue-type": "quorum", "x-quorum-initial-group-size": 1}, amqpx.FaultQueueSilent},
	}
	queues := make(map[string]amqpx.Queue)
	for name, c := range cases {
		r := rig.On(t, home.URL)
		r.Queue.Type = c.kind
		r.Declare(true, c.args)
		queues[name] = r.Queue
	}
	home.Do("kill")
	t.Cleanup(func() { home.Do("start") })
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := rig.Beyond(t, near.URL)
			r.Queue = queues[name]
			server := r.Start(rig.Methods{"b": func(context.Context, *amqpx.Request) ([]byte, error) { return nil, nil }})
			t.Cleanup(func() { t.Logf("status of the server: %+v", server.Status()) })
			rig.Eventually(t, "the server says what is wrong with its queue", func() bool {
				st := server.Status()
				return st.Fault == c.want && !st.Ready()
			})
			t.Logf("the server says: %v", server.Status().Err)
			client := r.Ready()
			_, err := client.Call(rig.Within(t, 5*time.Second), "b", nil)
			t.Logf("a call ends in: %v", err)
			if !errors.Is(err, amqpx.ErrQueueUnavailable) {
				t.Errorf("a call ended in %v", err)
			}
		})
	}
}
