package experiment

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"rabbitmq-rpc/bench/model"
	"rabbitmq-rpc/bench/process"
	"rabbitmq-rpc/bench/scaling"
)

// Section holds the samples of one experiment. The samples of a setup and load are in the
// order of the rounds, so equal indexes of two setups belong to the same round.
type Section struct {
	Experiment

	// brokerMeasured is true if the samples contain the broker's processor time.
	brokerMeasured bool
	// Cut is true if the experiment failed before its end.
	Cut bool

	samples map[cell][]Sample
	parts   []model.Part // serial parts, measured by the experiment Growth

	measured scaling.Measurement // of a scaling experiment
}

type cell struct{ contender, load string }

// NewSection returns the section of an experiment without samples.
func NewSection(e Experiment, o Options) *Section {
	return &Section{Experiment: e, brokerMeasured: o.BrokerPID != 0, samples: make(map[cell][]Sample)}
}

// Add appends the sample of the next round.
func (s *Section) Add(setup, load string, sample Sample) {
	at := cell{setup, load}
	s.samples[at] = append(s.samples[at], sample)
}

// HasSamples reports whether a turn was measured.
func (s *Section) HasSamples() bool { return len(s.samples) > 0 }

// series returns one figure of each round.
func (s *Section) series(setup, load string, figure func(Sample) float64) []float64 {
	var all []float64
	for _, sample := range s.samples[cell{setup, load}] {
		all = append(all, figure(sample))
	}
	return all
}

func (s *Section) spread(setup, load string, figure func(Sample) float64) Spread {
	return spreadOf(s.series(setup, load, figure))
}

// ratio compares a figure of two cells round by round.
func (s *Section) ratio(of, against cell, figure func(Sample) float64) Spread {
	mine, other := s.series(of.contender, of.load, figure), s.series(against.contender, against.load, figure)
	var ratios []float64
	for i := range min(len(mine), len(other)) {
		ratios = append(ratios, mine[i]/other[i])
	}
	return spreadOf(ratios)
}

// has reports whether a setup is in the experiment.
func (s *Section) has(label string) bool {
	for _, e := range s.setups {
		if e.Label == label {
			return true
		}
	}
	return false
}

// TakesPart reports whether the contender with a label has a setup in the experiment.
func (s *Section) TakesPart(label string) bool {
	name, program := SplitLabel(label)
	return slices.ContainsFunc(s.setups, func(e process.Setup) bool {
		return e.Contender == name && (e.Program == program || e.Env.Programs != "")
	})
}

// Markdown renders the section.
func (s *Section) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n%s\n", s.title, s.note)
	if s.Cut {
		b.WriteString("\n**It failed before its end; these are the rounds until then.**\n")
	}
	for _, p := range s.plots {
		fmt.Fprintf(&b, "\n![%s](%s)\n", p.Title, p.file)
	}
	b.WriteString(s.render(s))
	return b.String()
}

// medians formats medians with the verb and joins them with a plus sign.
func medians(verb string, spreads ...Spread) string {
	var all []string
	for _, s := range spreads {
		if math.IsNaN(s.Median) {
			return "–"
		}
		all = append(all, fmt.Sprintf(verb, s.Median))
	}
	return strings.Join(all, " + ")
}

// grouped formats a whole number with commas between the thousands.
func grouped(n float64) string {
	digits := strconv.FormatFloat(n, 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// table writes a Markdown table. The first column is left-aligned, and the other columns are
// right-aligned.
func table(b *strings.Builder, heads []string, rows [][]string) {
	b.WriteString("\n")
	row(b, heads...)
	row(b, append([]string{"---"}, repeat("---:", len(heads)-1)...)...)
	for _, cells := range rows {
		row(b, cells...)
	}
}

func row(b *strings.Builder, cells ...string) {
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

func repeat(text string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = text
	}
	return all
}
