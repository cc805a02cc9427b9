// Package chart draws figures as SVG for a page. A figure has no colours: it names the purpose
// of each line, and the page's style sheet assigns a colour to each purpose, so figures follow
// the page from light to dark.
package chart

// Ink is the purpose of a line, an area or a text. In the SVG it is a class: f-NAME where an
// area or a text is filled, s-NAME where a line is stroked.
type Ink uint8

// The inks; a page's style sheet must define a colour for each.
const (
	Words  Ink = iota // labels
	Axis              // the axis itself
	Grid              // grid lines
	First             // the main series
	Wash              // the area below the main series
	Second            // the second series
	Third             // a series for comparison
	Bad               // failures
	Shadow            // times of disturbance
)

// names returns the classes, without f- and s-.
func names() []string {
	return []string{"words", "axis", "grid", "first", "wash", "second", "third", "bad", "shadow"}
}

// String returns the class without its f- or s-.
func (i Ink) String() string { return names()[int(i)%len(names())] }
