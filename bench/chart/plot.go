// Package chart draws the plots of the benchmark, for files that stand alone.
package chart

import (
	"bytes"
	"errors"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Plot is a plot that stands alone in a file: it has colours, a title and a legend, and
// compares medians of several rounds.
type Plot struct {
	Title, X, Y string
	Linear      bool                   // else both axes are logarithmic
	Tick        func(x float64) string // labels of the x axis; nil: plain numbers
	Series      []Series
}

// Series is one series of a [Plot]: medians connected by a line.
type Series struct {
	Name   string // in the legend; empty: not listed
	Colour int    // an index; equal indexes have equal colours
	Dash   int    // 0 is solid
	Bars   bool   // error bars from the lowest to the highest value
	Points []Interval
}

// Interval is a point of a [Series].
type Interval struct{ X, Median, Low, High float64 }

const plotWidth, plotHeight = 24 * vg.Centimeter, 14 * vg.Centimeter

// ErrNoPoints means that no series of a plot has a point.
var ErrNoPoints = errors.New("no points")

// SVG draws the plot.
func (p *Plot) SVG() ([]byte, error) {
	canvas := vgsvg.New(plotWidth, plotHeight)
	if err := p.draw(draw.New(canvas)); err != nil {
		return nil, err
	}
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return nil, err
	}
	// The list adds fallbacks for readers without the font Liberation Sans.
	return bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:Liberation Sans,Arial,sans-serif")), nil
}

func (p *Plot) draw(canvas draw.Canvas) error {
	fig := plot.New()
	fig.Title.Text = p.Title
	fig.X.Label.Text, fig.Y.Label.Text = p.X, p.Y
	legend := plot.NewLegend()
	legend.Top, legend.Left, legend.Padding = true, true, vg.Points(3)
	for _, style := range []*text.Style{&fig.Title.TextStyle, &fig.X.Label.TextStyle, &fig.Y.Label.TextStyle, &fig.X.Tick.Label, &fig.Y.Tick.Label, &legend.TextStyle} {
		style.Font.Variant = "Sans"
	}
	fig.Title.TextStyle.Font.Size = vg.Points(14)
	fig.Title.Padding = vg.Points(8)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{Y: 0xdd}, color.Gray{Y: 0xdd}
	fig.Add(grid)
	drawn := false
	for _, l := range p.Series {
		if len(l.Points) == 0 {
			continue
		}
		if err := addSeries(fig, &legend, l); err != nil {
			return err
		}
		drawn = true
	}
	if !drawn {
		return ErrNoPoints
	}
	if p.Linear {
		fig.Y.Min = 0
		fig.X.Tick.Marker, fig.Y.Tick.Marker = p.ticks(), plainTicks{plot.DefaultTicks{}}
	} else {
		fig.X.Scale, fig.Y.Scale = plot.LogScale{}, plot.LogScale{}
		fig.X.Tick.Marker, fig.Y.Tick.Marker = p.ticks(), plainTicks{plot.LogTicks{Prec: -1}}
		fig.Y.Min, fig.Y.Max = decade(fig.Y.Min, math.Floor), decade(fig.Y.Max, math.Ceil)
		for _, axis := range []*plot.Axis{&fig.X, &fig.Y} {
			if axis.Min == axis.Max { // a logarithmic axis needs some range
				axis.Min, axis.Max = axis.Min/2, axis.Max*2
			}
		}
	}
	canvas.SetColor(color.White)
	canvas.Fill(canvas.Rectangle.Path())
	// The legend is drawn beside the plot, so that it covers no line.
	const legendWidth = 6 * vg.Centimeter
	right := draw.Crop(canvas, canvas.Max.X-canvas.Min.X-legendWidth, 0, 0, -2*vg.Centimeter)
	fig.Draw(draw.Crop(canvas, 0.3*vg.Centimeter, -legendWidth-0.3*vg.Centimeter, 0.2*vg.Centimeter, -0.2*vg.Centimeter))
	legend.Draw(right)
	return nil
}

func addSeries(fig *plot.Plot, legend *plot.Legend, l Series) error {
	data := intervals(l.Points)
	joined, marks, err := plotter.NewLinePoints(data)
	if err != nil {
		return err
	}
	bars, err := plotter.NewYErrorBars(data)
	if err != nil {
		return err
	}
	colour := palette(l.Colour)
	joined.Color, marks.Color, bars.Color = colour, colour, colour
	joined.Width = vg.Points(1.5)
	joined.Dashes = [][]vg.Length{nil, {vg.Points(6), vg.Points(3)}, {vg.Points(1.5), vg.Points(2.5)}}[l.Dash%3]
	marks.Shape, marks.Radius = draw.CircleGlyph{}, vg.Points(2)
	fig.Add(joined, marks)
	if l.Bars {
		fig.Add(bars)
	}
	if l.Name != "" {
		legend.Add(l.Name, joined, marks)
	}
	return nil
}

// intervals implements the plotters' interfaces for the points of a series.
type intervals []Interval

// Len implements plotter.XYer.
func (s intervals) Len() int { return len(s) }

// XY implements plotter.XYer.
func (s intervals) XY(i int) (x, y float64) { return s[i].X, s[i].Median }

// YError implements plotter.YErrorer.
func (s intervals) YError(i int) (low, high float64) {
	return s[i].Median - s[i].Low, s[i].High - s[i].Median
}

// plainTicks labels ticks with plain numbers, shortened with k and M.
type plainTicks struct{ plot.Ticker }

// Ticks implements plot.Ticker.
func (t plainTicks) Ticks(low, high float64) []plot.Tick {
	ticks := t.Ticker.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = thousands(ticks[i].Value)
		}
	}
	return ticks
}

// thousands formats a number with three or four digits, shortened with k and M.
func thousands(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 3, 64) + "M"
	case v >= 1e3:
		return strconv.FormatFloat(v/1e3, 'g', 4, 64) + "k"
	default:
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
}

// ticks returns a tick at the x position of each point.
func (p *Plot) ticks() plot.ConstantTicks {
	label := p.Tick
	if label == nil {
		label = thousands
	}
	var ticks []plot.Tick
	seen := make(map[float64]bool)
	for _, l := range p.Series {
		for _, at := range l.Points {
			if !seen[at.X] {
				seen[at.X] = true
				ticks = append(ticks, plot.Tick{Value: at.X, Label: label(at.X)})
			}
		}
	}
	return ticks
}

// decade rounds v to a power of ten.
func decade(v float64, round func(float64) float64) float64 {
	return math.Pow(10, round(math.Log10(v)))
}

// palette returns the colour at index i: shades of one colour for the hand-written loops of the
// benchmarks, warm colours for amqpx.
func palette(i int) color.Color {
	colours := []color.RGBA{
		{0x00, 0x72, 0xb2, 0xff}, // the loops: blue to grey
		{0x56, 0xb4, 0xe9, 0xff},
		{0x90, 0x90, 0x90, 0xff},
		{0xe6, 0x9f, 0x00, 0xff}, // amqpx: warm
		{0x8b, 0x45, 0x13, 0xff},
		{0xd5, 0x5e, 0x00, 0xff},
		{0xcc, 0x79, 0xa7, 0xff},
		{0x6a, 0x3d, 0x9a, 0xff},
		{0x7c, 0xc2, 0x2a, 0xff}, // other contenders
		{0x4b, 0x6b, 0x1b, 0xff},
		{0x00, 0x9e, 0x73, 0xff},
		{0x1b, 0x1b, 0x1b, 0xff},
		{0xc8, 0xb4, 0x00, 0xff},
	}
	return colours[i%len(colours)]
}
