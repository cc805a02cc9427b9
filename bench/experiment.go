package main

import (
	"fmt"
	"slices"
	"time"
)

// experiment is a comparison: the entrants and their loads.
type experiment struct {
	name, title string
	note        string // explains the experiment in the report
	lineup      []entrant
	loads       []load
	render      func(*section) string
	plots       []plotted
}

// entrant is a contender with the environment of an experiment.
type entrant struct {
	label     string // in tables
	contender string
	program   string // build of this program to run; empty: the running program
	servers   int
	env       environment

	sequential bool
}

// load is a column of an experiment.
type load struct {
	label string
	x     float64 // its position on the plot's x axis
	turn  turn
	// most marks the turn that measures the entrant's maximum rate.
	most bool
	// share, if not 0, sets the rate of the open loop to this part of the maximum rate.
	share float64
}

// reach is the largest part of an entrant's maximum rate at which a fixed rate is measured.
// Above this part the length of the turn determines the result, not the contender.
const reach = 0.8

// Shared loads of the experiments.
const (
	heavyCallers = 1024
	// openInFlight is the largest number of concurrent calls in an open loop.
	openInFlight = 4096
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
	expTable   = "table"
	expCallers = "callers"
	expRate    = "rate"
	expSize    = "size"
	expServers = "servers"
	expSlow    = "slow"
	expMemory  = "memory"
	// expTelemetry is not part of "all", because it compares amqpx with itself.
	expTelemetry = "telemetry"
)

func allExperiments() []string {
	return []string{expTable, expCallers, expRate, expSize, expServers, expSlow, expMemory, expTelemetry}
}

// newExperiment builds the named experiment for the chosen contenders.
func newExperiment(name string, o options) experiment {
	var e experiment
	switch name {
	case expCallers:
		e = callersExperiment(o)
	case expRate:
		e = rateExperiment(o)
	case expSize:
		e = sizeExperiment(o)
	case expServers:
		e = serversExperiment(o)
	case expSlow:
		e = slowExperiment(o)
	case expTelemetry:
		e = telemetryExperiment(o)
	case expMemory:
		e = memoryExperiment(o)
	default:
		e = tableExperiment(o)
	}
	e.name = name
	return e
}

// lineupOf returns an entrant for each chosen contender. If names are given, only contenders
// with these names are included.
func lineupOf(o options, env environment, names ...string) []entrant {
	var all []entrant
	for _, label := range o.contenders {
		name, program := splitLabel(label)
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		e, err := findEntry(name)
		if err != nil {
			continue // the options were validated
		}
		all = append(all, entrant{label: label, contender: name, program: program, servers: 1, env: env, sequential: e.sequential})
	}
	return all
}

func closedLoads(o options, callers []int) []load {
	var all []load
	for _, n := range callers {
		all = append(all, load{label: labelCallers(n), x: float64(n), turn: turn{Callers: n, Duration: o.duration, MaxCalls: o.maxCalls}})
	}
	return all
}

func openLoad(o options, label string, rate float64, duration time.Duration) load {
	return load{label: label, x: rate, turn: turn{Rate: rate, InFlight: openInFlight, Duration: duration, MaxCalls: o.maxCalls}}
}
