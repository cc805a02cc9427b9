package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// WriteSummary prints the report for people, with names on the left and numbers on the right.
// The title says which calls were made.
func (r *Report) WriteSummary(w io.Writer, title string) error {
	var b strings.Builder
	row := func(label, format string, value any) {
		fmt.Fprintf(&b, "  %-22s %12s\n", label, fmt.Sprintf(format, value))
	}
	fmt.Fprintf(&b, "%s: %s\n", r.headline(), title)
	row("calls", "%d", r.Calls)
	row("ok", "%d", r.OK)
	row("errors", "%d", r.Calls-r.OK-r.Lost)
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		row("  "+code, "%d", r.Errors[code])
	}
	row("lost", "%d", r.Lost)
	if r.NotTried > 0 {
		row("not tried", "%d", r.NotTried)
	}
	row("duplicates", "%d", r.Duplicates)
	row("mismatched", "%d", r.Mismatched)
	row("late responses", "%d", r.Late)
	row("unknown responses", "%d", r.Unknown)
	row("reconnects", "%d", r.Reconnects)
	row("seconds", "%.3f", r.Seconds)
	row("calls/s", "%.1f", r.CallsPerSecond)
	if r.Rate != nil {
		row("begun/s", "%.1f", r.Rate.Achieved)
		row("begun/s, asked for", "%.1f", r.Rate.Asked)
		row("due, not begun", "%d", r.Rate.NotBegun)
	}
	if r.OK > 0 {
		writeLatency(row, &r.LatencyMS)
	}
	row("node", "%s", r.Node)
	if r.Placement != nil {
		for _, line := range r.Placement.Lines() {
			fmt.Fprintf(&b, "  %-40s %s\n", line.Name, line.Where)
		}
	}
	if why := r.WhyGivenUp(); why != "" {
		fmt.Fprintf(&b, "given up: %s\n", why)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeLatency(row func(label, format string, value any), l *Latency) {
	row("latency min (ms)", "%.3f", l.Min)
	row("latency mean (ms)", "%.3f", l.Mean)
	row("latency p50 (ms)", "%.3f", l.P50)
	row("latency p90 (ms)", "%.3f", l.P90)
	row("latency p99 (ms)", "%.3f", l.P99)
	row("latency p99.9 (ms)", "%.3f", l.P999)
	row("latency max (ms)", "%.3f", l.Max)
}

// headline says how the run ended.
func (r *Report) headline() string {
	switch {
	case r.Interrupted:
		return "interrupted after " + r.Progress()
	case r.Err() != nil:
		return "FAILED"
	default:
		return "every call was answered as expected"
	}
}
