//go:build fault

package fault

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
)

// memberScenarios returns faults of a cluster whose queues differ from the servers' own
// declarations.
func memberScenarios() []scenario {
	all := []scenario{
		{
			name: "adopted-companions", about: "SIGKILL to the node of the classic companions of a quorum request queue that was adopted",
			load: paced(amqpx.QueueClassic), place: &placement{queue: 1, clients: 1, servers: []int{1, 2}},
			before: declareApart, fault: loseOne(killed(), companionNode), times: 1,
		},
	}
	for i := range all {
		all[i].gap = 2 * time.Second
		all[i].rules = check.Rules{IdempotentOK: true}
	}
	return all
}

// declareApart declares a quorum request queue, and its companions as classic queues on
// another node.
func declareApart(s *stage) {
	s.t.Helper()
	s.declareAt(s.nodes[1], queueName, amqp.Table{amqp.QueueTypeArg: string(amqpx.QueueQuorum)})
	for _, suffix := range []string{".batch", ".retry"} {
		s.declareAt(s.nodes[0], queueName+suffix, nil)
	}
}

func (s *stage) declareAt(n *clusterNode, queue string, args amqp.Table) {
	s.t.Helper()
	conn, err := amqp.Dial(s.urlAt(n))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // what counts was confirmed.
	ch, err := conn.Channel()
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := ch.QueueDeclare(queue, true, false, false, false, args); err != nil {
		s.t.Fatal(err)
	}
}

// companionNode returns the node of the companions declared by declareApart.
func companionNode(s *stage) *clusterNode { return s.leaders()[queueName+".retry"] }
