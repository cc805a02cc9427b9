// Package experiment has the experiments of the benchmark: which contenders they compare under
// which loads, their rounds, and their tables and plots.
package experiment

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/process"
	"rabbitmq-rpc/internal/loadgen"
)

// Options configures the experiments of a run.
type Options struct {
	process.Options

	Rounds     int
	Duration   time.Duration // of one contender's turn
	MaxCalls   int           // of one contender's turn
	Callers    []int         // of the experiment Table
	Rates      []int         // of the experiment Rate, in calls per second
	Contenders []string      // labels, as in SplitLabel
	Programs   string        // directory of the shipped contenders' programs, of this repository
	Cluster    []Node        // of the experiments ScalingNodes and ScalingShards; empty: there is none
	Control    []string      // command line of the broker's control program; empty: there is none
}

// Node is a node of a cluster.
type Node struct{ URL, MetricsURL string }

// SplitLabel splits NAME@FILE into the contender's name and the path of another build: of this
// program, or, for a shipped contender, the directory of its programs. The path is empty for
// the running program and for the services of this repository.
func SplitLabel(label string) (name, program string) {
	name, program, _ = strings.Cut(label, "@")
	return name, program
}

// Experiment is a comparison: the setups and their loads.
type Experiment struct {
	Name, title string
	note        string // explains the experiment in the report
	setups      []process.Setup
	loads       []load
	render      func(*Section) string
	plots       []plotted
	// file, if not empty, is the name of a file of the report with only this experiment, without
	// extension.
	file   string
	scaled []scaled // of a scaling experiment
}

// IsEmpty reports whether no chosen contender takes part in the experiment.
func (e Experiment) IsEmpty() bool { return len(e.setups) == 0 }

// load is a column of an experiment.
type load struct {
	label string
	x     float64 // its position on the plot's x axis
	turn  process.Turn
	// most marks the turn that measures the setup's maximum rate.
	most bool
	// share, if not 0, sets the rate of the open loop to this part of the maximum rate.
	share float64
}

// reach is the largest part of a setup's maximum rate at which a fixed rate is measured.
// Above this part the length of the turn determines the result, not the contender.
const reach = 0.8

// Shared loads of the experiments.
const (
	heavyCallers = 1024
	heldCalls    = 100_000
	// slowRate and slowEvery define the load of the experiment with slow calls: calls per
	// second, and the interval of slow calls.
	slowRate, slowEvery = 5000, 100
)

// Labels of loads in the goals.
const (
	labelMost   = "maximum, closed loop"
	labelHalf   = "half of maximum"
	labelNoSlow = "no slow calls"
	labelSlow   = "1 % slow calls"
	labelHeld   = "held"
	labelFull   = "full load"
	labelFleet  = "256 callers, handler 1 ms"
)

func labelCallers(n int) string {
	if n == 1 {
		return "1 caller"
	}
	return fmt.Sprintf("%d callers", n)
}

// Names of the experiments, in the order of the report.
const (
	Table     = "table"
	Callers   = "callers"
	Rate      = "rate"
	Size      = "size"
	Servers   = "servers"
	Slow      = "slow"
	MemoryUse = "memory"
	Growth    = "growth"
	// Shards, Telemetry and Priority are not part of "all", because they compare amqpx with itself.
	Shards    = "shards"
	Telemetry = "telemetry"
	Priority  = "priority"
	// The scaling experiments are not part of "all": they add rounds to a file of their own, and
	// need a cluster.
	ScalingNodes   = "scaling-nodes"
	ScalingServers = "scaling-servers"
	ScalingClients = "scaling-clients"
	ScalingShards  = "scaling-shards"
)

// Names returns the names of all experiments.
func Names() []string {
	return append(AllNames(), Table, Shards, Telemetry, Priority, ScalingNodes, ScalingServers, ScalingClients, ScalingShards)
}

// AllNames returns the names of the experiments of "all". The experiment Callers contains the
// experiment Table.
func AllNames() []string {
	return []string{Callers, Rate, Size, Servers, Slow, MemoryUse, Growth}
}

// New builds the named experiment for the chosen contenders.
func New(name string, o Options) Experiment {
	var e Experiment
	switch name {
	case Callers:
		e = callersExperiment(o)
	case Rate:
		e = rateExperiment(o)
	case Size:
		e = sizeExperiment(o)
	case Servers:
		e = serversExperiment(o)
	case Slow:
		e = slowExperiment(o)
	case Telemetry:
		e = telemetryExperiment(o)
	case Priority:
		e = priorityExperiment(o)
	case Growth:
		e = growthExperiment(o)
	case Shards:
		e = shardsExperiment(o)
	case ScalingNodes, ScalingServers, ScalingClients, ScalingShards:
		e = scalingExperiment(name, o)
	case MemoryUse:
		e = memoryExperiment(o)
	default:
		e = tableExperiment(o)
	}
	e.Name = name
	return e
}

// setupsOf returns a setup for each chosen contender. If names are given, only contenders
// with these names are included.
func setupsOf(o Options, env contender.Environment, names ...string) []process.Setup {
	var all []process.Setup
	for _, label := range o.Contenders {
		name, program := SplitLabel(label)
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		e, err := contender.Find(name)
		if err != nil {
			continue // the options were validated
		}
		setup := process.Setup{Label: label, Contender: name, Program: program, Servers: 1, Env: env, Sequential: e.Sequential}
		if e.Shipped {
			setup.Program, setup.Env.Programs = "", cmp.Or(program, o.Programs)
		}
		all = append(all, setup)
	}
	return all
}

func closedLoads(o Options, callers []int) []load {
	var all []load
	for _, n := range callers {
		all = append(all, load{label: labelCallers(n), x: float64(n), turn: process.Turn{Callers: n, Duration: o.Duration, MaxCalls: o.MaxCalls}})
	}
	return all
}

func openLoad(o Options, label string, rate float64, duration time.Duration) load {
	return load{label: label, x: rate, turn: process.Turn{Rate: rate, InFlight: loadgen.OpenInFlight, Duration: duration, MaxCalls: o.MaxCalls}}
}
