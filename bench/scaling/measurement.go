// Package scaling holds the measured curves of docs/scaling.md, the capacity formula that is
// checked against the curves, and a simulation that reproduces the curves and predicts loads
// beyond the measuring machine.
package scaling

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
)

// Parts of the measurement. A part measures one dimension, and its points differ in no other.
const (
	PartNodes   = "nodes"
	PartServers = "servers"
	PartClients = "clients"
	PartShards  = "shards"
)

// Places of clients, servers and request queues in a cluster.
const (
	Local  = "local"  // client, server and queue on one node
	Remote = "remote" // the queue, the client and the server on three nodes
	// Spread is three request queues, each on a node of its own with a client and a server; or the
	// shards, servers and clients of one request queue, on the nodes in turn.
	Spread = "spread"
)

// Load identifies a point: the setup and what the clients do.
type Load struct {
	Part    string  `json:"part"`
	Batch   bool    `json:"batch"`
	Nodes   int     `json:"nodes"`
	Place   string  `json:"place"`
	Quorum  bool    `json:"quorum"`
	Queues  int     `json:"queues"`
	Shards  int     `json:"shards"` // of each request queue
	Servers int     `json:"servers"`
	Workers int     `json:"workers"` // of each server
	Handler float64 `json:"handler"` // time of a handler without processor time, in microseconds
	Clients int     `json:"clients"`
	Callers int     `json:"callers"` // of all clients, each with one call at a time; 0: an open loop
	Rate    float64 `json:"rate"`    // of an open loop, in calls per second
}

// Run is one round of a point.
type Run struct {
	Rate       float64 `json:"rate"` // calls per second
	P50        float64 `json:"p50"`  // latency in milliseconds
	P99        float64 `json:"p99"`
	Client     float64 `json:"client"` // processor time of a call, in microseconds
	Server     float64 `json:"server"`
	Broker     float64 `json:"broker"`     // of all nodes
	Processors float64 `json:"processors"` // of the machine, without those that other programs used
	Size       float64 `json:"size"`       // calls in a message
}

// Holdings are what idle clients and servers hold in the broker, over what the broker holds
// without them.
type Holdings struct {
	Connections float64 `json:"connections"`
	Channels    float64 `json:"channels"`
	Queues      float64 `json:"queues"`
	Files       float64 `json:"files"`
	Memory      float64 `json:"memory"`   // of the broker's processes and tables, in megabytes
	Resident    float64 `json:"resident"` // of the broker, in megabytes, not only what they add
	Client      float64 `json:"client"`   // resident memory of the client process, in megabytes
}

// Point is a load with its rounds. A point of idle clients has only holdings.
type Point struct {
	Load
	Runs []Run      `json:"runs,omitempty"`
	Idle []Holdings `json:"idle,omitempty"`
}

// Measurement is what the experiments have measured, over several runs.
type Measurement struct {
	Machine string   `json:"machine"`
	Points  []*Point `json:"points"`
}

// Read reads a measurement from a file.
func Read(file string) (m Measurement, err error) {
	text, err := os.ReadFile(file) //nolint:gosec // the user of this tool named it.
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

// Append adds the rounds of a measurement to those of a file, which it creates if necessary.
func (m Measurement) Append(file string) error {
	all, err := Read(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	all.Machine = m.Machine
	for _, p := range m.Points {
		at := all.point(p.Load)
		at.Runs, at.Idle = append(at.Runs, p.Runs...), append(at.Idle, p.Idle...)
	}
	text, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644) //nolint:gosec // a document.
}

// point returns the point of a load, which it adds if there is none.
func (m *Measurement) point(l Load) *Point {
	for _, p := range m.Points {
		if p.Load == l {
			return p
		}
	}
	p := &Point{Load: l}
	m.Points = append(m.Points, p)
	return p
}

// AddRun adds a round of a load.
func (m *Measurement) AddRun(l Load, r Run) {
	p := m.point(l)
	p.Runs = append(p.Runs, r)
}

// AddIdle adds a round of a setup whose clients are idle.
func (m *Measurement) AddIdle(l Load, h Holdings) {
	p := m.point(l)
	p.Idle = append(p.Idle, h)
}

// Median returns the median of a figure over the rounds, and 0 without rounds.
func (p *Point) Median(figure func(Run) float64) float64 {
	var all []float64
	for _, r := range p.Runs {
		all = append(all, figure(r))
	}
	return median(all)
}

// Holds returns the median of a figure of the idle setup.
func (p *Point) Holds(figure func(Holdings) float64) float64 {
	var all []float64
	for _, h := range p.Idle {
		all = append(all, figure(h))
	}
	return median(all)
}

// Medians returns the medians of all figures.
func (p *Point) Medians() Run {
	return Run{
		Rate: p.Median(func(r Run) float64 { return r.Rate }), P50: p.Median(func(r Run) float64 { return r.P50 }),
		P99: p.Median(func(r Run) float64 { return r.P99 }), Client: p.Median(func(r Run) float64 { return r.Client }),
		Server: p.Median(func(r Run) float64 { return r.Server }), Broker: p.Median(func(r Run) float64 { return r.Broker }),
		Processors: p.Median(func(r Run) float64 { return r.Processors }), Size: p.Median(func(r Run) float64 { return r.Size }),
	}
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	half := len(all) / 2
	if len(all)%2 == 0 {
		return (all[half-1] + all[half]) / 2
	}
	return all[half]
}
