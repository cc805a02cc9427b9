package scaling

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Capacity is the capacity formula of docs/scaling.md with its figures.
type Capacity struct {
	Params
	Base                Holdings // of a broker with one server and no client; resident memory of the broker
	PerClient, PerServe Holdings // of each client, and of each server beyond the first
	PerShard            float64  // memory of each shard beyond the first, in megabytes; 0: not measured
}

// NewCapacity takes the figures of the formula from a measurement, and from the parameters of the
// simulation.
func NewCapacity(m Measurement, p Params) (Capacity, error) {
	c := Capacity{Params: p}
	clients, servers := m.Part(PartClients, true), m.Part(PartServers, true)
	if len(clients) < 2 || len(servers) < 2 {
		return c, errors.New("the holdings of clients and servers were not measured")
	}
	one, most := clients[0], clients[len(clients)-1]
	first, last := servers[0], servers[len(servers)-1]
	slope := func(of func(Holdings) float64, from, to *Point, steps int) float64 {
		return (to.Holds(of) - from.Holds(of)) / float64(steps)
	}
	each := func(whole bool, set func(*Holdings) *float64) {
		of := func(h Holdings) float64 { return *set(&h) }
		*set(&c.PerClient) = slope(of, one, most, most.Clients-one.Clients)
		*set(&c.PerServe) = slope(of, first, last, last.Servers-first.Servers)
		*set(&c.Base) = one.Holds(of) - *set(&c.PerClient)
		if whole {
			*set(&c.PerClient), *set(&c.PerServe) = math.Round(*set(&c.PerClient)), math.Round(*set(&c.PerServe))
			*set(&c.Base) = math.Round(one.Holds(of) - *set(&c.PerClient))
		}
	}
	for i, set := range []func(*Holdings) *float64{
		func(h *Holdings) *float64 { return &h.Connections }, func(h *Holdings) *float64 { return &h.Channels },
		func(h *Holdings) *float64 { return &h.Queues }, func(h *Holdings) *float64 { return &h.Files },
		func(h *Holdings) *float64 { return &h.Memory }, func(h *Holdings) *float64 { return &h.Resident },
		func(h *Holdings) *float64 { return &h.Client },
	} {
		each(i < 3, set) // connections, channels and queues are counted
	}
	shards := slices.DeleteFunc(m.Part(PartShards, true), func(p *Point) bool { return p.Nodes > 1 })
	if len(shards) > 1 {
		least, most := shards[0], shards[len(shards)-1]
		c.PerShard = max(slope(func(h Holdings) float64 { return h.Memory }, least, most, most.Shards-least.Shards), 0) // less is the spread of the rounds
	}
	return c, nil
}

// Part returns the points of a part in their order; with idle, those with holdings.
func (m Measurement) Part(name string, idle bool) []*Point {
	var all []*Point
	for _, p := range m.Points {
		if p.Part == name && (idle && len(p.Idle) > 0 || !idle && len(p.Runs) > 0) {
			all = append(all, p)
		}
	}
	return all
}

// Holds returns what clients and servers hold in the broker. A shard beyond the first is a request
// queue and its queue for batches, each with a channel of every server.
func (c Capacity) Holds(clients, servers, shards int) Holdings {
	n, more, further := float64(clients), float64(servers-1), float64(shards-1)
	at := func(base, client, server float64) float64 { return base + n*client + more*server }
	return Holdings{
		Connections: at(c.Base.Connections, c.PerClient.Connections, c.PerServe.Connections),
		Channels:    at(c.Base.Channels, c.PerClient.Channels, c.PerServe.Channels) + 2*float64(servers)*further,
		Queues:      at(c.Base.Queues, c.PerClient.Queues, c.PerServe.Queues) + 2*further,
		Files:       at(c.Base.Files, c.PerClient.Files, c.PerServe.Files),
		Memory:      at(c.Base.Memory, c.PerClient.Memory, c.PerServe.Memory) + c.PerShard*further,
		Resident:    at(c.Base.Resident, c.PerClient.Resident, 0),
		Client:      at(c.Base.Client, c.PerClient.Client, 0),
	}
}

// Costs returns the processor times of a call, in microseconds, for messages of some calls, and
// some messages in flight between the broker and each client and each server.
func (c Capacity) Costs(l Load, size, perClient, perServer float64) Run {
	client, server := 1/max(perClient, 1), 1/max(perServer, 1)
	of := func(s Side, wake float64) float64 { return s.Call + (s.Message+s.Wake*wake)/size }
	r := Run{Client: of(c.Client, client), Server: of(c.Server, server), Broker: of(c.Broker.Side, (client+server)/2), Size: size}
	if l.Quorum {
		r.Broker += (c.Quorum + c.QuorumWake*server) / size
	}
	r.Broker += l.crossings() * (c.Between + c.BetweenWake*(client+server)/2) / size
	return r
}

// crossings is how many messages of a call pass between nodes: request, response, and their
// confirms. Of a spread request queue those stay that have both ends on one node by chance.
func (l Load) crossings() float64 {
	const all = 4
	switch {
	case l.Place == Remote:
		return all
	case l.Place == Spread && l.Queues == 1:
		return all * float64(l.Nodes-1) / float64(l.Nodes)
	default:
		return 0
	}
}

// CostsOf returns the processor times of a measured closed loop, whose calls in a message are
// measured.
func (c Capacity) CostsOf(p *Point) Run {
	size := p.Medians().Size
	messages := float64(p.Callers) / size
	return c.Costs(p.Load, size, messages/float64(p.Clients), messages/float64(p.Servers*p.Queues))
}

// String has the formula with its figures.
func (c Capacity) String() string {
	var b strings.Builder
	side := func(name string, s Side) {
		fmt.Fprintf(&b, "%-11s= %.2f + (%.0f + %.0f·w)/n µs\n", name, s.Call, s.Message, s.Wake)
	}
	holds := func(name, unit string, base, client, server float64, more string) {
		fmt.Fprintf(&b, "%-11s= %.4g + %.3g·clients + %.3g·(servers − 1)%s%s\n", name, base, client, server, more, unit)
	}
	b.WriteString("\n```\n")
	side("client", c.Client)
	side("server", c.Server)
	side("broker", c.Broker.Side)
	fmt.Fprintf(&b, "             + (%.0f + %.0f·w)/n µs with a quorum queue\n", c.Quorum, c.QuorumWake)
	fmt.Fprintf(&b, "             + (%.0f + %.0f·w)/n µs if client, server and queue are on different nodes\n", 4*c.Between, 4*c.BetweenWake)
	holds("connections", "", c.Base.Connections, c.PerClient.Connections, c.PerServe.Connections, "")
	holds("channels", "", c.Base.Channels, c.PerClient.Channels, c.PerServe.Channels, " + 2·servers·(shards − 1)")
	holds("queues", "", c.Base.Queues, c.PerClient.Queues, c.PerServe.Queues, " + 2·(shards − 1)")
	holds("files", "", c.Base.Files, c.PerClient.Files, c.PerServe.Files, "")
	memory := ""
	if c.PerShard > 0 {
		memory = fmt.Sprintf(" + %.3g·(shards − 1)", c.PerShard)
	}
	holds("memory", " MB", c.Base.Resident, c.PerClient.Memory, c.PerServe.Memory, memory)
	b.WriteString("```\n")
	return b.String()
}

// example is the formula for clients that make 10 calls/s each, without waiting for each other.
func (c Capacity) example() string {
	const clients, rate = 200, 2000.
	r, h := c.Costs(Load{Place: Local}, 1, 1, 1), c.Holds(clients, 1, 1)
	processors := func(micros float64) float64 { return rate * micros / 1e6 / planBusy }
	return fmt.Sprintf("Example: %d clients make 10 calls/s each, without waiting for each other. Each message comes alone, so n = 1 and w = 1: "+
		"a call takes %.0f + %.0f + %.0f µs, and %.0f calls/s take %.1f processors of clients, %.1f of servers and %.1f of the broker, "+
		"which holds %.0f connections, %.0f channels, %.0f queues, %.0f files and %.0f MB.\n",
		clients, r.Client, r.Server, r.Broker, rate, processors(r.Client), processors(r.Server), processors(r.Broker),
		h.Connections, h.Channels, h.Queues, h.Files, c.Base.Resident+h.Memory)
}

// covered reports whether the formula predicts the processor times of a measured point: it needs
// the number of messages in flight, which a closed loop of handlers that take no time has.
func covered(p *Point) bool { return p.Rate == 0 && p.Handler == 0 }

// Check is how far predictions are from measurements.
type Check struct {
	Points        int
	Within        int // points within Tolerance
	Tolerance     float64
	Median, Worst float64
	WorstLabel    string
}

// check compares a prediction with measured points.
func check(points []*Point, tolerance float64, ratio func(*Point) float64) Check {
	c := Check{Tolerance: tolerance}
	var all []float64
	for _, p := range points {
		off := math.Abs(ratio(p) - 1)
		all = append(all, off)
		if off <= tolerance {
			c.Within++
		}
		if off >= c.Worst {
			c.Worst, c.WorstLabel = off, p.Load.String()
		}
	}
	c.Points, c.Median = len(all), median(all)
	return c
}

// String formats a check as a part of a sentence.
func (c Check) String() string {
	return fmt.Sprintf("%d of %d points within %.0f %%, median error %.0f %%, largest %.0f %% (%s)", c.Within, c.Points, 100*c.Tolerance, 100*c.Median, 100*c.Worst, c.WorstLabel)
}
