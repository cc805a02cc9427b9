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

// stage is a pair under load: clients and servers in a virtual host of their own,
// each side behind a proxy.
type stage struct {
	t      testing.TB
	sc     scenario
	dir    string // of ledgers and logs
	random *rand.Rand
	book   *ledger.Writer

	broker  *rig.Broker
	manage  *rig.Management
	tenant  *rig.Tenant
	proxies map[side]*proxy
	// nodes are those of a cluster in the order of the scenario's roles; nil beside a
	// single broker.
	nodes []*clusterNode
	// ways are the proxies of each process of a cluster's stage, one to each node.
	ways map[string][]*proxy

	servers, clients, gone []*process

	before   census
	killed   int         // clients that could not clean up
	injected int         // faults
	accepted []time.Time // the broker accepted connections again
	muted    []mute      // a side's link fell silent
	losses   []loss      // nodes of a cluster were lost
	orphans  int         // reply queues that may have outlived their use
	// held is the memory of each server after each flood.
	held map[string][]float64
}

// side of the broker.
type side string

const (
	client side = "client"
	server side = "server"
)

// mute is a moment from which processes heard nothing any more.
type mute struct {
	nodes []string
	at    time.Time
}

// silenced notes that a side hears nothing from now on.
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
	book, err := ledger.Open(filepath.Join(dir, "suite"+ledger.Suffix), "suite")
	if err != nil {
		t.Fatal(err)
	}
	s.book = book
	t.Cleanup(func() { _ = s.book.Close() })
	for _, at := range []side{client, server} {
		if sc.place == nil {
			s.proxies[at] = newProxy(t, string(at), s.tenant.URL())
		}
	}
	if sc.place != nil {
		t.Cleanup(s.heal) // before the virtual host is removed
	}
	return s
}

// keep copies what a scenario wrote to a place beside the tables if it failed.
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
	}
	s.before = s.atRest()
}

// atRest returns what the broker counts when the pair has all that it needs: what it counted
// a moment before, and at least two connections of each process, one of a client that uses
// direct reply-to.
func (s *stage) atRest() census {
	s.t.Helper()
	least := 2 * (len(s.servers) + len(s.clients))
	if s.sc.load.direct {
		least -= len(s.clients)
	}
	var last census
	rig.Eventually(s.t, fmt.Sprintf("the broker counts the same twice, and %d connections at least", least), func() bool {
		now := s.count()
		rests := now == last && now.Connections >= least
		last = now
		return rests
	})
	return last
}

// census is what a virtual host holds.
type census struct {
	Connections, Channels, Queues int
}

// count counts what the virtual host holds. The broker does so exactly, unlike its management
// API.
func (s *stage) count() census {
	s.t.Helper()
	text := s.broker.Eval(`iolist_to_binary(["connections ", [[V, " "] || [{vhost, V}] <- rabbit_networking:connection_info_all([vhost])],
		"channels ", [[V, " "] || [{vhost, V}] <- rabbit_channel:info_all([vhost])]]).`)
	connections, channels, both := strings.Cut(text, "channels ")
	if !both {
		s.t.Fatalf("the broker counts %s", text)
	}
	return census{
		Connections: strings.Count(connections, s.tenant.Vhost), Channels: strings.Count(channels, s.tenant.Vhost),
		Queues: len(s.manage.Queues(s.tenant.URL(), "")),
	}
}

// within reports whether a later count is that at the beginning. Channels are opened when they
// are first needed, and a look at a queue that failed, or that RabbitMQ never answers, ends with
// its channel: each process may have one more or less. Where direct reply-to is used, a server
// has a connection for it once it needs it. Reply queues of killed clients expire after five
// minutes.
func (s *stage) within(now census) bool {
	processes, more := len(s.servers)+len(s.clients), 0
	if s.sc.load.direct {
		more = len(s.servers)
	}
	return now.Connections >= s.before.Connections && now.Connections <= s.before.Connections+more &&
		now.Channels >= s.before.Channels-processes && now.Channels <= s.before.Channels+processes+2*more &&
		now.Queues >= s.before.Queues && now.Queues <= s.before.Queues+s.killed+s.orphans
}

func (s *stage) addServer() {
	s.t.Helper()
	name := fmt.Sprintf("server-%d", len(s.servers)+1)
	url, open := s.way(server, name, len(s.servers))
	p := startProcess(s.t, s.dir, true, "server", name,
		append(s.flags(url), "-workers", strconv.Itoa(s.sc.load.workers))...)
	s.servers = append(s.servers, p)
	p.untilReady(1)
	open()
}

// way is how a process reaches the broker. In a cluster the process begins on the node that
// the scenario says, because only that one is open to it until open is called.
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

// record adds to the suite's own ledger.
func (s *stage) record(e ledger.Entry) {
	s.t.Helper()
	if err := s.book.Write(e); err != nil {
		s.t.Fatal(err)
	}
}

// inject injects the scenario's fault once and puts on record how long it took.
func (s *stage) inject() {
	s.t.Helper()
	begun := time.Now()
	s.sc.fault(s)
	s.injected++
	s.record(ledger.Entry{Kind: ledger.Fault, Name: s.sc.name, At: begun, Until: time.Now()})
}

// pause lets time pass: a random part of d, at least half of it.
func (s *stage) pause(d time.Duration) {
	s.t.Helper()
	s.wait(d/2 + time.Duration(s.random.Int64N(int64(d/2)+1)))
}

// wait lets time pass while the load goes on.
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

// one picks a process.
func (s *stage) one(of []*process) *process { return of[s.random.IntN(len(of))] }

// at returns the processes of a side.
func (s *stage) at(where side) []*process {
	if where == client {
		return s.clients
	}
	return s.servers
}

// served waits until every client was answered again.
func (s *stage) served() {
	s.t.Helper()
	const answers = 50
	for _, c := range s.clients {
		c.untilServed(answers)
	}
}

// replaceClient puts a new client in the place of one that ended.
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

// killClient ends a client for good, without a chance to clean up.
func (s *stage) killClient(p *process) {
	s.t.Helper()
	p.signal(syscall.SIGKILL)
	p.wait()
	s.killed++
	s.record(ledger.Entry{Kind: ledger.Killed, Node: p.name, At: time.Now()})
	s.replaceClient(p)
}

// freeze stops a process for a while and puts that on record.
func (s *stage) freeze(p *process, d time.Duration) {
	s.t.Helper()
	at := time.Now()
	p.signal(syscall.SIGSTOP)
	s.wait(d)
	p.signal(syscall.SIGCONT)
	s.record(ledger.Entry{Kind: ledger.Paused, Node: p.name, At: at, Until: time.Now()})
}
