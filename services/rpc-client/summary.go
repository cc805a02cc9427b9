package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// writeSummary prints the report for people, names to the left and numbers to the
// right.
func writeSummary(w io.Writer, r *report, settings *Config) error {
	var b strings.Builder
	row := func(label, format string, value any) {
		fmt.Fprintf(&b, "  %-22s %12s\n", label, fmt.Sprintf(format, value))
	}
	fmt.Fprintf(&b, "%s: %q on queue %q, %d at a time\n",
		headline(r, settings.Calls), settings.Method, settings.Queue.Name, settings.Concurrency)
	row("calls", "%d", r.Calls)
	row("ok", "%d", r.OK)
	row("errors", "%d", r.Calls-r.OK-r.Lost)
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		row("  "+code, "%d", r.Errors[code])
	}
	row("lost", "%d", r.Lost)
	row("duplicates", "%d", r.Duplicates)
	row("mismatched", "%d", r.Mismatched)
	row("reconnects", "%d", r.Reconnects)
	row("seconds", "%.3f", r.Seconds)
	row("calls/s", "%.1f", r.CallsPerSecond)
	for _, l := range []struct {
		label string
		value float64
	}{
		{"min", r.LatencyMS.Min},
		{"mean", r.LatencyMS.Mean},
		{"p50", r.LatencyMS.P50},
		{"p90", r.LatencyMS.P90},
		{"p99", r.LatencyMS.P99},
		{"p99.9", r.LatencyMS.P999},
		{"max", r.LatencyMS.Max},
	} {
		row("latency "+l.label+" (ms)", "%.3f", l.value)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func headline(r *report, planned int) string {
	switch {
	case r.Interrupted:
		return fmt.Sprintf("interrupted after %d of %d calls", r.Calls, planned)
	case r.err() != nil:
		return "FAILED"
	default:
		return "every call was answered as expected"
	}
}
