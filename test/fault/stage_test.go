//go:build fault

package fault

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/internal/rig"
)

// queueName is the request queue in the virtual host of a scenario.
const queueName = "rpc"

// lease is the lease of the servers' claims in the store: shorter than the handlers of held keys, and
// longer than any pause of a server that is to keep its claims.
const lease = 2 * time.Second

// stage is a pair under load: clients and servers in a new virtual host, each side behind a
// proxy.
type stage struct {
	t      testing.TB
	sc     scenario
	dir    string // of ledgers and logs
	random *rand.Rand
	book   *ledger.Writer

	broker  *rig.Broker
	manage  *rig.Management
	tenant  *rig.Tenant
	store   *rig.Redis // of the idempotency keys, for all servers
	proxies map[side]*proxy
	// nodes are the nodes of a cluster in the order of the scenario's roles; nil for a single
	// broker.
	nodes []*clusterNode
	// ways holds the proxies of each process in a cluster, one per node.
	ways map[string][]*proxy

	servers, clients, gone []*process

	before   census
	killed   int         // clients without a chance to clean up
	injected int         // faults
	accepted []time.Time // the broker accepted connections again
	muted    []mute      // a side's connection fell silent
	losses   []loss      // nodes of a cluster were lost
	orphans  int         // reply queues that may have outlived their use
	// held is the memory of each server after each flood.
	held map[string][]float64
}

// side is a side of the broker.
type side string

const (
	client side = "client"
	server side = "server"
)

// mute records the time since which processes receive no data.
type mute struct {
	nodes []string
	at    time.Time
}

// silenced records the start of a side's silence.
func (s *stage) silenced(at side) {
	m := mute{at: time.Now()}
	for _, p := range s.at(at) {
		m.nodes = append(m.nodes, p.name)
	}
	s.muted = append(s.muted, m)
}

func newStage(t testing.TB, sc scenario) *stage {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { keep(t, sc.name, dir) })
	name := fnv.New64a()
	_, _ = name.Write([]byte(sc.name))
	s := &stage{
		t: t, sc: sc, dir: dir, proxies: make(map[side]*proxy), held: make(map[string][]float64),
		ways:   make(map[string][]*proxy),
		random: rand.New(rand.NewPCG(set.seed, name.Sum64())),
		broker: rig.TheBroker(t), manage: rig.Manage(t),
	}
	if sc.place != nil {
		s.takeCluster()
	}
	s.tenant = s.manage.Tenant()
	s.tenant.Grant(".*")
	s.store = rig.StartRedis(t)
	book, err := ledger.Open(filepath.Join(dir, "suite"+ledger.Suffix), "suite")
	if err != nil {
		t.Fatal(err)
	}
	s.book = book
	t.Cleanup(func() { _ = s.book.Close() })
	for _, at := range []side{client, server} {
		if sc.place == nil {
			s.proxies[at] = newProxy(t, s.tenant.URL())
		}
	}
	if sc.place != nil {
		t.Cleanup(s.heal) // before the virtual host is removed
	}
	return s
}

// keep copies the files of a failed scenario to a folder beside the tables.
func keep(t testing.TB, name, dir string) {
	t.Helper()
	if !t.Failed() || set.out == "" {
		return
	}
	kept := filepath.Join(set.out, "failed", name+"-"+time.Now().Format("150405"))
	if err := os.CopyFS(kept, os.DirFS(dir)); err != nil {
		t.Error(err)
	}
	t.Logf("ledgers and logs of %s are in %s", name, kept)
}

// begin starts the pair and waits until it works.
func (s *stage) begin() {
	s.t.Helper()
	if s.sc.before != nil {
		s.sc.before(s)
	}
	if s.sc.place != nil {
		s.declareQueues()
	}
	for range s.sc.load.servers {
		s.addServer()
	}
	for range s.sc.load.clients {
		s.addClient()
	}
	for _, c := range s.clients {
		c.untilServed(1)
		c.untilStreamed(1) // its queue for streams is there
	}
	s.before = s.atRest()
}

// atRest waits for a stable count of the pair's resources: two counts in a row that differ only by
// the calls to all servers, with at least two connections per process, or one for a client with
// direct reply-to.
func (s *stage) atRest() census {
	s.t.Helper()
	least := 2 * (len(s.servers) + len(s.clients))
	if s.sc.load.direct {
		least -= len(s.clients)
	}
	var last census
	rig.Eventually(s.t, fmt.Sprintf("the broker counts the same twice, and %d connections at least", least), func() bool {
		now, asking := s.count(), s.asking()
		rests := now.Connections == last.Connections && now.Connections >= least &&
			within(asking, now.Channels, last.Channels) && within(asking, now.Queues, last.Queues)
		last = now
		return rests
	})
	return last
}

// asking returns the number of calls to all servers that may be under way, each of which has a
// channel and a queue.
func (s *stage) asking() int {
	if s.sc.load.shapes == 0 {
		return 0
	}
	return len(s.clients)
}

// within reports whether two counts differ by at most most.
func within(most, a, b int) bool { return max(a, b)-min(a, b) <= most }

// census counts the resources of a virtual host.
type census struct {
	Connections, Channels, Queues int
}

// count counts the resources of the virtual host. It asks the broker, whose counts are exact,
// unlike the management API's. Each node counts its own, because a node refuses to describe a
// channel to a node that started more than 15 s later: the time limit of the question is a
// monotonic time of the node that asks (rabbit_channel:info/2).
func (s *stage) count() census {
	s.t.Helper()
	text := s.broker.Eval(`
		Own = fun() ->
			[["connection ", V, 10] || P <- rabbit_networking:connections(), node(P) == node(), {vhost, V} <- try rabbit_reader:info(P, [vhost]) catch exit:_ -> [] end] ++
			[["channel ", V, 10] || P <- rabbit_channel:list_local(), {vhost, V} <- try rabbit_channel:info(P, [vhost]) catch exit:_ -> [] end]
		end,
		{Counts, []} = rpc:multicall([node() | nodes()], erlang, apply, [Own, []], 10000),
		iolist_to_binary(["counts ", 10, Counts]).`)
	if !strings.Contains(text, "counts ") {
		s.t.Fatalf("the broker counts %s", text)
	}
	return census{
		Connections: strings.Count(text, "connection "+s.tenant.Vhost), Channels: strings.Count(text, "channel "+s.tenant.Vhost),
		Queues: len(s.manage.Queues(s.tenant.URL(), "")),
	}
}

// within reports whether a later count equals the count at the beginning, with tolerances.
// Channels are opened at their first use, and a queue check that fails, or gets no response
// from RabbitMQ, ends with its channel: each process may have one channel more or less. With
// direct reply-to a server has a further connection after its first use; in a cluster too, where
// a client without responses asks the servers in this way whether they answer. Reply queues of
// killed clients expire after five minutes. Calls to all servers change both counts at any moment.
func (s *stage) within(now census) bool {
	processes, more, asking := len(s.servers)+len(s.clients), 0, s.asking()
	if s.sc.load.direct || s.sc.place != nil {
		more = len(s.servers)
	}
	return now.Connections >= s.before.Connections && now.Connections <= s.before.Connections+more &&
		now.Channels >= s.before.Channels-processes-asking && now.Channels <= s.before.Channels+processes+2*more+asking &&
		now.Queues >= s.before.Queues-asking && now.Queues <= s.before.Queues+s.killed+s.orphans+asking
}

func (s *stage) addServer() {
	s.t.Helper()
	name := fmt.Sprintf("server-%d", len(s.servers)+1)
	url, open := s.way(server, name, len(s.servers))
	p := startProcess(s.t, s.dir, true, "server", name,
		append(s.flags(url), "-workers", strconv.Itoa(s.sc.load.workers), "-store", s.store.Address, "-lease", lease.String())...)
	s.servers = append(s.servers, p)
	p.untilReady(1)
	open()
}

// way returns the path of a process to the broker. In a cluster the process starts on the node
// of the scenario's placement, because only this node is open until open is called.
func (s *stage) way(at side, name string, number int) (url string, open func()) {
	s.t.Helper()
	if s.sc.place == nil {
		return s.proxies[at].url, func() {}
	}
	home := s.sc.place.clients
	if at == server {
		home = s.sc.place.servers[number%len(s.sc.place.servers)]
	}
	return s.wayFrom(name, home)
}

func (s *stage) addClient() {
	s.t.Helper()
	l := s.sc.load
	number := len(s.clients) + len(s.gone) + 1
	name := fmt.Sprintf("client-%d", number)
	url, open := s.way(client, name, number)
	args := append(
		s.flags(url),
		"-workers", strconv.Itoa(l.callers), "-mix", l.mix, "-padding", strconv.Itoa(l.padding),
		"-streams", strconv.Itoa(l.streams), "-shapes", strconv.Itoa(l.shapes), "-keyed", strconv.Itoa(l.keyed),
		"-rate", fmt.Sprint(l.rate), "-deadline", l.deadline.String(), "-impatience", l.impatience.String(),
		"-seed", strconv.FormatUint(s.random.Uint64(), 10), "-longest", l.longest.String(), "-direct="+strconv.FormatBool(l.direct),
	)
	if l.replies != "" {
		args = append(args, "-replies", string(l.replies))
	}
	p := startProcess(s.t, s.dir, false, "client", name, args...)
	s.clients = append(s.clients, p)
	p.untilReady(1)
	open()
}

func (s *stage) flags(url string) []string {
	l := s.sc.load
	return []string{
		"-url", url, "-queue", queueName, "-kind", string(l.kind),
		"-heartbeat", l.heartbeat.String(), "-persistent=" + strconv.FormatBool(l.persistent), "-batch", string(s.sc.batch),
	}
}

// record adds an entry to the suite's ledger.
func (s *stage) record(e ledger.Entry) {
	s.t.Helper()
	if err := s.book.Write(e); err != nil {
		s.t.Fatal(err)
	}
}

// inject injects the scenario's fault once and records its duration.
func (s *stage) inject() {
	s.t.Helper()
	begun := time.Now()
	s.sc.fault(s)
	s.injected++
	s.t.Logf("fault %d took %v", s.injected, time.Since(begun).Round(time.Millisecond))
	s.record(ledger.Entry{Kind: ledger.Fault, Name: s.sc.name, At: begun, Until: time.Now()})
}

// pause waits for a random time between d/2 and d.
func (s *stage) pause(d time.Duration) {
	s.t.Helper()
	s.wait(d/2 + time.Duration(s.random.Int64N(int64(d/2)+1)))
}

// wait waits for d while the load goes on.
func (s *stage) wait(d time.Duration) {
	s.t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.t.Context().Done():
		s.t.Fatal("the test was ended")
	}
}

// one returns a random process.
func (s *stage) one(of []*process) *process { return of[s.random.IntN(len(of))] }

// at returns the processes of a side.
func (s *stage) at(where side) []*process {
	if where == client {
		return s.clients
	}
	return s.servers
}

// served waits until every client has received 50 more responses.
func (s *stage) served() {
	s.t.Helper()
	const responses = 50
	for _, c := range s.clients {
		c.untilServed(responses)
	}
}

// replaceClient starts a new client in place of an ended client.
func (s *stage) replaceClient(p *process) {
	s.t.Helper()
	for i, c := range s.clients {
		if c == p {
			s.clients = append(s.clients[:i:i], s.clients[i+1:]...)
			break
		}
	}
	s.gone = append(s.gone, p)
	s.record(ledger.Entry{Kind: ledger.Left, Node: p.name, At: time.Now()})
	s.addClient()
}

// killClient kills a client, which cannot clean up, and replaces it.
func (s *stage) killClient(p *process) {
	s.t.Helper()
	p.signal(syscall.SIGKILL)
	p.wait()
	s.killed++
	s.record(ledger.Entry{Kind: ledger.Killed, Node: p.name, At: time.Now()})
	s.replaceClient(p)
}

// freeze stops a process for a while and records the pause.
func (s *stage) freeze(p *process, d time.Duration) {
	s.t.Helper()
	at := time.Now()
	p.signal(syscall.SIGSTOP)
	s.wait(d)
	p.signal(syscall.SIGCONT)
	s.record(ledger.Entry{Kind: ledger.Paused, Node: p.name, At: at, Until: time.Now()})
}
