//go:build fault

package fault

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/fault/internal/report"
	"rabbitmq-rpc/test/internal/rig"
)

// placement assigns nodes of the cluster: for the leader or master of the request queue and
// its companions, for each server in turn, and for the clients with their reply queues. The
// numbers are roles; the seed determines the node of each role.
type placement struct {
	queue, clients int
	servers        []int
}

// clusterNode is a node with its role.
type clusterNode struct {
	rig.Node

	role int
	down bool
}

// loss records a loss of nodes: its time, the start of the nodes' return, and the time of
// their service again.
type loss struct {
	at, back, until time.Time
	clients         []string
	// outage means that the request queue was unavailable, too, because its node or a majority
	// was lost.
	outage bool
	// quiet means that the nodes neither end nor respond, so clients must first abandon their
	// connections.
	quiet bool
}

// takeCluster finds the nodes and assigns the roles.
func (s *stage) takeCluster() {
	s.t.Helper()
	for _, n := range rig.TheCluster(s.t) {
		s.nodes = append(s.nodes, &clusterNode{Node: n})
	}
	s.random.Shuffle(len(s.nodes), func(i, j int) { s.nodes[i], s.nodes[j] = s.nodes[j], s.nodes[i] })
	for i, n := range s.nodes {
		n.role = i
	}
}

// wayFrom creates a process's proxies, one per node. Only the proxy to the home node is open
// until open is called.
func (s *stage) wayFrom(name string, home int) (urls string, open func()) {
	s.t.Helper()
	var all []string
	var shut []func()
	for i, n := range s.nodes {
		p := newProxy(s.t, s.urlAt(n))
		s.ways[name] = append(s.ways[name], p)
		all = append(all, p.url)
		if i != home {
			shut = append(shut, p.cut())
		}
	}
	return strings.Join(all, ","), func() {
		for _, restore := range shut {
			restore()
		}
	}
}

// urlAt returns the tenant's URL at a node.
func (s *stage) urlAt(n *clusterNode) string {
	host := ""
	rig.Rewrite(s.t, n.URL, func(u *url.URL) { host = u.Host })
	return rig.Rewrite(s.t, s.tenant.URL(), func(u *url.URL) { u.Host = host })
}

// declareQueues runs a server on the intended node of the queues until it is ready.
func (s *stage) declareQueues() {
	s.t.Helper()
	const name = "first"
	urls, open := s.wayFrom(name, s.sc.place.queue)
	p := startProcess(s.t, s.dir, false, "server", name, s.flags(urls)...)
	p.untilReady(1)
	open()
	if err := p.stop(); err != nil {
		s.t.Fatal(err)
	}
}

// leaders returns the node of the leader or master of each queue of the virtual host.
func (s *stage) leaders() map[string]*clusterNode {
	s.t.Helper()
	text := s.alive().Eval(`iolist_to_binary([[element(4, amqqueue:get_name(Q)), " ",
		atom_to_binary(case amqqueue:get_pid(Q) of {_, N} -> N; P -> node(P) end), ";"]
		|| Q <- rabbit_amqqueue:list(<<"` + s.tenant.Vhost + `">>)]).`)
	at := make(map[string]*clusterNode)
	for _, found := range regexp.MustCompile(`([^ ";<]+) ([^ ";]+);`).FindAllStringSubmatch(text, -1) {
		for _, n := range s.nodes {
			if n.Name == found[2] {
				at[found[1]] = n
			}
		}
	}
	if at[queueName] == nil {
		s.t.Fatalf("no node has the queue %s: %s", queueName, text)
	}
	return at
}

// alive returns a running node.
func (s *stage) alive() *clusterNode {
	s.t.Helper()
	for _, n := range s.nodes {
		if !n.down {
			return n
		}
	}
	s.t.Fatal("no node runs")
	return nil
}

// Nodes by role, for the faults.

func requestQueueNode(s *stage) *clusterNode { return s.leaders()[queueName] }

// replyQueueNode returns the node of the first client's reply queue. With direct reply-to it
// is the node of the client's connection.
func replyQueueNode(s *stage) *clusterNode {
	s.t.Helper()
	if !s.sc.load.direct {
		for name, n := range s.leaders() {
			if strings.HasPrefix(name, queueName+".reply.") {
				return n
			}
		}
	}
	return s.linkNode(s.clients[0])
}

// serverNode returns the node of the first server's connection.
func serverNode(s *stage) *clusterNode { return s.linkNode(s.servers[0]) }

// linkNode returns the node of a process's connection.
func (s *stage) linkNode(p *process) *clusterNode {
	s.t.Helper()
	var on *clusterNode
	rig.Eventually(s.t, p.name+" is connected to a node", func() bool {
		text := s.alive().Ctl("-q", "list_connections", "pid", "vhost", "client_properties")
		for line := range strings.Lines(text) {
			if !strings.Contains(line, s.tenant.Vhost) || !strings.Contains(line, p.name) {
				continue
			}
			for _, n := range s.nodes {
				if strings.Contains(line, "<"+n.Name+".") {
					on = n
				}
			}
		}
		return on != nil
	})
	return on
}

// manner is a way to lose and restore nodes.
type manner struct {
	lose, regain func(*clusterNode)
	// ends means that the node closes its connections and accepts no new ones. Otherwise
	// clients must first abandon their connections.
	ends bool
}

// do returns a command of deploy/broker.sh.
func do(command string) func(*clusterNode) {
	return func(n *clusterNode) { n.Do(command) }
}

func killed() manner    { return manner{lose: do("kill"), regain: do("start"), ends: true} }
func stopped() manner   { return manner{lose: do("stop"), regain: do("start"), ends: true} }
func suspended() manner { return manner{lose: do("pause"), regain: do("restart")} }

// lose ends nodes and records the loss. During the absence, the proxies to the nodes accept no
// connections.
func (s *stage) lose(how manner, nodes ...*clusterNode) {
	s.t.Helper()
	at := s.leaders()[queueName]
	l := loss{
		at: time.Now(), quiet: !how.ends,
		outage: len(nodes) > 1 || s.sc.load.kind != amqpx.QueueQuorum && slices.Contains(nodes, at),
	}
	for _, c := range s.clients {
		l.clients = append(l.clients, c.name)
	}
	s.losses = append(s.losses, l)
	s.orphans += len(s.clients)
	each(nodes, how.lose)
	for _, n := range nodes {
		n.down = true
		if how.ends {
			s.shut(n)
		}
	}
}

// regain restores nodes, and waits until every quorum queue has all of its members again.
func (s *stage) regain(how manner, nodes ...*clusterNode) {
	s.t.Helper()
	l := &s.losses[len(s.losses)-1]
	l.back = time.Now()
	each(nodes, how.regain)
	for _, n := range nodes {
		n.down = false
		if how.ends {
			s.reopen(n)
		}
	}
	l.until = time.Now()
	if l.outage {
		s.record(ledger.Entry{Kind: ledger.Outage, At: l.at, Until: l.until})
		s.accepted = append(s.accepted, l.until)
	}
	s.whole()
}

// each calls do for all nodes concurrently, because restarted nodes wait for each other.
func each(nodes []*clusterNode, do func(*clusterNode)) {
	var all sync.WaitGroup
	for _, n := range nodes {
		all.Go(func() { do(n) })
	}
	all.Wait()
}

// shut closes every proxy to a node.
func (s *stage) shut(n *clusterNode) {
	for _, way := range s.ways {
		way[n.role].stop()
	}
}

// reopen undoes shut.
func (s *stage) reopen(n *clusterNode) {
	s.t.Helper()
	for _, way := range s.ways {
		if err := way[n.role].start(); err != nil {
			s.t.Errorf("proxy: %v", err)
		}
	}
}

// whole waits until the cluster has all its nodes and no partition, and every quorum queue
// tolerates the loss of any node.
func (s *stage) whole() {
	s.t.Helper()
	rig.Eventually(s.t, "the cluster is whole", func() bool {
		var well atomic.Int32
		each(s.nodes, func(n *clusterNode) {
			const healthy = `{length(rabbit_nodes:all_running()), rabbit_node_monitor:partitions()}.`
			out, err := n.Tool("rabbitmqctl", "-q", "eval", healthy)
			if err == nil && strings.TrimSpace(out) == fmt.Sprintf("{%d,[]}", len(s.nodes)) {
				well.Add(1)
			}
		})
		if int(well.Load()) < len(s.nodes) {
			return false
		}
		_, err := s.nodes[0].Tool("rabbitmq-queues", "-q", "check_if_node_is_quorum_critical")
		return err == nil
	})
}

// heal restores the cluster for the next scenario after any outcome.
func (s *stage) heal() {
	for _, n := range s.nodes {
		n.Do("resume")
	}
	s.join()
	each(s.nodes, func(n *clusterNode) { n.Do("start") })
	s.whole()
}

// judgeLosses records the clients' time without responses after a loss of nodes. It proves
// that clients with a remaining majority did not wait for the lost nodes.
func (s *stage) judgeLosses(row *report.Row, clock *check.Clock) {
	s.t.Helper()
	for _, l := range s.losses {
		for _, name := range l.clients {
			gap, ok := clock.LongestGap(name, l.at, l.until)
			if !ok {
				row.Problems = append(row.Problems, name+" got no response any more after a node was lost")
				continue
			}
			first, _ := clock.FirstResponse(name, l.at)
			row.Losses = append(row.Losses, report.Loss{Client: name, Gap: gap, First: first, Outage: l.outage, Quiet: l.quiet})
			if s.sc.rolling && gap > rollingGap {
				row.Problems = append(row.Problems, fmt.Sprintf("%s got no answer for %v of a rolling restart, want at most %v", name, gap, rollingGap))
			}
			if waited := l.back.Sub(l.at); !l.outage && gap >= waited {
				row.Problems = append(row.Problems, fmt.Sprintf(
					"%s got no answer for %v: it waited for the lost node, which began to come back after %v", name, gap, waited))
			}
		}
	}
}
