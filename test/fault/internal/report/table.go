package report

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
)

// Verdicts.
const (
	Passed = "passed"
	Failed = "FAILED"
)

// Row is the result of one scenario.
type Row struct {
	Scenario string `json:"scenario"`
	About    string `json:"about"`
	// Batch is the batch mode, Batched the number of calls sent in batches.
	Batch   string `json:"batch"`
	Batched uint64 `json:"batched"`
	// Injected counts the faults.
	Injected int     `json:"injected"`
	Seconds  float64 `json:"seconds"`

	check.Result

	// Recoveries are the times from the broker's return to the first response, Notices the
	// times from a connection's silence to its end.
	Recoveries []time.Duration `json:"recoveries_ns,omitempty"`
	Notices    []time.Duration `json:"notices_ns,omitempty"`
	// Losses are the clients' views of the loss of nodes of a cluster.
	Losses []Loss `json:"losses,omitempty"`
	// Held is the broker's last count, Leaks the resources not released.
	Held  string   `json:"held"`
	Leaks []string `json:"leaks,omitempty"`
	// Problems are the reasons for the verdict.
	Problems []string `json:"problems,omitempty"`
	Verdict  string   `json:"verdict"`
}

// Loss describes one client during the loss of nodes of a cluster.
type Loss struct {
	Client string `json:"client"`
	// Gap is the longest time without a response while the nodes were away. First is the time
	// from the loss to the first response among the calls made after the loss.
	Gap   time.Duration `json:"gap_ns"`
	First time.Duration `json:"first_ns"`
	// Outage means that the request queue was unavailable, too. Quiet means that the nodes did
	// not end, but stopped responding.
	Outage bool `json:"outage"`
	Quiet  bool `json:"quiet"`
}

// Run is one run of the suite.
type Run struct {
	Command string `json:"command"`
	Seed    uint64 `json:"seed"`
	Broker  string `json:"broker"`
	// Batch is the batch mode, or "both" if it differs by row.
	Batch string    `json:"batch"`
	Begun time.Time `json:"begun"`
	Rows  []Row     `json:"rows"`
}

// Markdown returns the run as a table, with the command to repeat the run.
func (r Run) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "RabbitMQ %s, batch %s, seed %d: `%s`\n\n", r.Broker, r.Batch, r.Seed, r.Command)
	b.WriteString("| scenario | injected | times | calls | in batches | ok | errors | abandoned | lost | duplicates | mismatched " +
		"| wrong \"did not run\" | longest stall | verdict |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n")
	var sum Row
	for _, row := range r.Rows {
		line(&b, row)
		sum.Injected += row.Injected
		sum.Calls += row.Calls
		sum.Batched += row.Batched
		sum.OK += row.OK
		sum.Abandoned += row.Abandoned
		sum.Lost += row.Lost
		sum.Duplicates += row.Duplicates
		sum.Mismatched += row.Mismatched
		sum.WrongDidNotRun += row.WrongDidNotRun
		sum.LongestStall = max(sum.LongestStall, row.LongestStall)
		sum.Notices = append(sum.Notices, row.Notices...)
	}
	sum.Scenario = "**all**"
	sum.Verdict = fmt.Sprintf("%d of %d passed", r.passed(), len(r.Rows))
	line(&b, sum)
	r.problems(&b)
	r.shapes(&b)
	r.keys(&b)
	r.streams(&b)
	b.WriteString(times("From the broker's return to the first answered call", r.Recoveries()))
	b.WriteString(times("From a connection's silence to its end", sum.Notices))
	r.losses(&b)
	return b.String()
}

// problems writes the reasons for the verdicts of the scenarios that failed, if any did.
func (r Run) problems(b *strings.Builder) {
	separator := "\n"
	for _, row := range r.Rows {
		for _, problem := range row.Problems {
			fmt.Fprintf(b, "%s- %s: %s\n", separator, row.Scenario, strings.Join(strings.Fields(problem), " "))
			separator = ""
		}
	}
}

// shapes writes the calls that are no plain calls, by shape, if there were any.
func (r Run) shapes(b *strings.Builder) {
	all := make(map[string]check.Shape)
	for _, row := range r.Rows {
		for shape, s := range row.Shapes {
			all[shape] = all[shape].Plus(*s)
		}
	}
	if len(all) == 0 {
		return
	}
	b.WriteString("\n| shape | calls | ok | errors | abandoned | lost | duplicates | mismatched | wrong \"did not run\" " +
		"| responses of all servers | confirmed, never ran |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, shape := range slices.Sorted(maps.Keys(all)) {
		s := all[shape]
		fmt.Fprintf(b, "| %s | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d |\n", shape, s.Calls, s.OK,
			s.Calls-s.OK-s.Abandoned-s.Lost, s.Abandoned, s.Lost, s.Duplicates, s.Mismatched, s.WrongDidNotRun, s.Responses, s.NeverRan)
	}
}

// keys writes the idempotency keys by scenario, if there were any.
func (r Run) keys(b *strings.Builder) {
	var sum check.Keys
	for _, row := range r.Rows {
		sum = sum.Plus(row.Keys)
	}
	if sum.Keys == 0 {
		return
	}
	b.WriteString("\n| scenario | keys | with responses of several servers | executions | to their end " +
		"| claim may have ended | anonymous |\n|---|--:|--:|--:|--:|--:|--:|\n")
	write := func(scenario string, k check.Keys) {
		fmt.Fprintf(b, "| %s | %d | %d | %d | %d | %d | %d |\n",
			scenario, k.Keys, k.Several, k.Started, k.Ended, k.Unclaimed, k.Anonymous)
	}
	for _, row := range r.Rows {
		write(row.Scenario, row.Keys)
	}
	write("**all**", sum)
}

// streams writes the streams by scenario, if there were any.
func (r Run) streams(b *strings.Builder) {
	var sum check.Streams
	rows := make([]string, 0, len(r.Rows)+1)
	for _, row := range r.Rows {
		s := row.Streams
		rows = append(rows, streamLine(row.Scenario, s))
		sum.Opened += s.Opened
		sum.OK += s.OK
		sum.Abandoned += s.Abandoned
		sum.Lost += s.Lost
		sum.Items += s.Items
		sum.Wrong = sum.Wrong.Plus(s.Wrong)
		sum.WrongProgress += s.WrongProgress
		sum.LongestSilence = max(sum.LongestSilence, s.LongestSilence)
	}
	if sum.Opened == 0 {
		return
	}
	b.WriteString("\n| scenario | streams | ended as planned | errors | abandoned | lost | items | missing | repeated | out of order | foreign " +
		"| wrong progress | longest silence |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, row := range append(rows, streamLine("**all**", sum)) {
		b.WriteString(row)
	}
}

func streamLine(scenario string, s check.Streams) string {
	return fmt.Sprintf("| %s | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %s |\n",
		scenario, s.Opened, s.OK, s.Opened-s.OK-s.Abandoned-s.Lost, s.Abandoned, s.Lost,
		s.Items, s.Wrong.Missing, s.Wrong.Repeated, s.Wrong.Misplaced, s.Wrong.Foreign, s.WrongProgress, s.LongestSilence.Round(time.Millisecond))
}

// losses writes the clients' gaps after the loss of nodes, by scenario.
func (r Run) losses(b *strings.Builder) {
	if !slices.ContainsFunc(r.Rows, func(row Row) bool { return len(row.Losses) > 0 }) {
		return
	}
	b.WriteString("\n| scenario | losses seen by clients | longest gap: median | longest | first response: median | longest |\n" +
		"|---|--:|--:|--:|--:|--:|\n")
	write := func(name string, all []Loss) {
		var gaps, firsts []time.Duration
		for _, l := range all {
			gaps, firsts = append(gaps, l.Gap), append(firsts, l.First)
		}
		if len(all) > 0 {
			fmt.Fprintf(b, "| %s | %d | %v | %v | %v | %v |\n", name, len(all),
				Quantile(gaps, 0.5).Round(time.Millisecond), slices.Max(gaps).Round(time.Millisecond),
				Quantile(firsts, 0.5).Round(time.Millisecond), slices.Max(firsts).Round(time.Millisecond))
		}
	}
	for _, row := range r.Rows {
		write(row.Scenario, row.Losses)
	}
	write("**nodes that ended, request queue in service**", r.Survived())
}

// Survived returns the losses of nodes that ended while the request queue stayed in service.
func (r Run) Survived() []Loss {
	var all []Loss
	for _, row := range r.Rows {
		for _, l := range row.Losses {
			if !l.Outage && !l.Quiet {
				all = append(all, l)
			}
		}
	}
	return all
}

// Recoveries returns the times from the broker's return to the first response, of all rows.
func (r Run) Recoveries() []time.Duration {
	var all []time.Duration
	for _, row := range r.Rows {
		all = append(all, row.Recoveries...)
	}
	return all
}

func line(b *strings.Builder, r Row) {
	fmt.Fprintf(b, "| %s | %s | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %s | %s |\n",
		r.Scenario, r.About, r.Injected, r.Calls, r.Batched, r.OK, r.Calls-r.OK-r.Abandoned-r.Lost, r.Abandoned, r.Lost,
		r.Duplicates, r.Mismatched, r.WrongDidNotRun, r.LongestStall.Round(time.Millisecond), r.Verdict)
}

func (r Run) passed() int {
	n := 0
	for _, row := range r.Rows {
		if row.Verdict == Passed {
			n++
		}
	}
	return n
}

// times formats quantiles of durations.
func times(what string, all []time.Duration) string {
	if len(all) == 0 {
		return ""
	}
	return fmt.Sprintf("\n%s: median %v, p99 %v, longest %v, of %d.\n", what,
		Quantile(all, 0.5).Round(time.Millisecond), Quantile(all, 0.99).Round(time.Millisecond),
		slices.Max(all).Round(time.Millisecond), len(all))
}

// Quantile returns the smallest duration with at least the share q of all durations at or
// below it.
func Quantile(all []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	rank := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Write writes the run as NAME.md and NAME.json into a folder.
func (r Run) Write(dir, name string) error {
	const private = 0o700
	if err := os.MkdirAll(dir, private); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	const own = 0o600
	for ending, text := range map[string][]byte{".md": []byte(r.Markdown()), ".json": append(data, '\n')} {
		if err := os.WriteFile(filepath.Join(dir, name+ending), text, own); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	return nil
}
