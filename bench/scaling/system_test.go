package scaling

import (
	"math"
	"testing"
)

// params are round numbers to simulate with.
func params() Params {
	return Params{
		Client: Side{Call: 3, Message: 20, Wake: 100, Reader: 0.3, Writer: 0.2},
		Server: Side{Call: 3, Message: 25, Wake: 120, Reader: 0.25, Writer: 0.15},
		Broker: BrokerSide{Side: Side{Call: 1, Message: 80, Wake: 250, Reader: 0.03, Writer: 0.14}, Channel: 0.075, Queue: 0.077},
		Hop:    5, Quorum: 40, Between: 10, Busy: 0.95,
	}
}

func run(l Load) Simulated {
	return Simulate(params(), System{Load: l, Cores: 2, Speed: 1, Shared: true, InTurn: true}, simulatedTime, simulatedTime)
}

// A single caller gets a call in the time of its way, and pays for every wake-up.
func TestOneCaller(t *testing.T) {
	t.Parallel()
	got := run(base(false, 1))
	total := got.Client + got.Server + got.Broker
	if want := 20. + 25 + 80 + 100 + 120 + 250 + 7; math.Abs(total-want) > 0.01*want {
		t.Errorf("%.0f µs of processor time, want %.0f", total, want)
	}
	if got.Rate < 1e6/total || got.Rate > 2e6/total {
		t.Errorf("%.0f calls/s", got.Rate)
	}
}

// With many callers the processors are busy, and wake-ups cost little.
func TestManyCallers(t *testing.T) {
	t.Parallel()
	one, many, batch := run(base(false, 1)), run(base(false, 1024)), run(base(true, 1024))
	if total := many.Client + many.Server + many.Broker; total > 200 || total < 132 {
		t.Errorf("%.0f µs of processor time, alone %.0f", total, one.Client+one.Server+one.Broker)
	}
	if many.Busy < 0.98 || many.Limit != partNode {
		t.Errorf("%s is busy for %.2f of the time", many.Limit, many.Busy)
	}
	if batch.Rate < 5*many.Rate || batch.Size < 20 {
		t.Errorf("batches: %.0f calls/s, %.1f in a message; single %.0f", batch.Rate, batch.Size, many.Rate)
	}
	if again := run(base(true, 1024)); again != batch {
		t.Errorf("the second simulation gave %+v, the first %+v", again, batch)
	}
}

// Servers whose handlers wait are the limit, and each further server adds as much.
func TestServers(t *testing.T) {
	t.Parallel()
	l := base(false, 256)
	l.Workers, l.Handler = 8, 5000
	for _, n := range []int{1, 2, 4} {
		l.Servers = n
		if got, want := run(l).Rate, 1600*float64(n); math.Abs(got-want) > 0.03*want {
			t.Errorf("%d servers: %.0f calls/s, want %.0f", n, got, want)
		}
	}
}

// An open loop within the limit gets all its calls.
func TestOpenLoop(t *testing.T) {
	t.Parallel()
	l := base(true, 0)
	l.Clients, l.Rate = 10, 1000
	got := run(l)
	if math.Abs(got.Rate-1000) > 150 || got.P50 <= 0 || got.P99 < got.P50 {
		t.Errorf("%+v", got)
	}
}

// The calls of the callers of a benchmark go to the clients in turn, whichever client their last
// responses came to. Without that, each client has callers of its own.
func TestCallsInTurn(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		inTurn bool
		want   []int
	}{{true, []int{2, 3, 2}}, {false, []int{7, 0, 0}}} {
		l := base(true, 4) // so that the next call is the fifth, of the second of three clients
		l.Clients = 3
		s := newSimulation(params(), System{Load: l, Cores: 2, Speed: 1, Shared: true, InTurn: tt.inTurn})
		for range 7 {
			s.clients[0].again(item{calls: 1})
		}
		for i, c := range s.clients {
			if c.out.waiting != tt.want[i] {
				t.Errorf("in turn %v: %d calls wait in client %d, want %d", tt.inTurn, c.out.waiting, i, tt.want[i])
			}
		}
	}
}

// Calls in turn divide the callers whose responses came in one message among the clients, so a
// message of many clients has fewer calls than one of clients with callers of their own.
func TestManyClients(t *testing.T) {
	t.Parallel()
	l := base(true, 1024)
	l.Clients = 100
	system := System{Load: l, Cores: 2, Speed: 1, Shared: true, InTurn: true}
	inTurn := Simulate(params(), system, simulatedTime, simulatedTime)
	system.InTurn = false
	own := Simulate(params(), system, simulatedTime, simulatedTime)
	if inTurn.Size > 0.7*own.Size || inTurn.Rate > own.Rate {
		t.Errorf("in turn %.1f calls in a message and %.0f calls/s, with callers of their own %.1f and %.0f", inTurn.Size, inTurn.Rate, own.Size, own.Rate)
	}
}

// The calls of an open loop in turn are due at a constant rate from the start. The processors are so
// slow that each call is still in its client's outbox.
func TestOpenLoopInTurn(t *testing.T) {
	t.Parallel()
	l := base(true, 0)
	l.Clients, l.Rate = 5, 1000
	s := newSimulation(params(), System{Load: l, Cores: 2, Speed: 1e-9, Shared: true, InTurn: true})
	s.begin()
	for _, tt := range []struct {
		until float64
		want  []int
	}{{0, []int{1, 0, 0, 0, 0}}, {999, []int{1, 0, 0, 0, 0}}, {1000, []int{1, 1, 0, 0, 0}}, {8500, []int{2, 2, 2, 2, 1}}} {
		s.run(tt.until)
		for i, c := range s.clients {
			if c.out.waiting != tt.want[i] {
				t.Errorf("after %.0f µs %d calls wait in client %d, want %d", tt.until, c.out.waiting, i, tt.want[i])
			}
		}
	}
}

// Messages between nodes, and quorum queues, cost the brokers more.
func TestCluster(t *testing.T) {
	t.Parallel()
	l := base(false, 256)
	one := run(l)
	l.Nodes = 3
	local := run(l)
	if math.Abs(local.Broker-one.Broker) > 1 {
		t.Errorf("all on one node of three: %.0f µs, on one node %.0f", local.Broker, one.Broker)
	}
	l.Place = Remote
	if got := run(l).Broker - one.Broker; got < 35 || got > 60 {
		t.Errorf("between nodes %.0f µs more, want those of four messages", got)
	}
	l.Place, l.Quorum = Local, true
	if got := run(l).Broker - one.Broker; got < 35 || got > 55 {
		t.Errorf("quorum %.0f µs more, want 40", got)
	}
}

// A machine for each node: more shards and nodes carry more, and the report names the limit.
func TestLimit(t *testing.T) {
	t.Parallel()
	l := base(false, 0)
	l.Place, l.Clients, l.Servers, l.Rate = Spread, 20, 8, 500_000
	simulate := func(nodes, shards int) Simulated {
		l.Nodes, l.Shards = nodes, shards
		return Simulate(params(), System{Load: l, Cores: 16, Speed: 1, Network: 50}, 10_000, 20_000)
	}
	if got := simulate(8, 1); got.Limit != partQueue || got.Rate > 200_000 {
		t.Errorf("one shard: %s, %.0f calls/s", got.Limit, got.Rate)
	}
	if got := simulate(1, 8); got.Limit != partNode || got.Rate > 250_000 {
		t.Errorf("one node: %s, %.0f calls/s", got.Limit, got.Rate)
	}
}
