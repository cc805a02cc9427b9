package main

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

// plotted describes a plot of an experiment.
type plotted struct {
	file, title, x, y string
	linear            bool                   // else both axes are logarithmic
	tick              func(x float64) string // labels of the x axis; nil: plain numbers
	lines             func(*Section) []line
}

// line is one series of a plot: medians connected by a line.
type line struct {
	name   string // in the legend; empty: not listed
	colour int
	dash   int  // 0 is solid
	bars   bool // error bars from the lowest to the highest value
	points []point
}

type point struct {
	x float64
	y Spread
}

const plotWidth, plotHeight = 24 * vg.Centimeter, 14 * vg.Centimeter

// errNothing means that no line has a point.
var errNothing = errors.New("no points")

// writePlot renders lines as SVG.
func writePlot(file string, p plotted, lines []line) error {
	canvas := vgsvg.New(plotWidth, plotHeight)
	if err := drawPlot(draw.New(canvas), p, lines); err != nil {
		return err
	}
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	// The list adds fallbacks for readers without the font Liberation Sans.
	return writeFile(file, bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:Liberation Sans,Arial,sans-serif")))
}

func drawPlot(canvas draw.Canvas, p plotted, lines []line) error {
	fig := plot.New()
	fig.Title.Text = p.title
	fig.X.Label.Text, fig.Y.Label.Text = p.x, p.y
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
	for _, l := range lines {
		if len(l.points) == 0 {
			continue
		}
		if err := addLine(fig, &legend, l); err != nil {
			return err
		}
		drawn = true
	}
	if !drawn {
		return errNothing
	}
	if p.linear {
		fig.Y.Min = 0
		fig.X.Tick.Marker, fig.Y.Tick.Marker = p.ticks(lines), plainTicks{plot.DefaultTicks{}}
	} else {
		fig.X.Scale, fig.Y.Scale = plot.LogScale{}, plot.LogScale{}
		fig.X.Tick.Marker, fig.Y.Tick.Marker = p.ticks(lines), plainTicks{plot.LogTicks{Prec: -1}}
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

func addLine(fig *plot.Plot, legend *plot.Legend, l line) error {
	data := spreads(l.points)
	joined, marks, err := plotter.NewLinePoints(data)
	if err != nil {
		return err
	}
	bars, err := plotter.NewYErrorBars(data)
	if err != nil {
		return err
	}
	colour := palette(l.colour)
	joined.Color, marks.Color, bars.Color = colour, colour, colour
	joined.Width = vg.Points(1.5)
	joined.Dashes = [][]vg.Length{nil, {vg.Points(6), vg.Points(3)}, {vg.Points(1.5), vg.Points(2.5)}}[l.dash%3]
	marks.Shape, marks.Radius = draw.CircleGlyph{}, vg.Points(2)
	fig.Add(joined, marks)
	if l.bars {
		fig.Add(bars)
	}
	if l.name != "" {
		legend.Add(l.name, joined, marks)
	}
	return nil
}

// spreads implements the plotters' interfaces for points.
type spreads []point

// Len implements plotter.XYer.
func (s spreads) Len() int { return len(s) }

// XY implements plotter.XYer.
func (s spreads) XY(i int) (x, y float64) { return s[i].x, s[i].y.Median }

// YError implements plotter.YErrorer.
func (s spreads) YError(i int) (low, high float64) {
	return s[i].y.Median - s[i].y.Low, s[i].y.High - s[i].y.Median
}

// plainTicks labels ticks with plain numbers, shortened with k and M.
type plainTicks struct{ plot.Ticker }

// Ticks implements plot.Ticker.
func (t plainTicks) Ticks(low, high float64) []plot.Tick {
	ticks := t.Ticker.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = short(ticks[i].Value)
		}
	}
	return ticks
}

func short(v float64) string {
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
func (p plotted) ticks(lines []line) plot.ConstantTicks {
	label := p.tick
	if label == nil {
		label = short
	}
	var ticks []plot.Tick
	seen := make(map[float64]bool)
	for _, l := range lines {
		for _, at := range l.points {
			if !seen[at.x] {
				seen[at.x] = true
				ticks = append(ticks, plot.Tick{Value: at.x, Label: label(at.x)})
			}
		}
	}
	return ticks
}

// decade rounds v to a power of ten.
func decade(v float64, round func(float64) float64) float64 {
	return math.Pow(10, round(math.Log10(v)))
}

// palette returns the colour of the candidate at index i of all candidates.
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
		{0x7c, 0xc2, 0x2a, 0xff}, // other candidates
		{0x4b, 0x6b, 0x1b, 0xff},
		{0x00, 0x9e, 0x73, 0xff},
		{0x1b, 0x1b, 0x1b, 0xff},
		{0xc8, 0xb4, 0x00, 0xff},
	}
	return colours[i%len(colours)]
}
