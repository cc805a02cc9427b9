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

// The clients of several queues are on the nodes of their queues, those of a spread queue on the
// nodes in turn.
func TestNodesOfClients(t *testing.T) {
	t.Parallel()
	nodes := []string{"a", "b", "c"}
	for _, tt := range []struct {
		name         string
		env          Environment
		urls, queues []string
	}{
		{"one node", Environment{URL: "u", Queue: "q"}, []string{"u", "u", "u", "u"}, []string{"q", "q", "q", "q"}},
		{"a queue on each node", Environment{URL: "u", Queue: "q", Queues: 3, Nodes: nodes}, []string{"a", "b", "c", "a"}, []string{"q", "q.2", "q.3", "q"}},
		{"a spread queue", Environment{URL: "u", Queue: "q", Spread: nodes}, []string{"a", "b", "c", "a"}, []string{"q", "q", "q", "q"}},
	} {
		for i := range tt.urls {
			if got := tt.env.ofClient(i); got.URL != tt.urls[i] || got.Queue != tt.queues[i] {
				t.Errorf("%s: client %d calls queue %s at %s, want %s at %s", tt.name, i, got.Queue, got.URL, tt.queues[i], tt.urls[i])
			}
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
