package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// section is what one experiment measured. Samples of one entrant and load are in the
// order of the rounds, so equal places of two entrants were measured together.
type section struct {
	experiment

	// brokerMeasured says that samples hold the broker's processor time.
	brokerMeasured bool
	// cut says that the experiment failed before its end.
	cut bool

	samples map[cell][]Sample
}

type cell struct{ entrant, load string }

func newSection(e experiment, o options) *section {
	return &section{experiment: e, brokerMeasured: o.brokerPID != 0, samples: make(map[cell][]Sample)}
}

// add appends the next round's sample.
func (s *section) add(entrant, load string, sample Sample) {
	at := cell{entrant, load}
	s.samples[at] = append(s.samples[at], sample)
}

// series takes one figure out of every round.
func (s *section) series(entrant, load string, figure func(Sample) float64) []float64 {
	var all []float64
	for _, sample := range s.samples[cell{entrant, load}] {
		all = append(all, figure(sample))
	}
	return all
}

func (s *section) spread(entrant, load string, figure func(Sample) float64) Spread {
	return spreadOf(s.series(entrant, load, figure))
}

// ratio compares a figure of two cells round by round.
func (s *section) ratio(of, against cell, figure func(Sample) float64) Spread {
	mine, other := s.series(of.entrant, of.load, figure), s.series(against.entrant, against.load, figure)
	var ratios []float64
	for i := range min(len(mine), len(other)) {
		ratios = append(ratios, mine[i]/other[i])
	}
	return spreadOf(ratios)
}

// takesPart says whether an entrant is in the lineup.
func (s *section) takesPart(label string) bool {
	for _, e := range s.lineup {
		if e.label == label {
			return true
		}
	}
	return false
}

// markdown renders the section.
func (s *section) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n%s\n", s.title, s.note)
	if s.cut {
		b.WriteString("\n**It failed before its end; these are the rounds until then.**\n")
	}
	for _, p := range s.plots {
		fmt.Fprintf(&b, "\n![%s](%s)\n", p.title, p.file)
	}
	b.WriteString(s.render(s))
	return b.String()
}

// medians renders medians with one verb, joined by a plus sign.
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

// grouped renders a whole number with its thousands apart.
func grouped(n float64) string {
	digits := strconv.FormatFloat(n, 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// table writes a table whose first column holds names and whose others hold figures.
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
