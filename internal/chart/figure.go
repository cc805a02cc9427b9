package chart

import (
	"html/template"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
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

// SVG draws the figure.
func (f *Figure) SVG(s Size) (template.HTML, error) {
	canvas := vgsvg.New(vg.Points(s.Width), vg.Points(s.Height))
	area := draw.New(canvas)
	p := f.layout(s)
	label := style(s, Words)
	label.YAlign = text.YTop
	area.FillText(label, vg.Point{X: area.Min.X, Y: area.Max.Y - vg.Points(1)}, f.Y.Label)
	const gap = 0.7 // of a line, between label and plot
	p.Draw(draw.Crop(area, left(p, s), -vg.Points(2), vg.Points(2), -vg.Points(s.Font*(1+gap))))
	return rewrite(canvas, f, s)
}

// left returns the part of the gutter that the labels of the Y axis leave free.
func left(p *plot.Plot, s Size) vg.Length {
	var widest vg.Length
	for _, t := range p.Y.Tick.Marker.Ticks(p.Y.Min, p.Y.Max) {
		widest = max(widest, p.Y.Tick.Label.Width(t.Label))
	}
	return max(vg.Points(s.Gutter)-widest, 0)
}

// layout builds the plot without the surrounding labels.
func (f *Figure) layout(s Size) *plot.Plot {
	p := plot.New()
	p.BackgroundColor, p.TextHandler = nil, handler()
	p.X.Min, p.X.Max = f.X.bounds()
	p.Y.Min, p.Y.Max = f.Y.bounds()
	p.X.Label.Text = f.X.Label
	p.X.Label.Padding = vg.Points(3)
	p.X.Label.TextStyle = style(s, Words)
	p.X.Label.TextStyle.XAlign, p.X.Label.TextStyle.YAlign = text.XCenter, text.YBottom
	p.X.Tick.Label, p.Y.Tick.Label = style(s, Words), style(s, Words)
	p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = text.XCenter, text.YTop
	p.Y.Tick.Label.XAlign, p.Y.Tick.Label.YAlign = text.XRight, text.YCenter
	p.X.Tick.Marker, p.Y.Tick.Marker = f.X.ticker(p.X.Min, p.X.Max, s.XTicks), f.Y.ticker(p.Y.Min, p.Y.Max, s.YTicks)
	p.X.Color, p.X.Tick.Color = Axis.color(), Axis.color()
	p.X.Width, p.X.Tick.Width, p.X.Tick.Length = vg.Points(1), vg.Points(1), vg.Points(4)
	p.Y.Width, p.Y.Tick.Width, p.Y.Tick.Length = 0, 0, 0
	p.X.Padding, p.Y.Padding = 0, vg.Points(2)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = nil, Grid.color()
	grid.Horizontal.Width = vg.Points(1)
	for _, b := range f.Bands {
		p.Add(band{f.X.at(b.From), f.X.at(b.To), b.Ink})
	}
	p.Add(grid)
	f.addBars(p)
	for _, l := range f.Lines {
		f.addLine(p, l)
	}
	p.Add(marks{figure: f, size: s})
	return p
}

func style(s Size, ink Ink) text.Style {
	base := plot.DefaultFont
	base.Variant, base.Size = "Sans", vg.Points(s.Font)
	return text.Style{Color: ink.color(), Font: base, Handler: handler()}
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

func (s *Scale) ticker(low, high float64, n int) plot.ConstantTicks {
	ticks := s.Ticks
	switch {
	case ticks != nil:
	case s.Log:
		ticks = logTicks(low, high, n)
	default:
		ticks = linearTicks(low, high, n)
	}
	marks := make([]plot.Tick, 0, len(ticks))
	for _, t := range ticks {
		// A tick beyond the bound by a rounding error would be cut off.
		marks = append(marks, plot.Tick{Value: within(t.At, low, high), Label: t.Label})
	}
	return marks
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
