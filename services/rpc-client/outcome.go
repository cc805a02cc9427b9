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
func newReport(t *tally, settings *Config, stats amqpx.ClientStats) *report.Report {
	g := settings.goal()
	r := &report.Report{
		Calls:          t.calls,
		OK:             t.ok,
		Errors:         maps.Clone(t.errors),
		Lost:           t.calls - t.settled(),
		Duplicates:     stats.Duplicates,
		Mismatched:     t.errors[keyMismatched],
		Reconnects:     stats.Reconnects,
		Seconds:        report.Seconds(t.elapsed),
		Corrected:      g.open(),
		Interrupted:    t.interrupted && t.calls < g.calls,
		GivenUp:        t.givenUp,
		PlannedSeconds: report.Seconds(g.duration),
		Resent:         stats.Resent,
		Late:           stats.Late,
		Unknown:        stats.Unknown,
		Batched:        stats.Batched,
		BlockedSeconds: report.Seconds(stats.Blocked),
		QueueWaitMS:    serverTime(t.server.queue),
		HandlerMS:      serverTime(t.server.handler),
		Percentiles:    percentiles(t.latency, time.Nanosecond),
		Histogram:      bins(t.latency),
		Timeline:       t.timeline.report(t.elapsed),
		Events:         []report.Event{},
		Settings:       printable(config.Describe(settings)),
		Versions:       versions(),
		Started:        t.start.UTC().Truncate(time.Microsecond),
		Finished:       t.start.Add(t.elapsed).UTC().Truncate(time.Microsecond),
	}
	if g.calls != noLimit {
		r.PlannedCalls = g.calls
		if t.givenUp {
			r.NotTried = g.calls - t.calls
		}
	}
	r.Passed = r.Err() == nil
	if t.elapsed > 0 {
		r.CallsPerSecond = report.Round(float64(t.calls)/t.elapsed.Seconds(), 1)
	}
	if t.ok > 0 {
		r.LatencyMS = newLatency(t)
	}
	if g.open() {
		r.Rate = newRate(t, g)
	}
	return r
}

func newLatency(t *tally) report.Latency {
	at := func(percent float64) float64 {
		return inMilliseconds(t.latency.ValueAtPercentile(percent), time.Nanosecond)
	}
	return report.Latency{
		Min:  inMilliseconds(t.latency.Min(), time.Nanosecond),
		Mean: report.Milliseconds(time.Duration(t.latency.Mean())),
		P50:  at(50),
		P90:  at(90),
		P99:  at(99),
		P999: at(99.9),
		Max:  inMilliseconds(t.latency.Max(), time.Nanosecond),
	}
}

// newRate compares the achieved rate with the requested rate.
func newRate(t *tally, g goal) *report.Rate {
	const enough = 0.99
	r := &report.Rate{
		Asked:    float64(g.rate),
		BehindMS: report.Milliseconds(t.behind),
		NotBegun: t.schedule.notBegun,
		InFlight: g.inFlight,
	}
	if t.schedule.took > 0 {
		r.Achieved = report.Round(float64(t.schedule.begun)/t.schedule.took.Seconds(), 1)
	}
	r.KeptUp = t.schedule.begun == 0 || r.Achieved >= enough*r.Asked
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
