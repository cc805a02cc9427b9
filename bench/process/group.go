// Package process runs each contender in processes of its own: one client, servers, and a broker
// if the contender has one. The client makes the calls of a turn with the loops of
// internal/loadgen.
package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"rabbitmq-rpc/bench/contender"
)

// Setup is a contender with the environment of an experiment.
type Setup struct {
	Label     string // in tables
	Contender string
	Program   string // build of this program to run; empty: the running program
	Servers   int
	Env       contender.Environment

	Sequential bool
	Procs      int // GOMAXPROCS of each process; 0: as many as the machine has

	// ServerURL and ClientURL are the nodes to which servers and client connect, if they are not
	// Options.URL or, for a spread queue, the nodes of Env.Spread.
	ServerURL, ClientURL string
	// Declared makes a server that ends again declare the queues at Options.URL, before the
	// servers start: classic queues stay on this node, and the leaders of quorum queues.
	Declared bool
}

// Options configures the process groups of a run.
type Options struct {
	URL        string // of the broker
	TLSURL     string // of its listener for TLS; may be empty
	CPUProfile string // prefix of files; empty: none
	BrokerPID  int    // 0: the broker's processor time is not measured
	OtherPIDs  []int  // of the other nodes of a cluster, whose processor time counts as the broker's
	MetricsURL string // of the broker's metrics; empty: its messages are not counted
}

// Group holds the processes of one setup.
type Group struct {
	Setup   Setup
	options Options
	broker  *process // the setup's own broker; nil for most setups
	servers []*process
	client  *process
}

// Start starts the processes of a setup in the order broker, servers, client. The queue is
// their request queue.
func Start(ctx context.Context, setup Setup, queue string, o Options) (_ *Group, err error) {
	g := &Group{Setup: setup, options: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Stop())
		}
	}()
	b := childConfig{Contender: setup.Contender, Env: setup.Env}
	b.Env.URL, b.Env.TLSURL, b.Env.Queue = o.URL, o.TLSURL, queue
	found, err := contender.Find(setup.Contender)
	if err != nil {
		return nil, err
	}
	start := func(r contender.Role) (*process, error) {
		b.Role = r
		b.Env.URL = cmp.Or(setup.node(r, len(g.servers)), o.URL)
		if o.CPUProfile != "" {
			b.CPUProfile = fmt.Sprintf("%s.%s.%s.pprof", o.CPUProfile, setup.Contender, r)
			if r == contender.RoleServer && len(g.servers) > 0 {
				b.CPUProfile = fmt.Sprintf("%s.%s.%s-%d.pprof", o.CPUProfile, setup.Contender, r, len(g.servers)+1)
			}
		}
		return startProcess(ctx, b, programOf(found, setup.Program, r), setup.environment()...)
	}
	if _, ok := found.Contender.(contender.Brokered); ok {
		if g.broker, err = start(contender.RoleBroker); err != nil {
			return nil, err
		}
		b.Env.Endpoint = g.broker.endpoint
	}
	if err := declare(ctx, b, setup); err != nil {
		return nil, err
	}
	for range setup.Servers {
		s, err := start(contender.RoleServer)
		if err != nil {
			return nil, err
		}
		g.servers = append(g.servers, s)
		if s.endpoint != "" {
			b.Env.Endpoint = s.endpoint
		}
	}
	g.client, err = start(contender.RoleClient)
	return g, err
}

// node returns the node to which the client, or a server with a number from 0, connects; "" is
// Options.URL.
func (s Setup) node(r contender.Role, number int) string {
	switch spread := s.Env.Spread; {
	case r == contender.RoleServer && len(spread) > 0:
		return spread[number%len(spread)]
	case r == contender.RoleServer:
		return s.ServerURL
	case r == contender.RoleClient:
		return s.ClientURL
	default:
		return ""
	}
}

// declarations returns the environments of the servers that only declare queues, given that of the
// other servers. A queue stays on the node at which it was declared first. So a spread queue
// has a server for each shard, at the node of the shard, which declares the shards before it as well.
func (s Setup) declarations(env contender.Environment) []contender.Environment {
	if s.Declared {
		return []contender.Environment{env}
	}
	var all []contender.Environment
	for i := range max(env.Shards, 1) {
		if len(env.Spread) > 0 {
			at := env
			at.Shards, at.URL = i+1, env.Spread[i%len(env.Spread)]
			all = append(all, at)
		}
	}
	return all
}

// declare runs the servers that only declare queues, each until it has declared them.
func declare(ctx context.Context, b childConfig, setup Setup) error {
	b.Role = contender.RoleServer
	for _, env := range setup.declarations(b.Env) {
		b.Env = env
		s, err := startProcess(ctx, b, nil, setup.environment()...)
		if err != nil {
			return err
		}
		if err := s.stop(); err != nil {
			return err
		}
	}
	return nil
}

// environment returns the variables that the setup adds to the environment of its processes.
func (s Setup) environment() []string {
	if s.Procs == 0 {
		return nil
	}
	return []string{fmt.Sprintf("GOMAXPROCS=%d", s.Procs)}
}

// programOf returns the command line of a process: a foreign program, another build of this
// program, or nil for this program.
func programOf(e contender.Entry, build string, r contender.Role) []string {
	if f, ok := e.Contender.(contender.Foreign); ok {
		return f.Program(r)
	}
	if build != "" {
		return []string{build, ChildArg}
	}
	return nil
}

// Stop ends the processes, the client first.
func (g *Group) Stop() error {
	var faults []error
	for _, s := range slices.Concat([]*process{g.client}, g.servers, []*process{g.broker}) {
		if s != nil {
			faults = append(faults, s.stop())
		}
	}
	return errors.Join(faults...)
}

// Consumption is the usage of a group's processes since their start.
type Consumption struct {
	Client, Server Usage
	Broker         time.Duration
	Machine        MachineTime // of all processes of the machine
}

// consumption collects the usage of all processes of the group. The usages of the servers are
// added up, except for memory: the figure is the largest server's.
func (g *Group) consumption() (Consumption, error) {
	var total Consumption
	var err error
	if total.Machine, err = machineTime(); err != nil {
		return total, err
	}
	r, err := g.client.ask(command{})
	if err != nil {
		return total, err
	}
	total.Client = r.Usage
	for _, s := range g.servers {
		r, err := s.ask(command{})
		if err != nil {
			return total, err
		}
		total.Server = total.Server.plus(r.Usage)
	}
	if g.broker == nil {
		for _, pid := range append([]int{g.options.BrokerPID}, g.options.OtherPIDs...) {
			used, err := threadsCPU(pid)
			if err != nil {
				return total, err
			}
			total.Broker += used
		}
		return total, nil
	}
	r, err = g.broker.ask(command{})
	total.Broker = r.Usage.CPU
	return total, err
}

// Measurement is the outcome of calls, with the usage of a group's processes.
type Measurement struct {
	Outcome       Outcome
	Before, After Consumption
	// Memory is the usage at the moment at which memory is measured.
	Memory Consumption
}

// Rest measures the usage while no calls are made.
func (g *Group) Rest() (m Measurement, err error) {
	if m.Before, err = g.consumption(); err != nil {
		return m, err
	}
	m.After, m.Memory = m.Before, m.Before
	return m, nil
}

// Run makes the calls of a turn. Memory is measured at their end.
func (g *Group) Run(t Turn) (m Measurement, err error) {
	if m.Before, err = g.consumption(); err != nil {
		return m, err
	}
	r, err := g.client.ask(command{Turn: &t})
	if err != nil {
		return m, err
	}
	if m.After, err = g.consumption(); err != nil {
		return m, err
	}
	if r.Outcome == nil || r.Outcome.Calls == 0 {
		return m, fmt.Errorf("%s: no call in %v", g.Setup.Label, t.Duration)
	}
	m.Outcome, m.Memory = *r.Outcome, m.After
	return m, nil
}

// Hold makes many calls at once, which the servers hold until all are in flight. Memory is
// measured while they are; then the servers release the calls.
func (g *Group) Hold(calls int) (m Measurement, err error) {
	if m.Before, err = g.consumption(); err != nil {
		return m, err
	}
	if _, err := g.client.ask(command{Hold: calls}); err != nil {
		return m, err
	}
	if m.Memory, err = g.consumption(); err != nil {
		return m, err
	}
	for _, s := range g.servers {
		if _, err := s.ask(command{Release: true}); err != nil {
			return m, err
		}
	}
	r, err := g.client.ask(command{Settle: true})
	if err != nil {
		return m, err
	}
	m.Outcome = *r.Outcome
	m.After, err = g.consumption()
	return m, err
}
