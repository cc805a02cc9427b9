package contender

import (
	"slices"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestQueueNames(t *testing.T) {
	t.Parallel()
	for queues, want := range map[int][]string{0: {"q"}, 1: {"q"}, 3: {"q", "q.2", "q.3"}} {
		if got := (Environment{Queue: "q", Queues: queues}).QueueNames(); !slices.Equal(got, want) {
			t.Errorf("%d queues: %v, want %v", queues, got, want)
		}
	}
}

func TestClientsTakeTurns(t *testing.T) {
	t.Parallel()
	all := amqpxClients{{new(amqpx.Client)}, {new(amqpx.Client)}, {new(amqpx.Client)}}
	var many Many = all
	for n := range int64(9) {
		if got := many.Nth(n); got != Caller(all[n%3]) {
			t.Errorf("call %d goes to another client", n)
		}
	}
}
