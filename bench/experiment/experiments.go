package experiment

import (
	"fmt"
	"time"

	"rabbitmq-rpc/bench/chart"
	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/process"
	"rabbitmq-rpc/internal/loadgen"
)

func tableExperiment(o Options) Experiment {
	return Experiment{
		title:  "Side by side",
		note:   fmt.Sprintf("Closed loop: that many callers, each with one call at a time. Request body %q, answer %q.", contender.RequestBody, contender.ResponseBody),
		setups: setupsOf(o, contender.Environment{}),
		loads:  closedLoads(o, o.Callers),
		render: func(s *Section) string { return s.tables(o.Callers) },
	}
}

func callersExperiment(o Options) Experiment {
	e := tableExperiment(o)
	e.title = "Throughput against callers"
	e.loads = closedLoads(o, []int{1, 4, 16, 64, 256, heavyCallers})
	e.render = func(s *Section) string { return s.tables([]int{1, 64, heavyCallers}) + s.grid("calls/s", rate, "%.0f") }
	e.plots = []plotted{{
		file: "throughput-callers.svg", Plot: chart.Plot{
			Title: "Throughput against callers", X: "callers (one call each at a time)", Y: "calls per second",
			Tick: func(x float64) string { return fmt.Sprint(x) },
		},
		lines: func(s *Section) []chart.Series { return s.lines(rate) },
	}}
	return e
}

func rateExperiment(o Options) Experiment {
	e := Experiment{
		title: "Latency against rate",
		note: fmt.Sprintf("Open loop: calls begin on a schedule of constant rate and count from the moment they were due, sent or not; at most %d at once, others wait and count. "+
			"A contender's maximum is that of a closed loop of %d callers, found in the same run; it is asked for fixed rates up to %.0f %% of it.", loadgen.OpenInFlight, heavyCallers, 100*reach),
		setups: setupsOf(o, contender.Environment{}, contender.Baseline, contender.Single, contender.Batched, contender.Pair, contender.CoreNATS, contender.GRPC),
		render: (*Section).latencies,
	}
	most := closedLoads(o, []int{heavyCallers})[0]
	most.label, most.x, most.most = labelMost, 0, true
	e.loads = []load{most}
	for _, r := range o.Rates {
		e.loads = append(e.loads, openLoad(o, fmt.Sprintf("%d/s", r), float64(r), o.Duration))
	}
	half := openLoad(o, labelHalf, 0, o.Duration)
	half.share = 0.5
	e.loads = append(e.loads, half)
	e.plots = []plotted{{
		file: "latency-rate.svg", Plot: chart.Plot{Title: "Latency against rate (solid p50, dashed p99, dotted p99.9)", X: "calls per second, constant rate", Y: "milliseconds"},
		lines: func(s *Section) []chart.Series { return s.latencyLines() },
	}}
	return e
}

func sizeExperiment(o Options) Experiment {
	const callers = 256
	e := Experiment{
		title:  "Throughput against body size",
		note:   fmt.Sprintf("Closed loop of %d callers. The handler echoes: request and response have that many bytes each, and both are compared.", callers),
		setups: setupsOf(o, contender.Environment{}, contender.Baseline, contender.Single, contender.Batched, contender.CoreNATS, contender.GRPC),
		render: func(s *Section) string { return s.grid("calls/s", rate, "%.0f") + s.cpuGrid() },
		plots: []plotted{{
			file: "throughput-size.svg", Plot: chart.Plot{
				Title: fmt.Sprintf("Throughput against body size, %d callers", callers), X: "request, and response", Y: "calls per second",
				Tick: func(x float64) string { return labelBytes(int(x)) },
			},
			lines: func(s *Section) []chart.Series { return s.lines(rate) },
		}},
	}
	for _, size := range []int{16, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10} {
		l := closedLoads(o, []int{callers})[0]
		l.label, l.x, l.turn.Body = labelBytes(size), float64(size), size
		e.loads = append(e.loads, l)
	}
	return e
}

func labelBytes(n int) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

func serversExperiment(o Options) Experiment {
	const workers, sleep = 8, time.Millisecond
	e := Experiment{
		title:  "Throughput against server processes",
		note:   fmt.Sprintf("Closed loop of 256 callers. Each server process has %d workers, and every handler sleeps %v.", workers, sleep),
		render: (*Section).fleets,
		plots: []plotted{{
			file: "throughput-servers.svg", Plot: chart.Plot{Title: fmt.Sprintf("Throughput against server processes (%d workers each, handler %v)", workers, sleep), X: "server processes", Y: "calls per second", Linear: true},
			lines: func(s *Section) []chart.Series { return s.fleetLines() },
		}},
	}
	for _, base := range setupsOf(o, contender.Environment{Workers: workers, Sleep: sleep}, contender.Baseline, contender.Single, contender.Batched, contender.CoreNATS) {
		for _, n := range []int{1, 2, 4} {
			setup := base
			setup.Label, setup.Servers = labelFleetOf(base.Label, n), n
			e.setups = append(e.setups, setup)
		}
	}
	l := closedLoads(o, []int{256})[0]
	l.label = labelFleet
	e.loads = []load{l}
	return e
}

func labelFleetOf(label string, servers int) string { return fmt.Sprintf("%s × %d", label, servers) }

func slowExperiment(o Options) Experiment {
	const workers = 256
	e := Experiment{
		title: "Slow calls among fast ones",
		note: fmt.Sprintf("Open loop of %d calls/s, %d workers; with slow calls, every %dth sleeps %v in the handler. Latencies of fast and slow calls apart.",
			slowRate, workers, slowEvery, contender.SlowTime),
		setups: setupsOf(o, contender.Environment{Workers: workers}, contender.Baseline, contender.Single, contender.Batched, contender.CoreNATS),
		render: (*Section).slows,
	}
	without := openLoad(o, labelNoSlow, slowRate, 2*o.Duration)
	with := openLoad(o, labelSlow, slowRate, 2*o.Duration)
	with.turn.ApartEvery, with.turn.Apart = slowEvery, contender.MethodSlow
	e.loads = []load{without, with}
	return e
}

func memoryExperiment(o Options) Experiment {
	e := Experiment{
		title: "Memory",
		note: fmt.Sprintf("Resident memory (VmRSS, peak VmHWM; 1 MB = 10⁶ bytes) of fresh processes. Client: while %d calls are in flight, which the handlers hold, "+
			"each in a goroutine of its own, or begun with the library's call that needs none; server: at its peak, with %d callers in a closed loop.", heldCalls, heavyCallers),
		loads:  []load{{label: labelHeld}, {label: labelFull, turn: process.Turn{Callers: heavyCallers, Duration: o.Duration, MaxCalls: o.MaxCalls}}},
		render: (*Section).memory,
	}
	for _, setup := range setupsOf(o, contender.Environment{InFlight: 2 * heldCalls}, contender.Baseline, contender.Single, contender.Batched, contender.CoreNATS, contender.GRPC) {
		e.setups = append(e.setups, setup)
		if setup.Contender == contender.Batched {
			setup.Label, setup.Env.Async = labelAsync(setup.Label), true
			e.setups = append(e.setups, setup)
		}
	}
	return e
}

func labelAsync(label string) string { return label + ", Client.Go" }

// TelemetryNames returns the contenders of the telemetry experiment.
func TelemetryNames() []string {
	return []string{contender.Single, contender.SingleMetrics, contender.SingleSampled, contender.SingleTraced, contender.Batched, contender.BatchedMetrics, contender.BatchedSampled, contender.BatchedTraced}
}

// telemetryExperiment compares amqpx with and without telemetry.
func telemetryExperiment(o Options) Experiment {
	e := tableExperiment(o)
	e.title = "The cost of telemetry"
	e.note = fmt.Sprintf("Closed loop. Metrics are Prometheus's, on both sides. Of the calls %g %% are traced, or all, on both sides; spans are dropped instead of exported.", 100*contender.SampledShare)
	e.loads = closedLoads(o, []int{64, heavyCallers})
	e.render = (*Section).telemetryCosts
	return e
}
