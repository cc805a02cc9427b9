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

// placement says on which of the cluster's nodes what begins: the leader or master of the
// request queue and its companions, each server in turn, and the clients with their reply
// queues. Numbers are roles: which node has which role is drawn from the seed.
type placement struct {
	queue, clients int
	servers        []int
}

// clusterNode is a node in its role.
type clusterNode struct {
	rig.Node

	role int
	down bool
}

// loss is a moment from which nodes were away, that at which they began to come back, and
// that from which they served again.
type loss struct {
	at, back, until time.Time
	clients         []string
	// outage: the request queue was away, too, because its node or a majority was.
	outage bool
	// quiet: the nodes neither end nor answer, so links to them must first be given up.
	quiet bool
}

// takeCluster finds the nodes, and gives each its role.
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

// wayFrom makes a process's proxies, one to each node, and leaves only that to its home open
// until open is called.
func (s *stage) wayFrom(name string, home int) (urls string, open func()) {
	s.t.Helper()
	var all []string
	var shut []func()
	for i, n := range s.nodes {
		p := newProxy(s.t, fmt.Sprintf("%s-%d", name, i), s.urlAt(n))
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

// urlAt is the tenant's URL at a node.
func (s *stage) urlAt(n *clusterNode) string {
	host := ""
	rig.Rewrite(s.t, n.URL, func(u *url.URL) { host = u.Host })
	return rig.Rewrite(s.t, s.tenant.URL(), func(u *url.URL) { u.Host = host })
}

// declareQueues runs a server on the node that is to have the queues, until it is ready.
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

// alive is a node that runs.
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

// The roles of a node, as faults look for them.

func requestQueueNode(s *stage) *clusterNode { return s.leaders()[queueName] }

// replyQueueNode is the node of the first client's reply queue, and with direct reply-to that
// of its link.
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

// serverNode is the node of the first server's link.
func serverNode(s *stage) *clusterNode { return s.linkNode(s.servers[0]) }

// linkNode is the node that a process is connected to.
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

// manner is a way in which nodes are lost.
type manner struct {
	lose, regain func(*clusterNode)
	// ends: the node accepts no connections, and its own end. Else links to it must first be
	// given up.
	ends bool
}

// do is a command of deploy/broker.sh.
func do(command string) func(*clusterNode) {
	return func(n *clusterNode) { n.Do(command) }
}

func killed() manner    { return manner{lose: do("kill"), regain: do("start"), ends: true} }
func stopped() manner   { return manner{lose: do("stop"), regain: do("start"), ends: true} }
func suspended() manner { return manner{lose: do("pause"), regain: do("restart")} }

// lose ends nodes and notes it. While they are away, nothing accepts connections in their place.
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

// regain brings nodes back, and waits until every quorum queue has all of its members again.
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

// each does something to every node at once, as nodes that were all away wait for one another.
func each(nodes []*clusterNode, do func(*clusterNode)) {
	var all sync.WaitGroup
	for _, n := range nodes {
		all.Go(func() { do(n) })
	}
	all.Wait()
}

// shut closes every way to a node.
func (s *stage) shut(n *clusterNode) {
	for _, way := range s.ways {
		way[n.role].proxy.Stop()
	}
}

// reopen undoes shut.
func (s *stage) reopen(n *clusterNode) {
	s.t.Helper()
	for _, way := range s.ways {
		if err := way[n.role].proxy.Start(); err != nil {
			s.t.Errorf("proxy: %v", err)
		}
	}
}

// whole waits until the cluster has all its nodes and no partition, and every quorum queue
// could lose any of them.
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

// heal leaves the cluster as the next scenario needs it, whatever happened.
func (s *stage) heal() {
	for _, n := range s.nodes {
		n.Do("resume")
	}
	s.join()
	each(s.nodes, func(n *clusterNode) { n.Do("start") })
	s.whole()
}

// judgeLosses records how long the clients were without answers after nodes were lost, and
// proves that where a majority remained they did not wait for the lost ones.
func (s *stage) judgeLosses(row *report.Row, clock *check.Clock) {
	s.t.Helper()
	for _, l := range s.losses {
		for _, name := range l.clients {
			gap, ok := clock.LongestGap(name, l.at, l.until)
			if !ok {
				row.Problems = append(row.Problems, name+" got no answer any more after a node was lost")
				continue
			}
			first, _ := clock.FirstAnswer(name, l.at)
			row.Losses = append(row.Losses, report.Loss{Client: name, Gap: gap, First: first, Outage: l.outage, Quiet: l.quiet})
			if waited := l.back.Sub(l.at); !l.outage && gap >= waited {
				row.Problems = append(row.Problems, fmt.Sprintf(
					"%s got no answer for %v: it waited for the lost node, which began to come back after %v", name, gap, waited))
			}
		}
	}
}
