// Package chart draws figures as SVG for a page. A figure has no colours: it names the purpose
// of each line, and the page's style sheet assigns a colour to each purpose, so figures follow
// the page from light to dark.
package chart

import (
	"fmt"
	"image/color"
)

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

// color returns a colour that represents the ink until the SVG is rewritten. Figures contain
// no other colours.
func (i Ink) color() color.Color { return color.RGBA{R: 1, G: 2, B: uint8(i), A: 0xff} }

// inkOf returns the class that a colour, as written in the SVG, represents.
func inkOf(colour string) (class string, ok bool) {
	var i uint8
	if n, err := fmt.Sscanf(colour, "#0102%02X", &i); n != 1 || err != nil || int(i) >= len(names()) {
		return "", false
	}
	return names()[i], true
}
