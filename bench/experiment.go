package main

import (
	"fmt"
	"slices"
	"time"
)

// experiment is one question to the contenders: who runs, and under which loads.
type experiment struct {
	name, title string
	note        string // what the reader has to know
	lineup      []entrant
	loads       []load
	render      func(*section) string
	plots       []plotted
}

// entrant is a contender under the conditions of an experiment.
type entrant struct {
	label     string // in tables
	contender string
	program   string // the build to run it from; empty: this one
	servers   int
	env       environment

	sequential bool
}

// load is one column of an experiment.
type load struct {
	label string
	x     float64 // its place on a plot's axis
	turn  turn
	// most says that the turn finds the entrant's maximum rate.
	most bool
	// share, unless it is 0, sets the open loop's rate to that part of the maximum.
	share float64
}

// reach is the part of its maximum up to which an entrant is asked for fixed rates:
// beyond it the length of the turn decides, not the contender.
const reach = 0.8

// Loads that experiments share.
const (
	heavyCallers = 1024
	// openInFlight is the most calls of an open loop at once.
	openInFlight = 4096
	heldCalls    = 100_000
	// slowRate and slowEvery are the load of the experiment with slow calls.
	slowRate, slowEvery = 5000, 100
)

// Labels of loads that goals look up.
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

// The names of experiments, in the order of the report.
const (
	expTable   = "table"
	expCallers = "callers"
	expRate    = "rate"
	expSize    = "size"
	expServers = "servers"
	expSlow    = "slow"
	expMemory  = "memory"
	// expTelemetry is not a part of all: it compares amqpx with itself.
	expTelemetry = "telemetry"
)

func allExperiments() []string {
	return []string{expTable, expCallers, expRate, expSize, expServers, expSlow, expMemory, expTelemetry}
}

// newExperiment plans the experiment of that name, for the chosen contenders.
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

// lineupOf makes entrants of the chosen contenders, or of those among them that names
// lists.
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
