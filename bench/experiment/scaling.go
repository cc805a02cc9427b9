package experiment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/process"
	"rabbitmq-rpc/bench/scaling"
)

// Loads of the scaling experiments.
const (
	scalingHandler = 5 * time.Millisecond
	scalingWorkers = 8
	// scalingSpread is the number of the servers, and of the clients, of a request queue of several
	// shards: one on each of the nodes over which it is spread.
	scalingSpread = 3
	scalingWarm   = 4 // a turn is preceded by one that is this many times shorter
	// reportDelay is more than the interval in which the nodes of a cluster report their figures.
	reportDelay = 1500 * time.Millisecond
)

// scaled is a setup of a scaling experiment.
type scaled struct {
	setup process.Setup
	point scaling.Load
	turns []process.Turn
	idle  bool // what the idle processes hold is measured too
}

// scalingParts returns the parts of the measurement by the names of their experiments.
func scalingParts() map[string]string {
	return map[string]string{
		ScalingNodes: scaling.PartNodes, ScalingServers: scaling.PartServers, ScalingClients: scaling.PartClients, ScalingShards: scaling.PartShards,
	}
}

// scalingExperiment returns an experiment that adds rounds to scaling.json.
func scalingExperiment(name string, o Options) Experiment {
	e := Experiment{
		title: "Scaling: " + scalingParts()[name],
		note: "Medians over the rounds of this run. Each setup has new processes in each round, and a turn follows a shorter one to warm up. " +
			"The broker's processor time is that of all nodes.",
		file: "scaling", render: (*Section).scalingTable,
	}
	for _, base := range setupsOf(o, contender.Environment{}, contender.Single, contender.Batched) {
		if base.Label != base.Contender {
			continue // another build
		}
		point := scaling.Load{
			Part: scalingParts()[name], Batch: base.Contender == contender.Batched, Nodes: 1, Place: scaling.Local,
			Queues: 1, Shards: 1, Servers: 1, Workers: 64, Clients: 1,
		}
		switch name {
		case ScalingNodes:
			e.scaled = append(e.scaled, nodeSetups(o, base, point)...)
		case ScalingServers:
			e.scaled = append(e.scaled, serverSetups(o, base, point)...)
		case ScalingClients:
			e.scaled = append(e.scaled, clientSetups(o, base, point)...)
		case ScalingShards:
			e.scaled = append(e.scaled, shardSetups(o, base, point)...)
		}
	}
	for _, s := range e.scaled {
		if !slices.ContainsFunc(e.setups, func(known process.Setup) bool { return known.Label == s.setup.Label }) {
			e.setups = append(e.setups, s.setup)
		}
	}
	return e
}

// closedTurns returns a closed loop for each number of callers.
func closedTurns(o Options, callers ...int) []process.Turn {
	var all []process.Turn
	for _, n := range callers {
		all = append(all, process.Turn{Callers: n, Duration: o.Duration, MaxCalls: 1 << 30})
	}
	return all
}

// nodeSetups returns one node, and, with the URLs of a cluster, the places in its three nodes.
func nodeSetups(o Options, base process.Setup, point scaling.Load) []scaled {
	all := []scaled{{setup: base, point: point, turns: closedTurns(o, 1, 16, 64, 256, heavyCallers), idle: !point.Batch}}
	if len(o.Cluster) < 3 {
		return all
	}
	point.Nodes = 3
	at := func(node int) string { return o.Cluster[node].URL }
	for _, quorum := range []bool{false, true} {
		for _, place := range []string{scaling.Local, scaling.Remote, scaling.Spread} {
			if quorum && place == scaling.Spread {
				continue
			}
			setup := base
			point.Quorum, point.Place, point.Queues, point.Clients = quorum, place, 1, 1
			setup.Label = fmt.Sprintf("%s, cluster, %s, quorum %v", base.Label, place, quorum)
			setup.Env.Quorum = quorum
			switch place {
			case scaling.Remote:
				setup.Declared, setup.ServerURL, setup.ClientURL = true, at(1), at(2)
			case scaling.Spread:
				point.Queues, point.Clients = 3, 3
				setup.Env.Queues, setup.Env.Nodes = 3, []string{at(0), at(1), at(2)}
			}
			all = append(all, scaled{setup: setup, point: point, turns: closedTurns(o, 1, 64, heavyCallers), idle: !point.Batch && point.Queues == 1})
		}
	}
	return all
}

// serverSetups returns several server processes, with handlers that take no time, and with
// handlers that wait.
func serverSetups(o Options, base process.Setup, point scaling.Load) []scaled {
	var all []scaled
	for _, n := range []int{1, 2, 4, 8} {
		setup := base
		point.Servers, setup.Servers = n, n
		setup.Label = labelFleetOf(base.Label, n)
		all = append(all, scaled{setup: setup, point: point, turns: closedTurns(o, heavyCallers), idle: !point.Batch})
		slow, slowPoint := setup, point
		slow.Label += ", handler " + scalingHandler.String()
		slow.Env.Workers, slow.Env.Sleep = scalingWorkers, scalingHandler
		slowPoint.Workers, slowPoint.Handler = scalingWorkers, float64(scalingHandler.Microseconds())
		all = append(all, scaled{setup: slow, point: slowPoint, turns: closedTurns(o, 256)})
	}
	return all
}

// clientSetups returns several clients in one process.
func clientSetups(o Options, base process.Setup, point scaling.Load) []scaled {
	if !point.Batch {
		return nil // an idle client is the same, and few callers for each client make single messages
	}
	var all []scaled
	for _, n := range []int{1, 10, 50, 100, 200, 500} {
		setup := base
		point.Clients = n
		setup.Label, setup.Env.Clients = labelClients(base.Label, n), n
		turns := closedTurns(o, heavyCallers)
		turns = append(turns, process.Turn{Rate: smallRate, InFlight: heavyCallers, Duration: o.Duration, MaxCalls: 1 << 30})
		all = append(all, scaled{setup: setup, point: point, turns: turns, idle: true})
	}
	return all
}

// shardSetups returns one request queue of several shards, with several servers and clients: all on
// one node, and, with the URLs of a cluster, spread over its three nodes.
func shardSetups(o Options, base process.Setup, point scaling.Load) []scaled {
	turns := closedTurns(o, 64, heavyCallers)
	point.Servers, point.Clients = scalingSpread, scalingSpread
	base.Servers, base.Env.Clients = scalingSpread, scalingSpread
	var all []scaled
	for _, n := range shardNumbers() {
		setup := base
		setup.Label = labelShards(base.Label, n)
		point.Shards, setup.Env.Shards = n, n
		all = append(all, scaled{setup: setup, point: point, turns: turns, idle: point.Batch})
	}
	if len(o.Cluster) < scalingSpread {
		return all
	}
	point.Nodes, point.Place = scalingSpread, scaling.Spread
	for _, node := range o.Cluster[:scalingSpread] {
		base.Env.Spread = append(base.Env.Spread, node.URL)
	}
	for _, quorum := range []bool{false, true} {
		for _, n := range shardNumbers() {
			setup := base
			setup.Label = fmt.Sprintf("%s, cluster, quorum %v", labelShards(base.Label, n), quorum)
			point.Quorum, setup.Env.Quorum = quorum, quorum
			point.Shards, setup.Env.Shards = n, n
			all = append(all, scaled{setup: setup, point: point, turns: turns, idle: point.Batch})
		}
	}
	return all
}

// scaling runs the setups of a scaling experiment, with new processes for each setup in each round.
func (r *Runner) scaling(ctx context.Context, s *Section) error {
	for round := range r.Options.Rounds {
		for _, setup := range s.scaled {
			if err := r.scaledSetup(ctx, s, setup, round+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// clustered returns the runner of the nodes on which a setup runs.
func (r *Runner) clustered(setup scaled) *Runner {
	if setup.point.Nodes == 1 {
		return r
	}
	c := *r
	first, others := r.Options.Cluster[0], r.Options.Cluster[1:]
	c.Options.URL, c.Options.MetricsURL, c.Options.BrokerPID = first.URL, first.MetricsURL, process.FindBroker(first.URL)
	c.Options.OtherPIDs = nil
	for _, n := range others {
		c.Options.OtherPIDs = append(c.Options.OtherPIDs, process.FindBroker(n.URL))
	}
	return &c
}

// scaledSetup measures a setup in one round.
func (r *Runner) scaledSetup(ctx context.Context, s *Section, setup scaled, round int) (err error) {
	on := r.clustered(setup)
	before, err := on.holdings(ctx, setup)
	if err != nil {
		return err
	}
	g, err := on.start(ctx, setup.setup)
	r.queues = on.queues
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()
	if setup.idle {
		if err := contender.Pause(ctx, clientPause); err != nil {
			return err
		}
		idle, err := on.holdings(ctx, setup)
		if err != nil {
			return err
		}
		rest, err := g.Rest()
		if err != nil {
			return err
		}
		idle.Connections, idle.Channels, idle.Queues = idle.Connections-before.Connections, idle.Channels-before.Channels, idle.Queues-before.Queues
		idle.Files, idle.Memory, idle.Client = idle.Files-before.Files, idle.Memory-before.Memory, megabytes(rest.Memory.Client.RSS)
		s.measured.AddIdle(setup.point, idle)
	}
	for _, t := range setup.turns {
		if err := on.scaledTurn(ctx, s, g, setup, t, round); err != nil {
			return err
		}
	}
	return nil
}

// scaledTurn runs a turn of a setup after a shorter one.
func (r *Runner) scaledTurn(ctx context.Context, s *Section, g *process.Group, setup scaled, t process.Turn, round int) error {
	warm := t
	warm.Duration /= scalingWarm
	if _, err := g.Run(warm); err != nil {
		return err
	}
	before, err := r.published(ctx, setup)
	if err != nil {
		return err
	}
	measured, err := g.Run(t)
	if err != nil {
		return err
	}
	after, err := r.published(ctx, setup)
	if err != nil {
		return err
	}
	sample := newSample(measured)
	load := setup.point
	load.Callers, load.Rate = t.Callers, t.Rate
	label := labelCallers(t.Callers)
	if t.Rate > 0 {
		label = labelSmall
	}
	r.progress(s.Name, round, label, setup.setup.Label, sample)
	s.Add(setup.setup.Label, label, sample)
	s.measured.AddRun(load, scaling.Run{
		Rate: sample.Rate, P50: sample.P50, P99: sample.P99, Client: sample.Client.CPU, Server: sample.Server.CPU, Broker: sample.BrokerCPU,
		Processors: sample.Processors, Size: max(2*float64(measured.Outcome.Calls)/(after-before), 1),
	})
	return nil
}

// figures returns the sum of the figures of the nodes of a setup.
func (r *Runner) figures(ctx context.Context, setup scaled) (sum process.BrokerFigures, err error) {
	urls := []string{r.Options.MetricsURL}
	if setup.point.Nodes > 1 {
		urls = nil
		for _, n := range r.Options.Cluster {
			urls = append(urls, n.MetricsURL)
		}
	}
	for _, url := range urls {
		f, err := process.ReadBroker(ctx, url)
		if err != nil {
			return sum, err
		}
		sum.Messages += f.Messages
		sum.Connections += f.Connections
		sum.Channels += f.Channels
		sum.Queues += f.Queues
		sum.Declared += f.Declared
		sum.Memory += f.Memory
	}
	return sum, nil
}

// published returns how many messages clients and servers have published.
func (r *Runner) published(ctx context.Context, setup scaled) (float64, error) {
	f, err := r.figures(ctx, setup)
	return f.Messages, err
}

// holdings reads what the broker holds, once its connections do not change.
func (r *Runner) holdings(ctx context.Context, setup scaled) (h scaling.Holdings, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 4*settledWait, errors.New("the broker's connections do not settle"))
	defer cancel()
	last, err := r.figures(ctx, setup)
	for err == nil {
		if err = contender.Pause(ctx, reportDelay); err != nil {
			return h, errors.Join(err, context.Cause(ctx))
		}
		var next process.BrokerFigures
		if next, err = r.figures(ctx, setup); next.Connections == last.Connections && next.Queues == last.Queues {
			last = next
			break
		}
		last = next
	}
	if err != nil {
		return h, err
	}
	// Queues that were declared, because reply queues of an earlier setup may end in the meantime.
	h = scaling.Holdings{Connections: last.Connections, Channels: last.Channels, Queues: last.Declared, Memory: last.Memory / 1e6}
	for _, pid := range append([]int{r.Options.BrokerPID}, r.Options.OtherPIDs...) {
		files, err := process.OpenFiles(pid)
		if err != nil {
			return h, err
		}
		resident, err := process.Resident(pid)
		if err != nil {
			return h, err
		}
		h.Files += float64(files)
		h.Resident += megabytes(resident)
	}
	return h, nil
}

// Measured returns what a scaling experiment measured; ok is false for other experiments.
func (s *Section) Measured() (m scaling.Measurement, ok bool) { return s.measured, len(s.scaled) > 0 }

// scalingTable renders the samples of a scaling experiment.
func (s *Section) scalingTable() string { return s.measured.Table() }
