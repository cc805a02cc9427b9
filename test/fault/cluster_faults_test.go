//go:build fault

package fault

import (
	"slices"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/internal/rig"
)

// away is the absence of a lost node: long enough to distinguish a client waiting for the node
// from a client that continues without it.
const away = 6 * time.Second

// The placements of the scenarios. In each, node 0 is the first node to be lost.
func replyAtRisk() *placement { return &placement{clients: 0, queue: 1, servers: []int{1, 2}} }
func queueAtRisk() *placement { return &placement{queue: 0, clients: 1, servers: []int{1, 2}} }
func linkAtRisk() *placement  { return &placement{servers: []int{0, 1}, queue: 2, clients: 1} }

// paced returns a load that leaves the processors some time, for quorum or classic queues.
func paced(kind amqpx.QueueType, changes ...func(*load)) load {
	l := usual()
	l.kind, l.rate, l.callers = kind, 300, 64
	for _, change := range changes {
		change(&l)
	}
	return l
}

func direct(l *load)      { l.direct = true }
func keptReplies(l *load) { l.replies = amqpx.QueueQuorum }
func persistent(l *load)  { l.persistent = true }
func one(l *load)         { l.clients = 1 }

func slowHeartbeat(l *load) { l.heartbeat = 20 * time.Second }

// clusterScenarios returns the faults of a cluster of three nodes.
func clusterScenarios() []scenario {
	const quorum, classic = amqpx.QueueQuorum, amqpx.QueueClassic
	const single = amqpx.BatchOff
	all := []scenario{
		{
			name: "kill-reply-quorum", about: "SIGKILL to the node of the reply queues", short: true,
			load: paced(quorum), place: replyAtRisk(), fault: loseOne(killed(), replyQueueNode), times: 2,
		},
		{
			name: "kill-reply-quorum-single", about: "the same, batch off", batch: single,
			load: paced(quorum), place: replyAtRisk(), fault: loseOne(killed(), replyQueueNode), times: 2,
		},
		{
			name: "kill-reply-classic", about: "the same, classic persistent request queue on another node",
			load: paced(classic, persistent), place: replyAtRisk(), fault: loseOne(killed(), replyQueueNode), times: 1,
		},
		{
			name: "kill-reply-kept", about: "the same, quorum reply queues", load: paced(quorum, keptReplies),
			place: replyAtRisk(), fault: loseOne(killed(), replyQueueNode), times: 2,
		},
		{
			name: "kill-reply-direct", about: "the node of the connections of clients that use direct reply-to",
			load: paced(quorum, direct), place: replyAtRisk(), fault: loseOne(killed(), replyQueueNode), times: 2,
		},
		{
			name: "kill-leader-quorum", about: "SIGKILL to the node of the request queue's leader",
			load: paced(quorum), place: queueAtRisk(), fault: loseOne(killed(), requestQueueNode), times: 2,
		},
		{
			name: "kill-leader-quorum-single", about: "the same, batch off", batch: single,
			load: paced(quorum), place: queueAtRisk(), fault: loseOne(killed(), requestQueueNode), times: 2,
		},
		{
			name: "kill-leader-direct", about: "SIGKILL to the node of leader and clients, direct reply-to",
			load:  paced(quorum, direct),
			place: &placement{clients: 0, queue: 0, servers: []int{1, 2}}, fault: loseOne(killed(), requestQueueNode), times: 2,
		},
		{
			name: "kill-classic", about: "SIGKILL to the node of a classic request queue", short: true,
			load: paced(classic), place: queueAtRisk(), fault: loseOne(killed(), requestQueueNode), times: 2,
		},
		{
			name: "kill-classic-single", about: "the same, batch off, persistent", batch: single,
			load: paced(classic, persistent), place: queueAtRisk(), fault: loseOne(killed(), requestQueueNode), times: 2,
		},
		{
			name: "kill-classic-crowd", about: "the same, transient, 256 callers as fast as answers come", batch: single,
			load:  paced(classic, one, func(l *load) { l.rate, l.callers = 0, 256 }),
			place: queueAtRisk(), fault: loseOne(killed(), requestQueueNode), times: 1,
		},
		{
			name: "kill-server-node", about: "SIGKILL to a node with nothing but a server's connections",
			load: paced(quorum), place: linkAtRisk(), fault: loseOne(killed(), serverNode), times: 2,
		},
		{
			name: "stop-reply-quorum", about: "the node of the reply queues stopped and started",
			load: paced(quorum), place: replyAtRisk(), fault: loseOne(stopped(), replyQueueNode), times: 2,
		},
		{
			name: "stop-classic", about: "the node of a classic request queue stopped and started", batch: single,
			load: paced(classic, persistent), place: queueAtRisk(), fault: loseOne(stopped(), requestQueueNode), times: 2,
		},
		{
			name: "rolling-quorum", about: "each node stopped and started in turn",
			load: paced(quorum), place: replyAtRisk(), fault: rollNodes, rolling: true,
		},
		{
			name: "rolling-drained", about: "each node drained, stopped and started in turn",
			load: paced(quorum), place: replyAtRisk(), fault: rollDrained, rolling: true,
		},
		{
			name: "any-node", about: "SIGKILL to each node in turn, each at a random moment",
			load: paced(quorum), place: replyAtRisk(), fault: loseAny, times: 3,
		},
		{
			name: "any-node-reply-direct", about: "the same, direct reply-to",
			load: paced(quorum, direct), place: replyAtRisk(), fault: loseAny, times: 3,
		},
		{
			name: "any-node-classic", about: "SIGKILL to each node without the classic request queue in turn, each at a random moment",
			load: paced(classic), place: replyAtRisk(), fault: loseAnyOther, times: 4,
		},
		{
			name: "rolling-classic", about: "each node stopped and started in turn, classic queues, batch off", batch: single,
			load: paced(classic), place: replyAtRisk(), fault: rollNodes,
		},
		{
			name: "minority", about: "two of three nodes killed, and back",
			load: paced(quorum), place: queueAtRisk(), fault: minority, times: 2,
		},
		{
			name: "suspended-reply", about: "SIGSTOP to the node of the reply queues for 14 s, then restarted",
			load: paced(quorum), place: replyAtRisk(), fault: suspend(replyQueueNode),
		},
		{
			name: "suspended-link", about: "the node of the connections for 14 s, which heartbeats of 20 s do not notice, then partitioned, then restarted",
			load: paced(quorum, slowHeartbeat), place: replyAtRisk(), fault: suspendFor(20*time.Second, replyQueueNode),
		},
		{
			name: "suspended-leader", about: "SIGSTOP to the node of the leader for 14 s, then restarted",
			load: paced(quorum), place: queueAtRisk(), fault: suspend(requestQueueNode),
		},
		{
			name: "partition-reply", about: "the node of the reply queues cut off from the others for 8 s",
			load: paced(quorum), place: replyAtRisk(), fault: loseFor(8*time.Second, alone(), replyQueueNode), times: 2,
		},
		{
			name: "partition-leader", about: "the node of the leader cut off from the others for 8 s",
			load: paced(quorum), place: queueAtRisk(), fault: loseFor(8*time.Second, alone(), requestQueueNode), times: 2,
		},
		{
			name: "leader-transfer", about: "the queues' leadership handed to another node",
			load: paced(quorum), place: queueAtRisk(), fault: transferLeaders, times: 4,
		},
		{
			name: "rebalance", about: "`rabbitmq-queues rebalance all`",
			load: paced(classic), place: queueAtRisk(), fault: rebalance, times: 2,
		},
		{
			name: "drain-node", about: "`rabbitmq-upgrade drain` of the node with everything, revived 6 s later",
			load: paced(quorum), place: &placement{servers: []int{0}}, fault: drainNode, times: 2,
		},
		{
			name: "drain-node-classic", about: "the same, classic queues, batch off", batch: single,
			load: paced(classic), place: &placement{servers: []int{0}}, fault: drainNode, times: 1,
		},
	}
	for i := range all {
		all[i].gap = 2 * time.Second
		all[i].rules = check.Rules{IdempotentOK: true}
	}
	return all
}

// loseOne returns a fault that loses the node with the given role and restores it later.
func loseOne(how manner, role func(*stage) *clusterNode) func(*stage) {
	return loseFor(away, how, role)
}

func loseFor(d time.Duration, how manner, role func(*stage) *clusterNode) func(*stage) {
	return func(s *stage) {
		s.t.Helper()
		n := role(s)
		s.lose(how, n)
		s.wait(d)
		s.regain(how, n)
	}
}

// rollNodes restarts the nodes in turn, each after the return of the previous node.
func rollNodes(s *stage) {
	for _, n := range s.nodes {
		s.lose(stopped(), n)
		s.wait(away / 2)
		s.regain(stopped(), n)
		s.pause(time.Second)
	}
}

// rollDrained is rollNodes as the run book says: each node is drained before its end.
func rollDrained(s *stage) {
	for _, n := range s.nodes {
		rig.Eventually(s.t, "the node is drained", func() bool {
			_, err := n.Tool("rabbitmq-upgrade", "-q", "drain")
			return err == nil
		})
		s.lose(stopped(), n)
		s.regain(stopped(), n)
		s.pause(time.Second)
	}
}

// loseAny kills the next of the nodes, so that three faults kill each of them once.
func loseAny(s *stage) {
	s.t.Helper()
	s.loseNext(s.nodes)
}

// loseAnyOther kills the next of the two nodes without the request queue, so that four faults kill
// each of them twice, which is enough losses for the median of judgeCluster.
func loseAnyOther(s *stage) {
	s.t.Helper()
	home := requestQueueNode(s)
	s.loseNext(slices.DeleteFunc(slices.Clone(s.nodes), func(n *clusterNode) bool { return n == home }))
}

// loseNext kills the next of these nodes, at a random moment.
func (s *stage) loseNext(nodes []*clusterNode) {
	s.t.Helper()
	s.wait(time.Duration(s.random.Int64N(int64(2 * time.Second))))
	n := nodes[s.injected%len(nodes)]
	s.lose(killed(), n)
	s.wait(away)
	s.regain(killed(), n)
}

// minority kills two nodes, so quorum queues have no majority.
func minority(s *stage) {
	two := slices.Clone(s.nodes)
	s.random.Shuffle(len(two), func(i, j int) { two[i], two[j] = two[j], two[i] })
	s.lose(killed(), two[:2]...)
	s.wait(away)
	s.regain(killed(), two[:2]...)
}

// suspend pauses the process of a node for longer than the other nodes wait for it. After the
// node resumes, RabbitMQ stays partitioned: clients of the node must find another node until
// the operator restarts the suspended node.
func suspend(role func(*stage) *clusterNode) func(*stage) { return suspendFor(away, role) }

// suspendFor is suspend with a time between the node's resumption and its restart.
func suspendFor(d time.Duration, role func(*stage) *clusterNode) func(*stage) {
	return func(s *stage) {
		s.t.Helper()
		n := role(s)
		s.lose(suspended(), n)
		s.wait(14 * time.Second)
		n.Do("resume")
		s.wait(d)
		s.regain(suspended(), n)
	}
}

// alone isolates a node from the other nodes by a different Erlang cookie. The node pauses
// itself until the cluster is joined again (pause_minority).
func alone() manner {
	return manner{
		lose: func(n *clusterNode) {
			n.Eval("[begin erlang:set_cookie(N, alone), erlang:disconnect_node(N) end || N <- nodes()].")
		},
		regain: func(n *clusterNode) { n.Eval(togetherAgain) },
		ends:   true,
	}
}

// togetherAgain restores the cookie.
const togetherAgain = "C = erlang:get_cookie(), [erlang:set_cookie(N, C) || N <- rabbit_nodes:all()]."

// join restores the cookie on every reachable node.
func (s *stage) join() {
	for _, n := range s.nodes {
		_, _ = n.Tool("rabbitmqctl", "-q", "eval", togetherAgain)
	}
}

// transferLeaders transfers the leadership of every quorum queue to the next node.
func transferLeaders(s *stage) {
	s.t.Helper()
	before := s.leaders()
	next := s.nodes[(before[queueName].role+1)%len(s.nodes)]
	s.alive().Eval(`[ra:transfer_leadership(P, {element(1, P), '` + next.Name + `'})
		|| Q <- rabbit_amqqueue:list(<<"` + s.tenant.Vhost + `">>), {_, _} = P <- [amqqueue:get_pid(Q)]].`)
	rig.Eventually(s.t, "the leadership has moved", func() bool { return s.leaders()[queueName] == next })
}

// rebalance distributes leaders and masters over the nodes.
func rebalance(s *stage) {
	s.t.Helper()
	if out, err := s.alive().Tool("rabbitmq-queues", "-q", "rebalance", "all"); err != nil {
		s.t.Errorf("%v: %s", err, out)
	}
}

// drainNode puts the node of the request queue into maintenance and revives it. The command of
// RabbitMQ 3.10 may fail while many connections end at the same time, and is then repeated.
func drainNode(s *stage) {
	s.t.Helper()
	n := requestQueueNode(s)
	begun := time.Now()
	rig.Eventually(s.t, "the node is drained", func() bool {
		_, err := n.Tool("rabbitmq-upgrade", "-q", "drain")
		return err == nil
	})
	s.wait(away)
	if out, err := n.Tool("rabbitmq-upgrade", "-q", "revive"); err != nil {
		s.t.Errorf("%v: %s", err, out)
	}
	s.record(ledger.Entry{Kind: ledger.Fault, Name: "drain", At: begun, Until: time.Now()})
	s.whole()
}
