package main

import (
	"maps"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/version"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// newReport returns the report of a run from the results counted during the run.
func newReport(t *Results, settings *Config, stats amqpx.ClientStats) *report.Report {
	g := settings.workload()
	r := &report.Report{
		Calls:          t.Calls,
		OK:             t.OK,
		Errors:         maps.Clone(t.Errors),
		Lost:           t.Calls - t.Settled(),
		Duplicates:     stats.Duplicates,
		Mismatched:     t.Errors[KeyMismatched],
		Reconnects:     stats.Reconnects,
		Seconds:        report.Seconds(t.Elapsed),
		Corrected:      g.Open(),
		Interrupted:    t.Interrupted && t.Calls < g.Calls,
		GivenUp:        t.GivenUp,
		PlannedSeconds: report.Seconds(g.Duration),
		Resent:         stats.Resent,
		Late:           stats.Late,
		Unknown:        stats.Unknown,
		Batched:        stats.Batched,
		BlockedSeconds: report.Seconds(stats.Blocked),
		QueueWaitMS:    serverTime(t.Server.Queue),
		HandlerMS:      serverTime(t.Server.Handler),
		Percentiles:    Percentiles(t.Latency, time.Nanosecond),
		Histogram:      Bins(t.Latency),
		Timeline:       t.Timeline.report(t.Elapsed),
		Events:         []report.Event{},
		Settings:       printable(config.Describe(settings)),
		Versions:       versions(),
		Started:        t.Start.UTC().Truncate(time.Microsecond),
		Finished:       t.Start.Add(t.Elapsed).UTC().Truncate(time.Microsecond),
	}
	if g.Calls != NoLimit {
		r.PlannedCalls = g.Calls
		if t.GivenUp {
			r.NotTried = g.Calls - t.Calls
		}
	}
	r.Passed = r.Err() == nil
	if t.Elapsed > 0 {
		r.CallsPerSecond = report.Round(float64(t.Calls)/t.Elapsed.Seconds(), 1)
	}
	if t.OK > 0 {
		r.LatencyMS = newLatency(t)
	}
	if g.Open() {
		r.Rate = newRate(t, g)
	}
	return r
}

func newLatency(t *Results) report.Latency {
	at := func(percent float64) float64 {
		return inMilliseconds(t.Latency.ValueAtPercentile(percent), time.Nanosecond)
	}
	return report.Latency{
		Min:  inMilliseconds(t.Latency.Min(), time.Nanosecond),
		Mean: report.Milliseconds(time.Duration(t.Latency.Mean())),
		P50:  at(50),
		P90:  at(90),
		P99:  at(99),
		P999: at(99.9),
		Max:  inMilliseconds(t.Latency.Max(), time.Nanosecond),
	}
}

// newRate compares the achieved rate with the requested rate.
func newRate(t *Results, g Workload) *report.Rate {
	const enough = 0.99
	r := &report.Rate{
		Asked:    float64(g.Rate),
		BehindMS: report.Milliseconds(t.Behind),
		NotBegun: t.Schedule.NotBegun,
		InFlight: g.InFlight,
	}
	if t.Schedule.Took > 0 {
		r.Achieved = report.Round(float64(t.Schedule.Begun)/t.Schedule.Took.Seconds(), 1)
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

// brokerOf returns the address of the broker: the address of the connection, or, if no
// connection was ever made, the address in the URL.
func brokerOf(status amqpx.Status, urls config.Secret) string {
	if status.Broker != "" {
		return status.Broker
	}
	list, err := amqpx.ParseURLs(urls.Reveal())
	if err != nil {
		return ""
	}
	return list[0].Address()
}
