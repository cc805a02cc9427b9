package chart

import (
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// addLine adds a line, in parts if the line has gaps.
func (f *Figure) addLine(p *plot.Plot, l Line) {
	var part plotter.XYs
	flush := func() {
		if len(part) == 0 {
			return
		}
		drawn := &plotter.Line{XYs: part, LineStyle: stroke(l)}
		if l.Steps {
			drawn.StepStyle = plotter.PostStep
		}
		if l.Fill {
			drawn.FillColor = Wash.color()
		}
		p.Add(drawn)
		if len(part) == 1 { // a single point would not be visible as a line
			p.Add(&plotter.Scatter{XYs: part, GlyphStyle: draw.GlyphStyle{
				Color: l.Ink.color(), Radius: vg.Points(2.5), Shape: draw.CircleGlyph{},
			}})
		}
		part = nil
	}
	for _, at := range l.Points {
		x, y := f.X.at(at.X), f.Y.at(at.Y)
		if !finite(x) || !finite(y) {
			flush()
			continue
		}
		part = append(part, plotter.XY{X: x, Y: min(max(y, p.Y.Min), p.Y.Max)})
	}
	flush()
}

func stroke(l Line) draw.LineStyle {
	s := draw.LineStyle{Color: l.Ink.color(), Width: vg.Points(2)}
	if l.Dashed {
		s.Dashes = []vg.Length{vg.Points(6), vg.Points(4)}
	}
	return s
}

// addBars adds the columns.
func (f *Figure) addBars(p *plot.Plot) {
	bins := make([]plotter.HistogramBin, 0, len(f.Bars))
	for _, b := range f.Bars {
		from, to := f.X.at(b.From), f.X.at(b.To)
		if finite(from) && finite(to) && finite(b.Y) && b.Y > 0 {
			bins = append(bins, plotter.HistogramBin{Min: from, Max: to, Weight: b.Y})
		}
	}
	if len(bins) > 0 {
		p.Add(&columns{bins: bins})
	}
}

// columns draws bars with a hairline of the page between them.
type columns struct{ bins []plotter.HistogramBin }

// Plot implements plot.Plotter.
func (b *columns) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for _, bin := range b.bins {
		left, right := x(bin.Min), x(bin.Max)
		if right-left > vg.Points(3) {
			left, right = left+vg.Points(0.5), right-vg.Points(0.5)
		}
		box(c, left, right, y(0), max(y(bin.Weight), y(0)+vg.Points(1)), First)
	}
}

// box fills a rectangle.
func box(c draw.Canvas, left, right, low, high vg.Length, ink Ink) {
	c.FillPolygon(ink.color(), []vg.Point{{X: left, Y: low}, {X: right, Y: low}, {X: right, Y: high}, {X: left, Y: high}})
}

// band shades a range of time.
type band struct {
	from, to float64
	ink      Ink
}

// Plot implements plot.Plotter.
func (b band) Plot(c draw.Canvas, p *plot.Plot) {
	if !finite(b.from) || !finite(b.to) {
		return
	}
	x, _ := p.Transforms(&c)
	left, right := max(x(b.from), c.Min.X), min(x(b.to), c.Max.X)
	if right-left < vg.Points(2) { // keep a short time visible
		right = left + vg.Points(2)
	}
	if left <= c.Max.X && right >= c.Min.X {
		box(c, left, right, c.Min.Y, c.Max.Y, b.ink)
	}
}

// marks draws vertical lines, each with its label in the first row that has space.
type marks struct {
	figure *Figure
	size   Size
}

// Plot implements plot.Plotter.
func (m marks) Plot(c draw.Canvas, p *plot.Plot) {
	const rows, margin = 3, 4
	x, _ := p.Transforms(&c)
	var taken [rows]vg.Length // the end of the last label in each row
	for _, mark := range m.figure.Marks {
		at := m.figure.X.at(mark.X)
		if !finite(at) || at < p.X.Min || at > p.X.Max {
			continue
		}
		left := x(at)
		line := draw.LineStyle{Color: mark.Ink.color(), Width: vg.Points(1.5), Dashes: []vg.Length{vg.Points(3), vg.Points(3)}}
		c.StrokeLine2(line, left, c.Min.Y, left, c.Max.Y)
		label := style(m.size, mark.Ink)
		label.YAlign = draw.YTop
		begin := left + vg.Points(margin)
		end := begin + label.Width(mark.Label)
		if end > c.Max.X { // the label stands before its line
			begin, end = 2*left-end, left
		}
		for row := range taken {
			if begin > taken[row] && begin >= c.Min.X {
				below := vg.Points(1 + float64(row)*m.size.Font*1.25)
				c.FillText(label, vg.Point{X: begin, Y: c.Max.Y - below}, mark.Label)
				taken[row] = end + vg.Points(margin)
				break
			}
		}
	}
}
