package experiment

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/process"
)

// Loads of the experiment Growth.
const (
	smallRate   = 1000            // calls per second of many clients with little to do
	clientPause = time.Second     // between the start of many clients and the measurement of their memory
	clientMost  = 3               // rounds of the part with many clients
	settledWait = 5 * time.Second // for the broker's figures of ended connections
	labelIdle   = "idle"
	labelSmall  = "1,000 calls/s"
)

// growthClients are the numbers of clients in one process.
func growthClients() []int { return []int{1, 10, 50, 100, 200} }

// growthExperiment measures what grows with request queues, with processors and with clients.
func growthExperiment(o Options) Experiment {
	e := Experiment{
		title: "Growth",
		file:  "growth",
		note: fmt.Sprintf("Closed loop, except where a rate is named. With several queues, the client process has a client for each queue, the server process a server, "+
			"and the calls go to the clients in turn: the processes and the callers stay as many, and only connections, tables and queues are more. "+
			"GOMAXPROCS is that of the client and of the server process. The part with many clients in one process takes at most %d rounds, each with new processes.", clientMost),
		render: (*Section).growth,
	}
	for _, base := range setupsOf(o, contender.Environment{}, contender.Single, contender.Batched) {
		e.setups = append(e.setups, base)
		for _, n := range []int{2, 4} {
			setup := base
			setup.Label, setup.Env.Queues = fmt.Sprintf("%s, %d queues", base.Label, n), n
			e.setups = append(e.setups, setup)
		}
		for _, n := range []int{1, 2} {
			if n == runtime.NumCPU() {
				continue // the base
			}
			setup := base
			setup.Label, setup.Procs = fmt.Sprintf("%s, GOMAXPROCS %d", base.Label, n), n
			e.setups = append(e.setups, setup)
		}
		if base.Contender != contender.Batched {
			continue
		}
		for _, n := range growthClients() {
			setup := base
			setup.Label, setup.Env.Clients = labelClients(base.Label, n), n
			e.setups = append(e.setups, setup)
		}
	}
	e.loads = closedLoads(o, []int{1, 16, 64, 256, heavyCallers})
	return e
}

func labelClients(label string, n int) string {
	if n == 1 {
		return label + ", 1 client"
	}
	return fmt.Sprintf("%s, %d clients", label, n)
}

// takesPart reports whether the setup has a turn with a number of callers: all have with 64 and
// 1,024, several queues have not with fewer callers, and only the base has with the others.
func takesPart(e process.Setup, callers int) bool {
	switch {
	case e.Env.Clients > 0:
		return false
	case callers == 64, callers == heavyCallers:
		return true
	case callers == 1:
		return e.Env.Queues == 0
	default:
		return e.Env.Queues == 0 && e.Procs == 0
	}
}

// growth runs the parts of the experiment Growth.
func (r *Runner) growth(ctx context.Context, s *Section) error {
	for _, part := range []func(context.Context, *Section) error{r.growthClients, r.growthLoads, r.growthParts} {
		if err := part(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// growthLoads measures several queues and GOMAXPROCS; the setups take turns.
func (r *Runner) growthLoads(ctx context.Context, s *Section) (err error) {
	var groups []*process.Group
	defer func() {
		for _, g := range groups {
			err = errors.Join(err, g.Stop())
		}
	}()
	for _, setup := range s.setups {
		if setup.Env.Clients > 0 {
			continue
		}
		g, err := r.start(ctx, setup)
		if err != nil {
			return err
		}
		groups = append(groups, g)
	}
	for round := range r.Options.Rounds + 1 {
		for _, l := range s.loads {
			for _, g := range groups {
				if !takesPart(g.Setup, l.turn.Callers) {
					continue
				}
				sample, err := r.counted(ctx, g, l.turn)
				if err != nil {
					return err
				}
				r.progress(s.Name, round, l.label, g.Setup.Label, sample)
				if round > 0 {
					s.Add(g.Setup.Label, l.label, sample)
				}
			}
		}
	}
	return nil
}

// counted runs a turn, and counts the messages that the broker got in it.
func (r *Runner) counted(ctx context.Context, g *process.Group, t process.Turn) (Sample, error) {
	if err := ctx.Err(); err != nil {
		return Sample{}, err
	}
	before, err := r.broker(ctx)
	if err != nil {
		return Sample{}, err
	}
	measured, err := g.Run(t)
	if err != nil {
		return Sample{}, err
	}
	after, err := r.broker(ctx)
	sample := newSample(measured)
	sample.Broker = after
	sample.Messages = (after.Messages - before.Messages) / float64(measured.Outcome.Calls)
	return sample, err
}

// broker reads the broker's figures; without a URL for them they are 0.
func (r *Runner) broker(ctx context.Context) (process.BrokerFigures, error) {
	if r.Options.MetricsURL == "" {
		return process.BrokerFigures{}, nil
	}
	return process.ReadBroker(ctx, r.Options.MetricsURL)
}

// settledBroker reads the broker's figures until the number of its connections does not change.
func (r *Runner) settledBroker(ctx context.Context) (process.BrokerFigures, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, settledWait, errors.New("the broker's connections do not settle"))
	defer cancel()
	last, err := r.broker(ctx)
	for err == nil {
		if err = contender.Pause(ctx, 200*time.Millisecond); err != nil {
			return last, errors.Join(err, context.Cause(ctx))
		}
		var next process.BrokerFigures
		if next, err = r.broker(ctx); next.Connections == last.Connections {
			return next, err
		}
		last = next
	}
	return last, err
}

// growthClients measures many clients in one process, in fresh processes in every round.
func (r *Runner) growthClients(ctx context.Context, s *Section) error {
	for round := range min(r.Options.Rounds, clientMost) {
		for _, setup := range s.setups {
			if setup.Env.Clients == 0 {
				continue
			}
			if err := r.clients(ctx, s, setup, round+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// clients measures one number of clients: idle, with little load, and with many callers.
func (r *Runner) clients(ctx context.Context, s *Section, setup process.Setup, round int) (err error) {
	before, err := r.settledBroker(ctx)
	if err != nil {
		return err
	}
	g, err := r.start(ctx, setup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()
	if err := contender.Pause(ctx, clientPause); err != nil {
		return err
	}
	idle, err := r.settledBroker(ctx)
	if err != nil {
		return err
	}
	rest, err := g.Rest()
	if err != nil {
		return err
	}
	memory := newMemory(rest.Memory)
	resident, err := process.Resident(r.Options.BrokerPID)
	if err != nil {
		return err
	}
	memory.Broker = megabytes(resident)
	s.Add(setup.Label, labelIdle, Sample{Memory: memory, Broker: process.BrokerFigures{
		Connections: idle.Connections - before.Connections, Channels: idle.Channels - before.Channels,
		Declared: idle.Declared - before.Declared, Memory: idle.Memory - before.Memory,
	}})
	small := openLoad(r.Options, labelSmall, smallRate, r.Options.Duration)
	full := closedLoads(r.Options, []int{heavyCallers})[0]
	warm := full.turn
	warm.Duration /= 2
	if _, err := g.Run(warm); err != nil {
		return err
	}
	for _, l := range []load{small, full} {
		sample, err := r.counted(ctx, g, l.turn)
		if err != nil {
			return err
		}
		r.progress(s.Name, round, l.label, setup.Label, sample)
		s.Add(setup.Label, l.label, sample)
	}
	return nil
}

// queuesOf returns the number of request queues of a setup.
func queuesOf(e process.Setup) int { return max(e.Env.Queues, 1) }

// clientsOf returns the number of clients in the client process of a setup.
func clientsOf(e process.Setup) int { return max(e.Env.Clients, queuesOf(e)) }

// procsOf returns how many processors each process of a setup may use.
func procsOf(e process.Setup) int { return cmp.Or(e.Procs, runtime.NumCPU()) }
