// Package chart draws figures as SVG for a page. A figure has no colours of its own: it
// says what each line is for, and the page's style sheet gives that a colour, so figures
// follow the page from light to dark.
package chart

import (
	"fmt"
	"image/color"
)

// Ink is what something is drawn for. In the SVG it is a class: f-NAME where an area or a
// text is filled, s-NAME where a line is stroked.
type Ink uint8

// The inks that a page's style sheet needs colours for.
const (
	Words  Ink = iota // labels
	Axis              // the axis itself
	Grid              // lines to read values by
	First             // the main series
	Wash              // the area below it
	Second            // the series beside it
	Third             // one to compare with
	Bad               // failures
	Shadow            // times in which something was amiss
)

// names are the classes, without f- and s-.
func names() []string {
	return []string{"words", "axis", "grid", "first", "wash", "second", "third", "bad", "shadow"}
}

// String returns the class without its f- or s-.
func (i Ink) String() string { return names()[int(i)%len(names())] }

// color returns a colour that stands for the ink until the SVG is rewritten. No figure has
// another colour.
func (i Ink) color() color.Color { return color.RGBA{R: 1, G: 2, B: uint8(i), A: 0xff} }

// inkOf returns the class that a colour, as the SVG writes it, stands for.
func inkOf(colour string) (class string, ok bool) {
	var i uint8
	if n, err := fmt.Sscanf(colour, "#0102%02X", &i); n != 1 || err != nil || int(i) >= len(names()) {
		return "", false
	}
	return names()[i], true
}
