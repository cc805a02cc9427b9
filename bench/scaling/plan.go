package scaling

import (
	"math"
	"strings"

	"rabbitmq-rpc/pkg/amqpx"
)

// Scenario is a load for which there was no machine: an open loop of all clients together.
type Scenario struct {
	Clients int
	Rate    float64
}

// Scenarios returns the scenarios of docs/scaling.md.
func Scenarios() []Scenario {
	return []Scenario{{10_000, 10_000}, {10_000, 100_000}, {10_000, 1_000_000}, {100, 1_000_000}, {10, 1_000_000}}
}

// Assumptions of the scenarios, which were not measured.
const (
	planCores   = 16   // of each machine
	planNetwork = 50.  // of a message between two machines, in microseconds
	planBusy    = 0.7  // the part of the time in which the busiest resource may be busy
	planCarried = 0.98 // the part of the calls that must get a response in the counted time
	planCalls   = 10_000
	planSteps   = 30
	planGrowth  = 1.1 // the least growth of a step
)

// Plan is what a scenario needs.
type Plan struct {
	Scenario
	System System
	Result Simulated
	// Less is the result with half of the nodes, servers and shards, each at least one.
	Less  Simulated
	Holds Holdings
}

// system returns a scenario on a number of nodes, servers and shards. Each node has at least the
// connections of one server, and one shard as far as the library allows: a node with all requests
// would be full before the others.
func (s Scenario) system(nodes, servers, shards int) System {
	servers, shards = max(servers, nodes), min(max(shards, nodes), amqpx.MaxShards)
	return System{
		Load: Load{
			Batch: true, Nodes: nodes, Place: Spread, Queues: 1, Shards: shards, Servers: servers, Workers: 64,
			Clients: s.Clients, Rate: s.Rate,
		},
		Cores: planCores, Speed: 1, Network: planNetwork,
	}
}

// simulate runs a system for about planCalls calls.
func (c Capacity) simulate(s System) Simulated {
	duration := max(planCalls/s.Rate*1e6, 10_000)
	return Simulate(c.Params, s, min(duration, 50_000), duration)
}

// propose returns the nodes, servers and shards of a scenario by the formula. A client that makes
// few calls pays for the wake-ups of each message; the messages of one that makes many have
// batchGuess calls.
func (c Capacity) propose(s Scenario) (nodes, servers, shards int) {
	const few, batchGuess = 2000, 32
	size, inFlight := 1., 1.
	if s.Rate/float64(s.Clients) > few {
		size, inFlight = batchGuess, batchWindow
	}
	costs := c.Costs(s.system(1, 1, 1).Load, size, inFlight, math.Inf(1))
	need := func(micros, cores float64) int { return int(math.Ceil(s.Rate * micros / 1e6 / cores / planBusy)) }
	part := func(share float64) float64 { return c.Broker.Call*share + c.Broker.Message*share/size }
	between := 4 * c.Between / size
	serial := max(part(c.Broker.Writer), part(c.Broker.Channel), c.Server.Call*c.Server.Reader+c.Server.Message*c.Server.Reader/size)
	return need(costs.Broker+between, planCores), max(need(costs.Server, planCores), need(serial, 1)), need(part(c.Broker.Queue), 1)
}

// Plan looks for the system of a scenario: it begins with the system that the formula proposes,
// and adds to the resource that is the limit until no resource is busier than planBusy.
func (c Capacity) Plan(s Scenario) Plan {
	nodes, servers, shards := c.propose(s)
	p := Plan{Scenario: s}
	for range planSteps {
		p.System = s.system(nodes, servers, shards)
		p.Result = c.simulate(p.System)
		if p.Result.Busy <= planBusy && p.Result.Rate >= planCarried*s.Rate {
			break
		}
		grow := func(n int) int {
			return max(n+1, int(math.Ceil(float64(n)*min(max(p.Result.Busy/planBusy, planGrowth), 1.5))))
		}
		switch limit := p.Result.Limit; {
		case limit == partQueue && p.System.Shards == amqpx.MaxShards:
			return c.complete(p) // one request queue has no more shards
		case strings.HasPrefix(limit, "client"):
			return c.complete(p) // more clients would help, and they are given
		case limit == partQueue:
			shards = grow(shards)
		case strings.HasPrefix(limit, "server") || strings.HasSuffix(limit, "server"):
			servers = grow(servers)
		case limit == partNode || limit == partLink:
			nodes = grow(nodes)
		default:
			servers, nodes = grow(servers), grow(nodes)
		}
	}
	return c.complete(p)
}

// complete adds to a plan what the system holds, and what half of it carries.
func (c Capacity) complete(p Plan) Plan {
	half := func(n int) int { return max(n/2, 1) }
	p.Less = c.simulate(p.system(half(p.System.Nodes), half(p.System.Servers), half(p.System.Shards)))
	p.Holds = c.Holds(p.Clients, p.System.Servers, p.System.Shards)
	return p
}
