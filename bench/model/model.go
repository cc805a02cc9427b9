// Package model predicts the throughput of clients, servers and a broker from a few measured
// loads, and names the resource that limits the throughput on machines with more processors.
//
// The processor time of a call has three parts on every side (client, server, broker): a part for
// the call, a part for each message, which the calls of a batch share, and a part for the wake-ups
// of a message. With many messages in flight between a client or a server and the broker, a
// wake-up serves several of them:
//
//	call + (message + wake × inFlight^-exponent) / size
//
// Throughput is at most the processors divided by the sum of the sides, at most the processors of
// a process divided by that process's side, at most the callers divided by the latency of a call,
// and at most one call in the time of a serial part, which is work that only one processor at a
// time can do. These bounds are far apart on large machines. On small machines the bounds are
// close, and a message also waits for the processors' work on other messages.
package model

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Sides of a call, which have costs and serial parts of their own.
const (
	Client = "client"
	Server = "server"
	Broker = "broker"
)

// Part is serial work for one client, for one server, or of the broker for one queue with its
// connections.
type Part struct {
	Batch  bool    `json:"batch"` // measured with batches
	Side   string  `json:"side"`
	Name   string  `json:"name"`
	OnPath bool    `json:"on_path"` // every call of a batch waits for this part, one after the other
	Micros float64 `json:"micros"`  // processor time for a call
}

// Point is a measured load.
type Point struct {
	Label      string  `json:"label"`
	Batch      bool    `json:"batch"`
	Callers    int     `json:"callers"`
	Queues     int     `json:"queues"`     // request queues, and servers
	Clients    int     `json:"clients"`    // at least one for each queue
	Procs      int     `json:"procs"`      // processors that the client's process may use, and the server's
	Processors float64 `json:"processors"` // of the machine, without those that other programs used
	Size       float64 `json:"size"`       // calls in a message
	Rate       float64 `json:"rate"`       // calls per second
	Client     float64 `json:"client"`     // processor time for a call, in microseconds
	Server     float64 `json:"server"`
	Broker     float64 `json:"broker"`
}

// Costs are processor times for a call, in microseconds.
type Costs struct{ Client, Server, Broker float64 }

// Sum returns the time of all sides.
func (c Costs) Sum() float64 { return c.Client + c.Server + c.Broker }

// cost has the parts of the processor time of a side, in microseconds.
type cost struct{ call, message, wake float64 }

// Model is fitted to some points (Fit).
type Model struct {
	client, server, broker cost

	// exponent tells how fast the cost of wake-ups falls with the messages in flight.
	exponent float64
	// alone is the cost of client's and server's wake-ups with one processor for each process,
	// as a part of the cost with more.
	alone float64
	// busy is the part of the processors' time that client, server and broker use at full load.
	busy float64
	// latency is the time of a single call, in microseconds.
	latency float64
	procs   int // of the points with all processors
	parts   []Part
	fitted  []string // labels
}

// costsOf returns the measured processor times.
func (p Point) costsOf() Costs { return Costs{p.Client, p.Server, p.Broker} }

// isBase reports whether the point has one client, one queue, and as many processors as there are.
func (p Point) isBase(procs int) bool { return p.Clients == 1 && p.Queues == 1 && p.Procs == procs }

// inFlight returns the messages in flight of one client and of one server.
func (p Point) inFlight() (client, server float64) {
	messages := float64(p.Callers) / p.Size
	return max(messages/float64(p.Clients), 1), max(messages/float64(p.Queues), 1)
}

// Fit fits the model to six points with one client and one queue: single messages with 1, 16 and
// 1,024 callers, batches with 64 and 1,024 callers, and single messages with one caller and one
// processor for each process. Check compares the model with the other points.
func Fit(points []Point, parts []Part) (*Model, error) {
	m := &Model{parts: parts, alone: 1}
	for _, p := range points {
		m.procs = max(m.procs, p.Procs)
	}
	var faults []error
	find := func(batch bool, callers, procs int) Point {
		for _, p := range points {
			if p.Batch == batch && p.Callers == callers && p.isBase(procs) {
				m.fitted = append(m.fitted, p.Label)
				return p
			}
		}
		faults = append(faults, fmt.Errorf("no point with %d callers, batch %v, %d processors for each process", callers, batch, procs))
		return Point{Size: 1, Clients: 1, Queues: 1, Callers: callers}
	}
	one, some, many := find(false, 1, m.procs), find(false, 16, m.procs), find(false, 1024, m.procs)
	batchSome, batchMany, alone := find(true, 64, m.procs), find(true, 1024, m.procs), find(false, 1, 1)
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	switch {
	case one.Rate <= 0:
		return nil, errors.New("no call of the single caller")
	case batchMany.Size <= 1:
		return nil, errors.New("the broker's messages were not counted")
	case many.Broker <= 0 || many.Processors <= 0:
		return nil, errors.New("the processor time of the broker, or of the machine, was not measured")
	}
	m.latency = 1e6 / one.Rate
	m.share(one, many, batchMany, []Point{some, batchSome})
	if m.procs > 1 {
		rest := alone.Client + alone.Server - m.client.call - m.client.message - m.server.call - m.server.message
		m.alone = min(max(rest/(m.client.wake+m.server.wake), 0), 1)
	}
	used := func(p Point) float64 { return p.Rate * p.costsOf().Sum() / 1e6 / p.Processors }
	m.busy = (used(many) + used(batchMany)) / 2
	return m, nil
}

// share searches the exponent with which the processor times of some points are met best, and sets
// the costs of each side.
func (m *Model) share(one, many, batch Point, some []Point) {
	least := math.Inf(1)
	best := *m
	for exponent := 0.2; exponent <= 2; exponent += 0.01 {
		m.exponent = exponent
		m.solve(one, many, batch)
		var sum float64
		for _, p := range some {
			off := math.Log(m.Costs(p).Sum() / p.costsOf().Sum())
			sum += off * off
		}
		if sum < least {
			least, best = sum, *m
		}
	}
	*m = best
}

// solve sets the costs of each side so that three points are met.
func (m *Model) solve(one, many, batch Point) {
	side := func(of func(Costs) float64, shared func(Point) float64) cost {
		first, second, third := of(one.costsOf()), of(many.costsOf()), of(batch.costsOf())
		wake := (first - second) / (1 - shared(many))
		alone := first - wake // call and message
		call := (third - (alone+wake*shared(batch))/batch.Size) / (1 - 1/batch.Size)
		return cost{call: max(call, 0), message: alone - max(call, 0), wake: wake}
	}
	m.client = side(func(c Costs) float64 { return c.Client }, func(p Point) float64 { client, _, _ := m.shared(p); return client })
	m.server = side(func(c Costs) float64 { return c.Server }, func(p Point) float64 { _, server, _ := m.shared(p); return server })
	m.broker = side(func(c Costs) float64 { return c.Broker }, func(p Point) float64 { _, _, broker := m.shared(p); return broker })
}

// shared returns which part of the cost of wake-ups a message has, on each side. The broker has a
// connection to a client for half of its messages, and to a server for the others.
func (m *Model) shared(p Point) (client, server, broker float64) {
	ofClient, ofServer := p.inFlight()
	client, server = math.Pow(ofClient, -m.exponent), math.Pow(ofServer, -m.exponent)
	return client, server, (client + server) / 2
}

// Costs predicts the processor times of a load.
func (m *Model) Costs(p Point) Costs {
	client, server, broker := m.shared(p)
	if p.Procs == 1 && m.procs > 1 {
		client, server = client*m.alone, server*m.alone
	}
	at := func(c cost, shared float64) float64 { return c.call + (c.message+c.wake*shared)/p.Size }
	return Costs{at(m.client, client), at(m.server, server), at(m.broker, broker)}
}

// Fitted reports whether the model was fitted to the point.
func (m *Model) Fitted(p Point) bool { return slices.Contains(m.fitted, p.Label) }

// fewCallers is the number of callers for each of several clients below which the model does not
// hold: a message then has few calls and shares no system call with others, although there are
// many messages in flight. The model predicts up to twice the measured calls/s there.
const fewCallers = 32

// Covers reports whether the model holds for the load.
func (p Point) Covers() bool { return p.Clients == 1 || p.Callers >= fewCallers*p.Clients }

// Bound is the most calls per second that a resource allows.
type Bound struct {
	Side string // of the resource, of which a load may have more; empty: of the whole load
	Name string
	Rate float64
}

// Names of bounds that are no serial part.
const (
	BoundProcessors = "processors"
	BoundClient     = "processors of the client's process"
	BoundServer     = "processors of the server's process"
	BoundCallers    = "callers"
)

// Bounds returns the bounds of a load, the lowest first.
func (m *Model) Bounds(p Point) []Bound {
	costs := m.Costs(p)
	bounds := []Bound{
		{Name: BoundProcessors, Rate: 1e6 * m.busy * p.Processors / costs.Sum()},
		{Side: Client, Name: BoundClient, Rate: 1e6 * float64(p.Procs) / costs.Client},
		{Side: Server, Name: BoundServer, Rate: 1e6 * float64(p.Procs) / costs.Server},
		{Name: BoundCallers, Rate: 1e6 * float64(p.Callers) / m.latencyOf(p)},
	}
	for _, part := range m.parts {
		if part.Batch == p.Batch && part.Micros > 0 {
			of := map[string]int{Client: p.Clients, Server: p.Queues, Broker: p.Queues}[part.Side]
			bounds = append(bounds, Bound{Side: part.Side, Name: part.Name, Rate: 1e6 * float64(of) / part.Micros})
		}
	}
	slices.SortStableFunc(bounds, func(a, b Bound) int {
		switch {
		case a.Rate < b.Rate:
			return -1
		case a.Rate > b.Rate:
			return 1
		default:
			return 0
		}
	})
	return bounds
}

// latencyOf returns the time of a call with a processor for everything that waits for one: the
// latency of a single call, which grows and shrinks with the processor time of the message, and of
// the other calls in the message the serial parts on their way, and their share of the processors.
func (m *Model) latencyOf(p Point) float64 {
	lone := Point{Callers: 1, Queues: 1, Clients: 1, Procs: m.procs, Size: 1}
	calls := Costs{m.client.call, m.server.call, m.broker.call}.Sum()
	latency := m.latency*(m.Costs(p).Sum()-calls)*p.Size/(m.Costs(lone).Sum()-calls) + (p.Size-1)*calls/p.Processors
	for _, part := range m.parts {
		if part.OnPath && part.Batch == p.Batch {
			latency += (p.Size - 1) * part.Micros
		}
	}
	return latency
}

// Rate predicts the calls per second of a load: as many as the lowest bound, and not more than the
// callers make if each message also waits for the processors' work on the other messages in flight.
func (m *Model) Rate(p Point) float64 {
	others := max(float64(p.Callers)/p.Size-1, 0)
	waiting := others * m.Costs(p).Sum() * p.Size / (p.Processors * m.busy)
	return min(m.Bounds(p)[0].Rate, 1e6*float64(p.Callers)/(m.latencyOf(p)+waiting))
}

// Error returns how much the prediction is above the measurement, as a part of the latter.
func (m *Model) Error(p Point) float64 { return m.Rate(p)/p.Rate - 1 }

// Base returns the measured point with one client, one queue and all processors.
func (m *Model) Base(points []Point, batch bool, callers int) (Point, bool) {
	for _, p := range points {
		if p.Batch == batch && p.Callers == callers && p.isBase(m.procs) {
			return p, true
		}
	}
	return Point{}, false
}

// On returns the load on a machine with a number of processors, all of them free.
func (p Point) On(processors int) Point {
	p.Procs, p.Processors = processors, float64(processors)
	return p
}

// Needed returns how many clients, servers and queues a load needs, so that the processors are its
// limit. The callers of each client, and the sizes of batches, stay.
func (m *Model) Needed(p Point) map[string]int {
	bounds := m.Bounds(p)
	var processors float64
	for _, b := range bounds {
		if b.Name == BoundProcessors {
			processors = b.Rate
		}
	}
	needed := map[string]int{Client: p.Clients, Server: p.Queues, Broker: p.Queues}
	for _, b := range bounds {
		side := b.Side
		if b.Name == BoundCallers {
			side = Client // more clients have more callers
		}
		if side != "" {
			needed[side] = max(needed[side], int(math.Ceil(processors/b.Rate)))
		}
	}
	return needed
}
