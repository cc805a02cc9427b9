package report

import (
	"cmp"
	"maps"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"rabbitmq-rpc/internal/loadgen"
	"rabbitmq-rpc/internal/placement"
	"rabbitmq-rpc/internal/version"
	"rabbitmq-rpc/pkg/amqpx"
)

// Run is what a report is built from.
type Run struct {
	Results  *loadgen.Results
	Workload loadgen.Workload
	Stats    amqpx.ClientStats
	// Settings holds the variables in force, without secrets.
	Settings map[string]string
	// Connection holds the changes of the connection; nil: none.
	Connection *ConnectionEvents
	// Broker is the address of the broker, Node the name of its node; "": unknown.
	Broker, Node string
	// Placement says which node holds what; nil: unknown.
	Placement *placement.Placement
}

// unknown is the name of a node that the broker does not tell.
const unknown = "unknown"

// Build returns the report of a run.
func Build(run Run) *Report {
	t, w, stats := run.Results, run.Workload, run.Stats
	r := &Report{
		Calls:          t.Calls,
		OK:             t.OK,
		Errors:         maps.Clone(t.Errors),
		Lost:           t.Calls - t.Settled(),
		Duplicates:     stats.Duplicates,
		Mismatched:     t.Errors[loadgen.KeyMismatched],
		Reconnects:     stats.Reconnects,
		Seconds:        Seconds(t.Elapsed),
		Corrected:      w.Open(),
		Interrupted:    t.Interrupted && t.Calls < w.Calls,
		GivenUp:        t.GivenUp,
		PlannedSeconds: Seconds(w.Duration),
		Resent:         stats.Resent,
		Late:           stats.Late,
		Unknown:        stats.Unknown,
		Batched:        stats.Batched,
		BlockedSeconds: Seconds(stats.Blocked),
		QueueWaitMS:    serverTime(t.Server.Queue),
		HandlerMS:      serverTime(t.Server.Handler),
		Percentiles:    percentiles(t.Latency),
		Histogram:      bins(t.Latency),
		Timeline:       timeline(t.Timeline, t.Elapsed),
		Events:         []Event{},
		Broker:         run.Broker,
		Node:           cmp.Or(run.Node, unknown),
		Placement:      run.Placement,
		Settings:       printable(run.Settings),
		Versions:       versions(),
		Started:        t.Start.UTC().Truncate(time.Microsecond),
		Finished:       t.Start.Add(t.Elapsed).UTC().Truncate(time.Microsecond),
	}
	if run.Connection != nil {
		r.Events, r.EventsOmitted = run.Connection.during(t.Start, t.Elapsed), run.Connection.omitted
	}
	if w.Calls != loadgen.NoLimit {
		r.PlannedCalls = w.Calls
		if t.GivenUp {
			r.NotTried = w.Calls - t.Calls
		}
	}
	r.Passed = r.Err() == nil
	if t.Elapsed > 0 {
		r.CallsPerSecond = Round(float64(t.Calls)/t.Elapsed.Seconds(), 1)
	}
	if t.OK > 0 {
		r.LatencyMS = newLatency(t.Latency)
	}
	if w.Open() {
		r.Rate = newRate(t, w)
	}
	return r
}

func newLatency(h *loadgen.Histogram) Latency {
	at := func(percent float64) float64 { return Milliseconds(h.At(percent)) }
	return Latency{
		Min:  Milliseconds(h.Min()),
		Mean: Milliseconds(h.Mean()),
		P50:  at(50),
		P90:  at(90),
		P99:  at(99),
		P999: at(99.9),
		Max:  Milliseconds(h.Max()),
	}
}

// serverTime returns the report's entry for times inside the server.
func serverTime(h *loadgen.Histogram) ServerTime {
	at := func(percent float64) float64 { return Milliseconds(h.At(percent)) }
	s := ServerTime{Sampled: h.Count(), Percentiles: percentiles(h)}
	if s.Sampled > 0 {
		s.P50, s.P90, s.P99, s.Max = at(50), at(90), at(99), Milliseconds(h.Max())
	}
	return s
}

// percentiles returns the percentile curve of a histogram in milliseconds.
func percentiles(h *loadgen.Histogram) []Percentile {
	list := []Percentile{}
	for _, p := range h.Percentiles() {
		list = append(list, Percentile{Percent: p.Percent, MS: Milliseconds(p.Latency)})
	}
	return list
}

// bins returns the distribution of a histogram in milliseconds.
func bins(h *loadgen.Histogram) []Bin {
	list := []Bin{}
	for _, b := range h.Bins() {
		list = append(list, Bin{FromMS: Milliseconds(b.From), ToMS: Milliseconds(b.To), Calls: b.Calls})
	}
	return list
}

// timeline returns the slices of a run of length elapsed.
func timeline(l *loadgen.Timeline, elapsed time.Duration) []Slice {
	list := []Slice{}
	for _, s := range l.Slices(elapsed) {
		list = append(list, Slice{
			Start: Seconds(s.Start), Seconds: Seconds(s.Length), OK: s.OK, Errors: s.Errors,
			P50MS: Milliseconds(s.P50), P99MS: Milliseconds(s.P99),
		})
	}
	return list
}

// newRate compares the achieved rate with the requested rate.
func newRate(t *loadgen.Results, w loadgen.Workload) *Rate {
	const enough = 0.99
	r := &Rate{
		Asked:    float64(w.Rate),
		BehindMS: Milliseconds(t.Behind),
		NotBegun: t.Schedule.NotBegun,
		InFlight: w.InFlight,
	}
	if t.Schedule.Took > 0 {
		r.Achieved = Round(float64(t.Schedule.Begun)/t.Schedule.Took.Seconds(), 1)
	}
	r.KeptUp = t.Schedule.Begun == 0 || r.Achieved >= enough*r.Asked
	return r
}

// versions returns the versions of the program and its parts. A program built without the data
// of a version control system, as in an image, has no revision.
func versions() map[string]string {
	const library = "github.com/rabbitmq/amqp091-go"
	v := map[string]string{"go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v["rpc-client"] = version.Of().Version
	for _, dependency := range info.Deps {
		if dependency.Path == library {
			v["amqp091-go"] = dependency.Version
		}
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v["revision"] = s.Value
		case "vcs.time":
			v["revision time"] = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				v["revision changed"] = "yes, by what is not committed"
			}
		}
	}
	return v
}

// printable replaces invalid UTF-8, as in a text cut in the middle of a character. JSON would
// replace it and HTML would not, and the two reports must hold the same text.
func printable(texts map[string]string) map[string]string {
	for name, text := range texts {
		texts[name] = strings.ToValidUTF8(text, "\uFFFD")
	}
	return texts
}
