package model

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
)

// Growth is a measurement, as a file keeps it.
type Growth struct {
	Points []Point `json:"points"`
	Parts  []Part  `json:"parts"`
}

// Read reads a measurement from a file.
func Read(file string) (g Growth, err error) {
	text, err := os.ReadFile(file) //nolint:gosec // the user of this tool named it.
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(text, &g); err != nil {
		return g, fmt.Errorf("%s: %w", file, err)
	}
	return g, nil
}

// processors are the machines of the table of limits.
func processors() []int { return []int{2, 8, 32, 128} }

// Markdown fits the model and returns its tables: serial parts, measured loads beside the
// prediction, and limits. Summary has only the errors and the limits.
func (g Growth) Markdown() (all, summary string, err error) {
	m, err := Fit(g.Points, g.Parts)
	if err != nil {
		return "", "", fmt.Errorf("the model cannot be fitted: %w", err)
	}
	check := m.Check(g.Points).String()
	limits := table(m.limitRows(g.Points, processors()))
	parts, points := table(partRows(g.Parts)), table(m.pointRows(g.Points))
	all = fmt.Sprintf("\n### Serial parts, 1,024 callers\n\n%s\n### Model\n\n%s %s\n\n%s\n### Limits\n\n%s", parts, m, check, points, limits)
	return all, fmt.Sprintf("\n%s\n\n%s", check, limits), nil
}

// String describes the fitted parameters.
func (m *Model) String() string {
	side := func(c cost) string {
		return fmt.Sprintf("%.1f + (%.0f + %.0f × shared) / size", c.call, c.message, c.wake)
	}
	return fmt.Sprintf("Processor time of a call in µs: client %s, server %s, broker %s, where shared is inFlight^-%.2f; "+
		"with GOMAXPROCS 1 the wake-ups of client and server cost %.2f of that. At full load %.0f %% of the processors' time is used. A single call takes %.0f µs.",
		side(m.client), side(m.server), side(m.broker), m.exponent, m.alone, 100*m.busy, m.latency)
}

// tolerance is the error up to which a prediction counts as good in the summary.
const tolerance = 0.25

// Summary has the errors of the predictions.
type Summary struct {
	Points        int
	Within        int // points with an error of at most a quarter
	Median, Worst float64
	WorstLabel    string
}

// Check compares the model with the points that it covers and was not fitted to.
func (m *Model) Check(points []Point) (s Summary) {
	var errs []float64
	for _, p := range points {
		if m.Fitted(p) || !p.Covers() {
			continue
		}
		off := math.Abs(m.Error(p))
		errs = append(errs, off)
		if off <= tolerance {
			s.Within++
		}
		if off >= s.Worst {
			s.Worst, s.WorstLabel = off, p.Label
		}
	}
	if s.Points = len(errs); s.Points > 0 {
		slices.Sort(errs)
		s.Median = errs[len(errs)/2]
	}
	return s
}

// String formats the summary as a sentence.
func (s Summary) String() string {
	return fmt.Sprintf("Of the %d points that the model covers and was not fitted to, %d are within %.0f %% of the measured calls/s; the median error is %.0f %%, the largest %.0f %% (%s).",
		s.Points, s.Within, 100*tolerance, 100*s.Median, 100*s.Worst, s.WorstLabel)
}

// pointRows returns the rows of a table of measured and predicted figures.
func (m *Model) pointRows(points []Point) (heads []string, rows [][]string) {
	heads = []string{"load", "calls in a message", "processors", "CPU µs/call client + server + broker", "model", "calls/s", "model", "error"}
	for _, p := range points {
		note := fmt.Sprintf("%+.0f %%", 100*m.Error(p))
		if m.Fitted(p) {
			note += ", fitted"
		} else if !p.Covers() {
			note += ", not covered"
		}
		c := m.Costs(p)
		rows = append(rows, []string{
			p.Label, fmt.Sprintf("%.1f", p.Size), fmt.Sprintf("%.2f", p.Processors), p.costsOf().String(), c.String(),
			grouped(p.Rate), grouped(m.Rate(p)), note,
		})
	}
	return heads, rows
}

// String formats the times of the three sides.
func (c Costs) String() string {
	verb := "%.0f + %.0f + %.0f"
	if c.Sum() < 30 {
		verb = "%.1f + %.1f + %.1f"
	}
	return fmt.Sprintf(verb, c.Client, c.Server, c.Broker)
}

// partRows returns the rows of a table of the serial parts, with their limits.
func partRows(parts []Part) (heads []string, rows [][]string) {
	find := func(batch bool, side, name string) float64 {
		for _, p := range parts {
			if p.Batch == batch && p.Side == side && p.Name == name {
				return p.Micros
			}
		}
		return 0
	}
	cells := func(micros float64) []string {
		if micros == 0 {
			return []string{"–", "–"}
		}
		return []string{fmt.Sprintf("%.2f", micros), rounded(1e6 / micros)}
	}
	var done []string
	for _, p := range parts {
		if at := p.Side + p.Name; !slices.Contains(done, at) {
			done = append(done, at)
			rows = append(rows, slices.Concat([]string{p.Side + ": " + p.Name}, cells(find(false, p.Side, p.Name)), cells(find(true, p.Side, p.Name))))
		}
	}
	return []string{"serial part", "µs/call, single", "at most calls/s", "µs/call, batch", "at most calls/s"}, rows
}

// limitRows returns the rows of a table of the limits on machines with several numbers of
// processors, for single messages and for batches, with 1,024 callers for each client.
func (m *Model) limitRows(points []Point, processors []int) (heads []string, rows [][]string) {
	const callers = 1024
	for _, batch := range []bool{false, true} {
		base, ok := m.Base(points, batch, callers)
		if !ok {
			continue
		}
		name := "single"
		if batch {
			name = "batch"
		}
		for _, n := range processors {
			p := base.On(n)
			lowest := m.Bounds(p)[0]
			cells := []string{fmt.Sprintf("%d, %s", n, name)}
			for _, side := range []string{BoundProcessors, BoundCallers, Client, Server, Broker} {
				cells = append(cells, m.lowestOf(p, side, lowest))
			}
			needed := m.Needed(p)
			more := "–"
			if lowest.Name != BoundProcessors {
				more = fmt.Sprintf("%s, %s, %s", count(needed[Client], "client"), count(needed[Server], "server"), count(needed[Broker], "queue"))
			}
			rows = append(rows, append(cells, lowest.text(), more))
		}
	}
	return []string{"processors", "their limit, calls/s", "1,024 callers", "one client", "one server", "one queue", "the first limit", "processors are the limit with"}, rows
}

// lowestOf formats the lowest bound with a name, or of a side, and marks the lowest of all.
func (m *Model) lowestOf(p Point, of string, lowest Bound) string {
	for _, b := range m.Bounds(p) {
		if b.Name == of || b.Side == of {
			if b == lowest {
				return "**" + rounded(b.Rate) + "**"
			}
			return rounded(b.Rate)
		}
	}
	return "–"
}

func (b Bound) text() string {
	if b.Side == "" {
		return b.Name
	}
	return b.Side + ": " + b.Name
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// rounded formats a number with two significant digits.
func rounded(x float64) string {
	if x <= 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return "–"
	}
	unit := math.Pow(10, math.Floor(math.Log10(x))-1)
	return grouped(math.Round(x/unit) * unit)
}

// grouped formats a whole number with commas between the thousands.
func grouped(x float64) string {
	digits := fmt.Sprintf("%.0f", x)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// table formats a Markdown table. The first column is left-aligned, the others right-aligned.
func table(heads []string, rows [][]string) string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(heads)
	line(append([]string{"---"}, slices.Repeat([]string{"---:"}, len(heads)-1)...))
	for _, row := range rows {
		line(row)
	}
	return b.String()
}
