package scaling

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// Parts of the cost of wake-ups of a message. Those that no call waits for are the confirms of
// client and server, and the broker's processes for confirms and acknowledgements.
const (
	wakeOut, wakeIn, wakeConfirm = 0.35, 0.35, 0.3
	wakeBroker                   = 1. / 13  // of each of eight processes on the way of a call
	wakeOther                    = 2.5 / 13 // twice
)

// Names of resources.
const (
	partNode  = "broker: processors of a node"
	partQueue = "broker: process of a request queue"
	partLink  = "broker: connection between nodes"
)

// wide is the width of actors that are many goroutines or processes.
const wide = 1 << 16

// System is what a simulation runs: a load, and the machines that carry it.
type System struct {
	Load
	// Cores is the number of processors of each machine; Speed is their speed, 1 for the speed of
	// the measurement. If Shared is true, all nodes, servers and clients share one machine, as in
	// the measurement. Otherwise each node and each server has a machine, and clients have enough.
	Cores  int
	Speed  float64
	Shared bool
	// If InTurn is true, calls go to the clients in turn, whichever client the last response of a
	// caller came to, and the calls of an open loop are due at a constant rate, as in the
	// measurement. Otherwise each client has callers of its own, or calls at random times.
	InTurn bool
	// Network is the time of a message between two machines, in microseconds.
	Network float64
}

// Simulated is what a simulation came to.
type Simulated struct {
	Rate     float64 // calls per second
	P50, P99 float64 // latency in milliseconds; of open loops
	Client   float64 // processor time of a call, in microseconds
	Server   float64
	Broker   float64
	Size     float64 // calls in a message
	Limit    string  // the busiest resource
	Busy     float64 // the part of the time in which it was busy
	Node     float64 // processors that the busiest node used
}

type simulation struct {
	engine
	system  System
	params  Params
	random  *rand.Rand
	client  account
	server  account
	broker  account
	nodes   []*machine
	actors  map[string][]*actor
	clients []*simClient
	servers []*simServer
	queues  []*simQueue
	links   []*actor // from each node to each node
	turn    int      // the number of calls that have gone to the clients in turn

	counting bool
	calls    float64
	messages float64
	latency  []weighted
}

type weighted struct{ value, weight float64 }

// simClient is a client: what it is in its process, and its processes in the broker.
type simClient struct {
	s *simulation
	connection
	out                                    *outbox
	callers, read, publish, write, confirm *actor
	replies                                *actor
	node                                   int
	queue                                  int // of several request queues, each of which has clients of its own
	next                                   int // shard
}

// simServer is a server, and its processes in the broker.
type simServer struct {
	s *simulation
	connection
	out                                 map[*simClient]*outbox
	hold                                *hold
	read, work, publish, write, confirm *actor
	node, queue                         int
	running                             int
	waiting                             []item
}

// simQueue is a shard of a request queue.
type simQueue struct {
	process *actor
	node    int
	queue   int
	next    int // server
}

// Simulate runs a system for a time, after a time to settle, both in microseconds of the simulation.
func Simulate(p Params, system System, settle, duration float64) Simulated {
	s := newSimulation(p, system)
	s.begin()
	s.run(settle)
	s.counting = true
	for _, all := range s.actors {
		for _, a := range all {
			a.used = 0
		}
	}
	s.client, s.server, s.broker = account{}, account{}, account{}
	for _, n := range s.nodes {
		n.used = 0
	}
	s.run(settle + duration)
	return s.result(duration)
}

// newSimulation returns the simulation of a system whose load has not begun.
func newSimulation(p Params, system System) *simulation {
	s := &simulation{system: system, params: p, random: rand.New(rand.NewPCG(1, 2)), actors: make(map[string][]*actor)} //nolint:gosec // a simulation that can be repeated.
	s.turn = system.Callers                                                                                             // begin divides their first calls among the clients
	s.build()
	return s
}

func (s *simulation) machine(cores int) *machine {
	return &machine{e: &s.engine, cores: cores, speed: s.system.Speed}
}

// part returns an actor, whose utilisation counts for the resource with a name.
func (s *simulation) part(name string, on *machine, side *account, width int, wake float64, per cost, then func(item)) *actor {
	a := &actor{on: on, side: side, width: width, wake: wake, per: per, then: then}
	s.actors[name] = append(s.actors[name], a)
	return a
}

// build makes the machines, and the actors from the queues to the clients and servers.
func (s *simulation) build() {
	l := s.system.Load
	shared := s.machine(s.system.Cores)
	own := func(cores int) *machine {
		if s.system.Shared {
			return shared
		}
		return s.machine(cores)
	}
	for range l.Nodes {
		s.nodes = append(s.nodes, own(s.system.Cores))
	}
	for range l.Nodes * l.Nodes {
		s.links = append(s.links, s.part(partLink, s.nodes[len(s.links)/l.Nodes], &s.broker, 1, s.params.BetweenWake, cost{message: s.params.Between}, func(i item) { s.later(i.do) }))
	}
	b := s.params.Broker
	for i := range l.Queues * l.Shards {
		q := &simQueue{queue: i / l.Shards, node: s.place(i, 0)}
		per := b.stage(b.Queue)
		per.message += s.quorumCost()
		q.process = s.part(partQueue, s.nodes[q.node], &s.broker, 1, b.Wake*wakeBroker+s.quorumWake(), per, func(i item) { s.queued(q, i) })
		s.queues = append(s.queues, q)
	}
	for i := range l.Servers * l.Queues {
		s.servers = append(s.servers, s.newServer(i, own(s.system.Cores)))
	}
	away := shared
	if !s.system.Shared {
		away = s.machine(math.MaxInt32)
	}
	for i := range l.Clients {
		s.clients = append(s.clients, s.newClient(i, away))
	}
}

func (s *simulation) quorumCost() float64 {
	if s.system.Quorum {
		return s.params.Quorum
	}
	return 0
}

func (s *simulation) quorumWake() float64 {
	if s.system.Quorum {
		return s.params.QuorumWake
	}
	return 0
}

// place returns the node of number i of clients, servers or shards; remote is that of the place Remote.
func (s *simulation) place(i, remote int) int {
	switch s.system.Place {
	case Remote:
		return remote
	case Spread:
		return i % s.system.Nodes
	default:
		return 0
	}
}

func (s *simulation) newClient(i int, on *machine) *simClient {
	p := s.params.Client
	c := &simClient{s: s, node: s.place(i, 2), queue: i % s.system.Queues, next: s.random.IntN(s.system.Shards)}
	c.publish = s.part("client: publisher", on, &s.client, 1, p.Wake*wakeOut, cost{}, func(item) { c.send() })
	c.write = s.part("client: goroutine that writes requests", on, &s.client, 1, 0, p.stage(p.Writer), func(i item) { s.later(func() { c.reader.post(i) }) })
	c.confirm = s.part("client: goroutine for confirms", on, &s.client, 1, p.Wake*wakeConfirm, cost{}, func(i item) { c.confirmed(i) })
	c.read = s.part("client: goroutine that reads", on, &s.client, 1, p.Wake*wakeIn, p.stage(p.Reader), func(i item) { c.responded(i) })
	c.callers = s.part("client: callers", on, &s.client, wide, 0, p.stage(1-p.Reader-p.Writer), func(i item) { c.again(i) })
	c.connection = s.connect("client", c.node, func(i item) { c.published(i) }, func(i item) { c.read.post(i) })
	b := s.params.Broker
	c.replies = s.part("broker: process of a reply queue", s.nodes[c.node], &s.broker, 1, b.Wake*wakeBroker, b.stage(b.Queue), func(i item) { c.delivered(i) })
	c.out = &outbox{takers: s.system.Servers, client: c, publish: c.publish, hold: new(hold)}
	return c
}

func (s *simulation) newServer(i int, on *machine) *simServer {
	p := s.params.Server
	v := &simServer{s: s, node: s.place(i, 1), queue: i % s.system.Queues, out: make(map[*simClient]*outbox), hold: new(hold)}
	v.read = s.part("server: goroutine that reads", on, &s.server, 1, p.Wake*wakeIn, p.stage(p.Reader), func(i item) { v.taken(i) })
	v.work = s.part("server: workers", on, &s.server, wide, 0, p.stage(1-p.Reader-p.Writer), func(i item) { v.received(i) })
	v.publish = s.part("server: publisher", on, &s.server, 1, p.Wake*wakeOut, cost{}, func(i item) { v.send(i.client) })
	v.write = s.part("server: goroutine that writes responses", on, &s.server, 1, 0, p.stage(p.Writer), func(i item) { s.later(func() { v.reader.post(i) }) })
	v.confirm = s.part("server: goroutine for confirms", on, &s.server, 1, p.Wake*wakeConfirm, cost{}, func(i item) { v.confirmed(i) })
	v.connection = s.connect("server", v.node, func(i item) { v.published(i) }, func(i item) { v.read.post(i) })
	return v
}

// connection has the broker's processes for the two connections of a client or a server.
type connection struct{ reader, channel, writer, other *actor }

// connect returns the broker's processes for a client or a server. The function published receives
// the messages from the client or server, and written receives the messages to it.
func (s *simulation) connect(of string, node int, published, written func(item)) connection {
	at, b := s.nodes[node], s.params.Broker
	var c connection
	c.reader = s.part("broker: process that reads from a "+of, at, &s.broker, 1, b.Wake*wakeBroker, b.stage(b.Reader), func(i item) { c.channel.post(i) })
	c.channel = s.part("broker: channel of a "+of, at, &s.broker, 1, b.Wake*wakeBroker, b.stage(b.Channel), published)
	c.writer = s.part("broker: process that writes to a "+of, at, &s.broker, 1, b.Wake*wakeBroker, b.stage(b.Writer), func(i item) { s.later(func() { written(i) }) })
	c.other = s.part("broker: other processes", at, &s.broker, wide, b.Wake*wakeOther, b.stage(b.rest()), nil)
	return c
}

// later runs do when a message has come to another machine.
func (s *simulation) later(do func()) { s.after(s.params.Hop+s.system.Network, do) }

// between runs do on another node, after the message has passed the connection of the two nodes.
func (s *simulation) between(from, to int, do func()) {
	if from == to {
		do()
		return
	}
	s.links[from*s.system.Nodes+to].post(item{do: do})
}

// begin starts the load. The callers of closed loops begin at once, as in the benchmark, or, with
// clients that have callers of their own, spread over a millisecond.
func (s *simulation) begin() {
	spread := 1000.
	if s.system.InTurn {
		spread = 0
	}
	if s.system.Rate > 0 && s.system.InTurn {
		s.after(0, s.openInTurn)
		return
	}
	for i, c := range s.clients {
		if s.system.Rate > 0 {
			c.open(s.system.Rate / float64(len(s.clients)))
			continue
		}
		callers := s.system.Callers / len(s.clients)
		if i < s.system.Callers%len(s.clients) {
			callers++
		}
		if callers > 0 {
			s.after(spread*s.random.Float64(), func() { c.call(item{calls: callers, due: s.now, client: c}) })
		}
	}
}

// open makes calls of one client in an open loop, at random times.
func (c *simClient) open(rate float64) {
	c.s.after(c.s.random.ExpFloat64()*1e6/rate, func() {
		c.call(item{calls: 1, due: c.s.now, client: c})
		c.open(rate)
	})
}

// openInTurn makes the calls of an open loop at a constant rate, with one client after the other.
func (s *simulation) openInTurn() {
	s.inTurn().call(item{calls: 1, due: s.now})
	s.after(1e6/s.system.Rate, s.openInTurn)
}

// inTurn returns the client of the next call of a benchmark.
func (s *simulation) inTurn() *simClient {
	c := s.clients[s.turn%len(s.clients)]
	s.turn++
	return c
}

// call puts calls into the outbox.
func (c *simClient) call(i item) { c.s.put(c.out, i) }

// send publishes as many requests as the window allows.
func (c *simClient) send() {
	c.out.asked = false
	for i, ok := c.out.take(c.s.system.Batch); ok; i, ok = c.out.take(c.s.system.Batch) {
		c.s.count()
		c.write.post(i)
	}
}

func (s *simulation) count() {
	if s.counting {
		s.messages++
	}
}

// published routes a request to a shard.
func (c *simClient) published(i item) {
	l := c.s.system.Load
	q := c.s.queues[c.queue*l.Shards+c.next%l.Shards]
	c.next++
	c.other.post(i)
	c.s.between(c.node, q.node, func() { q.process.post(i) })
}

// queued hands a request to the next server, and confirms it.
func (s *simulation) queued(q *simQueue, i item) {
	v := s.servers[q.next%s.system.Servers*s.system.Queues+q.queue]
	q.next++
	s.between(q.node, v.node, func() { v.writer.post(i) })
	s.between(q.node, i.client.node, func() { s.later(func() { i.client.confirm.post(i) }) })
}

func (c *simClient) confirmed(item) {
	c.out.unconfirmed--
	c.out.ask()
}

// taken hands the calls of a message to the workers.
func (v *simServer) taken(i item) {
	v.s.expect(v.hold, i.calls)
	i.each(v.work.post)
}

// received runs the handler of a call.
func (v *simServer) received(i item) {
	if v.s.system.Handler == 0 {
		v.s.put(v.outboxOf(i.client), i)
		return
	}
	v.waiting = append(v.waiting, i)
	v.handle()
}

// handle starts waiting calls as far as there are workers.
func (v *simServer) handle() {
	for v.running < v.s.system.Workers && len(v.waiting) > 0 {
		i := v.waiting[0]
		v.waiting = v.waiting[1:]
		v.running++
		v.s.after(v.s.system.Handler, func() {
			v.running--
			v.s.put(v.outboxOf(i.client), i)
			v.handle()
		})
	}
}

func (v *simServer) outboxOf(c *simClient) *outbox {
	o := v.out[c]
	if o == nil {
		o = &outbox{takers: 1, client: c, server: v, publish: v.publish, hold: v.hold}
		v.out[c] = o
	}
	return o
}

// send publishes the responses to one client.
func (v *simServer) send(c *simClient) {
	o := v.outboxOf(c)
	o.asked = false
	for i, ok := o.take(v.s.system.Batch); ok; i, ok = o.take(v.s.system.Batch) {
		i.server = v
		v.s.count()
		v.write.post(i)
	}
}

// published routes a response to the reply queue.
func (v *simServer) published(i item) {
	v.other.post(i)
	v.s.between(v.node, i.client.node, func() { i.client.replies.post(i) })
}

func (v *simServer) confirmed(i item) {
	o := v.outboxOf(i.client)
	o.unconfirmed--
	o.ask()
}

// delivered writes a response to the client, and confirms it to the server.
func (c *simClient) delivered(i item) {
	c.writer.post(i)
	c.s.between(c.node, i.server.node, func() { c.s.later(func() { i.server.confirm.post(i) }) })
}

// responded counts the calls of a response; callers of a closed loop call again.
func (c *simClient) responded(i item) {
	if c.s.counting {
		c.s.calls += float64(i.calls)
		c.s.latency = append(c.s.latency, weighted{c.s.now - i.due, float64(i.calls)})
	}
	if c.s.system.Rate == 0 {
		c.s.expect(c.out.hold, i.calls)
	}
	i.each(c.callers.post)
}

// again makes the next call of a caller of a closed loop, which has received a response.
func (c *simClient) again(i item) {
	switch s := c.s; {
	case s.system.Rate > 0:
	case s.system.InTurn:
		s.inTurn().call(item{calls: i.calls, due: s.now})
	default:
		c.call(item{calls: i.calls, due: s.now})
	}
}

// result returns the figures of the counted time.
func (s *simulation) result(duration float64) Simulated {
	r := Simulated{Rate: s.calls / duration * 1e6}
	if s.calls > 0 {
		r.Client, r.Server, r.Broker = s.client.used/s.calls, s.server.used/s.calls, s.broker.used/s.calls
		r.Size = max(2*s.calls/s.messages, 1)
	}
	slices.SortFunc(s.latency, func(a, b weighted) int { return cmp.Compare(a.value, b.value) })
	r.P50, r.P99 = s.percentile(0.5)/1e3, s.percentile(0.99)/1e3
	for _, n := range s.nodes {
		busy := n.used / duration / s.system.Speed
		if r.Node = max(r.Node, busy); busy/float64(n.cores) >= r.Busy {
			r.Busy, r.Limit = busy/float64(n.cores), partNode
		}
	}
	for _, v := range s.servers {
		if m := v.read.on; !s.system.Shared && m.used/duration/s.system.Speed/float64(m.cores) > r.Busy {
			r.Busy, r.Limit = m.used/duration/s.system.Speed/float64(m.cores), "server: processors of its machine"
		}
	}
	for name, all := range s.actors {
		for _, a := range all {
			if busy := a.used / duration / s.system.Speed; a.width == 1 && (busy > r.Busy || busy == r.Busy && name < r.Limit) {
				r.Busy, r.Limit = busy, name
			}
		}
	}
	return r
}

// percentile returns a percentile of the latencies.
func (s *simulation) percentile(part float64) float64 {
	left := part * s.calls
	for _, l := range s.latency {
		if left -= l.weight; left <= 0 {
			return l.value
		}
	}
	return 0
}
