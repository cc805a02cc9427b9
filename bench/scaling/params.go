package scaling

import (
	"errors"
	"fmt"
	"math"

	"rabbitmq-rpc/bench/model"
)

// Params are the parameters of the simulation, from measurements.
type Params struct {
	Client, Server Side
	Broker         BrokerSide
	Hop            float64 // time of a message from one process to another on one machine, in microseconds
	// Quorum is the broker's further processor time for a message in a quorum queue, and QuorumWake
	// that of the wake-ups.
	Quorum, QuorumWake float64
	// Between is the brokers' processor time for a message, or a confirm, between two nodes.
	Between, BetweenWake float64
	Busy                 float64 // the part of the processors' time that is used at full load
}

// Side has the processor times of client, server or broker, in microseconds: for a call, for its
// two messages, which the calls of a batch share, and for the wake-ups of an idle process by these.
type Side struct {
	Call, Message, Wake float64
	// Reader and Writer are the parts in the goroutines that read and write.
	Reader, Writer float64
}

// stage returns the cost of a part.
func (s Side) stage(part float64) cost { return cost{message: s.Message * part, call: s.Call * part} }

// BrokerSide are the processor times of the broker. The parts are those in the busiest process of
// each kind, which handles one of the two messages of a call.
type BrokerSide struct {
	Side
	Channel, Queue float64
}

// rest is the part that is in no such process, for one of the two messages.
func (b BrokerSide) rest() float64 { return max(0.5-b.Reader-b.Channel-b.Queue-b.Writer, 0) }

// simulatedTime is the least time of a simulation that is compared with a measurement, before and
// while the simulation counts.
const simulatedTime = 80_000.

// system returns the measured system of a point: one machine, without the processors that other
// programs used.
func (p Params) system(l Load, r Run) System {
	const cores = 2
	return System{Load: l, Cores: cores, Speed: r.Processors * p.Busy / cores, Shared: true, InTurn: true}
}

// Predict simulates a measured point. The first calls of all callers settle before the simulation
// counts.
func (p Params) Predict(at *Point) Simulated {
	r := at.Medians()
	s := p.system(at.Load, r)
	time := max(simulatedTime, float64(at.Callers)*sum(r)/float64(s.Cores)) / s.Speed
	return Simulate(p, s, time, time)
}

// find returns the point of one node with one server and one client.
func (m Measurement) find(want Load) (*Point, error) {
	for _, p := range m.Points {
		if p.Load == want && len(p.Runs) > 0 {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no measured point: %s", want)
}

// base returns the load of one node, one server and one client.
func base(batch bool, callers int) Load {
	return Load{Part: PartNodes, Batch: batch, Nodes: 1, Place: Local, Queues: 1, Shards: 1, Servers: 1, Workers: 64, Clients: 1, Callers: callers}
}

// Fitted returns the loads that the parameters are taken from.
func Fitted() []Load {
	quorum, remote := base(false, 1024), base(false, 1024)
	quorum.Nodes, quorum.Quorum = 3, true
	remote.Nodes, remote.Place = 3, Remote
	quorumOne, remoteOne := quorum, remote
	quorumOne.Callers, remoteOne.Callers = 1, 1
	return []Load{base(false, 1), base(false, 1024), base(true, 1024), quorum, quorumOne, remote, remoteOne}
}

// Fit takes the parameters from seven measured points, and the parts of the processes from the
// measurement of the experiment growth. It repeats the simulation of these points until it has
// their processor times.
func Fit(m Measurement, parts []model.Part) (Params, error) {
	var at []*Point
	var faults []error
	for _, l := range Fitted() {
		p, err := m.find(l)
		faults = append(faults, err)
		at = append(at, p)
	}
	if err := errors.Join(faults...); err != nil {
		return Params{}, err
	}
	one, many, batch := at[0], at[1], at[2]
	p := Params{Hop: 1}
	used := func(r Run) float64 { return r.Rate * (r.Client + r.Server + r.Broker) / 1e6 / r.Processors }
	p.Busy = min((used(many.Medians())+used(batch.Medians()))/2, 1)
	p.begin(one.Medians(), many.Medians(), batch.Medians(), parts)
	for range 6 {
		p.approach(p.Predict(one), p.Predict(many), p.Predict(batch), one.Medians(), many.Medians(), batch.Medians())
	}
	const crossings = 4 // between nodes: request, response and their confirms
	for range 4 {
		p.nearer(&p.Quorum, at[3], 1)
		p.nearer(&p.QuorumWake, at[4], 1)
		p.nearer(&p.Between, at[5], crossings)
		p.nearer(&p.BetweenWake, at[6], crossings)
	}
	return p, nil
}

// nearer changes a processor time of the broker, that a call has some times, so that the next
// simulation of a point is nearer to the measurement.
func (p *Params) nearer(micros *float64, at *Point, times float64) {
	if simulated := p.Predict(at); simulated.Broker > 0 {
		*micros = max(*micros+0.8*(at.Medians().Broker-simulated.Broker)/times, 0)
	}
}

// begin sets the parts of the processes, and processor times to begin with.
func (p *Params) begin(one, many, batch Run, parts []model.Part) {
	side := func(of func(Run) float64) Side {
		return Side{Call: of(batch) / 2, Message: of(many), Wake: max(of(one)-of(many), 0)}
	}
	p.Client = side(func(r Run) float64 { return r.Client })
	p.Server = side(func(r Run) float64 { return r.Server })
	p.Broker.Side = side(func(r Run) float64 { return r.Broker })
	total := map[string]float64{model.Client: many.Client, model.Server: many.Server, model.Broker: many.Broker}
	for _, part := range parts {
		if part.Batch {
			continue
		}
		share := part.Micros / total[part.Side]
		switch part.Side + ": " + part.Name {
		case "client: goroutines that read frames":
			p.Client.Reader = share
		case "client: goroutine that writes requests":
			p.Client.Writer = share
		case "server: goroutines that read frames":
			p.Server.Reader = share
		case "server: goroutine that writes responses":
			p.Server.Writer = share
		case "broker: process of a queue":
			p.Broker.Queue = share
		case "broker: process of a channel":
			p.Broker.Channel = share
		case "broker: process that reads a connection":
			p.Broker.Reader = share
		case "broker: process that writes to a connection":
			p.Broker.Writer = share
		}
	}
}

// approach changes the parameters so that the next simulation is nearer to the measurement.
func (p *Params) approach(one, many, batch Simulated, ofOne, ofMany, ofBatch Run) {
	side := func(s *Side, got func(Simulated) float64, want func(Run) float64) {
		s.Wake = max(s.Wake+want(ofOne)-got(one), 0)
		s.Message = max(s.Message+want(ofMany)-got(many), 0.1)
		s.Call = max(s.Call+(want(ofBatch)-got(batch))*0.7, 0.01)
	}
	side(&p.Client, func(s Simulated) float64 { return s.Client }, func(r Run) float64 { return r.Client })
	side(&p.Server, func(s Simulated) float64 { return s.Server }, func(r Run) float64 { return r.Server })
	side(&p.Broker.Side, func(s Simulated) float64 { return s.Broker }, func(r Run) float64 { return r.Broker })
	const hops = 6 // on the way of a call and its response, between processes of the machine
	if one.Rate > 0 {
		p.Hop = min(max(p.Hop+(1e6/ofOne.Rate-1e6/one.Rate)/hops, 0), 1000)
	}
}

// Error is how far a simulation is above the measurement, as a part of the latter.
func Error(simulated, measured float64) float64 {
	if measured == 0 {
		return math.Inf(1)
	}
	return simulated/measured - 1
}
