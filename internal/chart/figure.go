package chart

import (
	"html/template"
	"math"
)

// Figure is a plot. All values must be finite, and above 0 on a logarithmic scale; invalid
// values are left out.
type Figure struct {
	// ID is the prefix of the ids in the SVG; it is unique within the page.
	ID string
	// Title and Desc describe the figure for readers who cannot see it.
	Title, Desc string
	X, Y        Scale
	Bands       []Band
	Marks       []Mark
	Bars        []Bar
	Lines       []Line
}

// Scale is an axis and its bounds. Equal bounds are moved apart.
type Scale struct {
	Label    string
	Min, Max float64
	Log      bool
	Ticks    []Tick // nil: round values
}

// Line joins points. A point whose Y is NaN makes a gap.
type Line struct {
	Ink    Ink
	Dashed bool
	Steps  bool // each value holds until the next point
	Fill   bool // the area below has the ink Wash
	Points []Point
}

// Point is a position in a figure.
type Point struct{ X, Y float64 }

// Bar is a column that starts at the axis.
type Bar struct{ From, To, Y float64 }

// Mark is a labelled vertical line at a point in time.
type Mark struct {
	X     float64
	Label string
	Ink   Ink
}

// Band is a shaded range of time.
type Band struct {
	From, To float64
	Ink      Ink
}

// Size is a layout of a figure. A page shows one of several layouts, so that labels stay
// legible on a phone.
type Size struct {
	// Name is a class of the SVG.
	Name          string
	Width, Height float64
	Font          float64
	Gutter        float64 // width of the Y axis's labels, so that figures line up
	XTicks        int     // approximate number of labels
	YTicks        int
}

// SVG draws the figure for embedding in a page: without a size, colours and fonts, which the
// page's style sheet sets, and without style attributes, which a strict content security policy
// forbids.
func (f *Figure) SVG(s Size) template.HTML {
	d := newDrawing(f, s)
	for _, b := range f.Bands {
		d.band(b)
	}
	d.grid()
	for _, b := range f.Bars {
		d.bar(b)
	}
	for _, l := range f.Lines {
		d.line(l)
	}
	d.marks()
	d.axes()
	return d.svg()
}

// at returns the position of a value on a linear axis.
func (s *Scale) at(v float64) float64 {
	if s.Log {
		return math.Log10(v)
	}
	return v
}

// bounds returns the positions of the ends of the axis.
func (s *Scale) bounds() (low, high float64) {
	low, high = s.at(s.Min), s.at(s.Max)
	if !finite(low) || !finite(high) || low > high {
		low, high = 0, 1
	}
	if low == high {
		low, high = low-0.5, high+0.5
	}
	return low, high
}

// ticks returns the ticks of the axis, about n of them.
func (s *Scale) ticks(low, high float64, n int) []Tick {
	ticks := s.Ticks
	switch {
	case ticks != nil:
	case s.Log:
		ticks = logTicks(low, high, n)
	default:
		ticks = linearTicks(low, high, n)
	}
	var shown []Tick
	for _, t := range ticks {
		// A tick beyond the bound by a rounding error would be cut off.
		if t.At = within(t.At, low, high); t.At >= low && t.At <= high {
			shown = append(shown, t)
		}
	}
	return shown
}

// within moves a value that equals a bound except for rounding onto the bound.
func within(v, low, high float64) float64 {
	slack := (high - low) * 1e-6
	if v < low+slack && v > low-slack {
		return low
	}
	if v < high+slack && v > high-slack {
		return high
	}
	return v
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
