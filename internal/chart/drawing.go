package chart

import (
	"fmt"
	"html/template"
	"strings"
	"unicode/utf8"
)

// drawing is the SVG of a figure in one size. Positions are in the units of the size, from the
// upper left corner.
type drawing struct {
	figure *Figure
	size   Size

	left, right, top, bottom float64 // the plot, without labels
	x, y                     span    // the values at its ends, logarithms on a logarithmic scale
	xTicks, yTicks           []Tick

	out strings.Builder
}

// span is a range of values of an axis.
type span struct{ low, high float64 }

// clamp returns the value in the range that is next to v.
func (r span) clamp(v float64) float64 { return min(max(v, r.low), r.high) }

// Distances, in units of the drawing.
const (
	margin     = 2.0
	tickLength = 4.0
	labelGap   = 3.0 // between the labels of the ticks and the label of the axis
)

// Parts of the size of a font, as fonts without serifs have them.
const (
	wide    = 0.64 // width of a digit in the widest of the common fonts; the page's font is not known here
	rise    = 0.9  // from the upper edge of a line to its base
	middle  = 0.35 // from the middle of a digit to its base
	leading = 1.15 // from line to line
)

func newDrawing(f *Figure, s Size) *drawing {
	d := &drawing{figure: f, size: s}
	d.x.low, d.x.high = f.X.bounds()
	d.y.low, d.y.high = f.Y.bounds()
	d.xTicks, d.yTicks = f.X.ticks(d.x.low, d.x.high, s.XTicks), f.Y.ticks(d.y.low, d.y.high, s.YTicks)
	d.left = s.Gutter + margin
	for _, t := range d.yTicks {
		d.left = max(d.left, d.widthOf(t.Label)+2*margin)
	}
	d.right = s.Width - margin
	for _, t := range d.xTicks { // half of the last label is beyond its tick
		share := (t.At - d.x.low) / (d.x.high - d.x.low)
		if half := d.widthOf(t.Label) / 2; share > 0 {
			d.right = min(d.right, d.left+(s.Width-half-d.left)/share)
		}
	}
	const heading = 1.7 // lines, with the label of the Y axis
	d.top = heading * s.Font
	d.bottom = s.Height - margin - 2*leading*s.Font - labelGap - tickLength
	return d
}

// widthOf returns about the width of a text.
func (d *drawing) widthOf(text string) float64 {
	return wide * d.size.Font * float64(utf8.RuneCountInString(text))
}

// atX and atY return the position of a value of an axis, which is at its end if it is beyond.
func (d *drawing) atX(v float64) float64 {
	return d.left + (d.x.clamp(v)-d.x.low)/(d.x.high-d.x.low)*(d.right-d.left)
}

func (d *drawing) atY(v float64) float64 {
	return d.bottom - (d.y.clamp(v)-d.y.low)/(d.y.high-d.y.low)*(d.bottom-d.top)
}

// path is the data of an SVG path.
type path struct{ data strings.Builder }

// to adds a line to a point; the first point is the start.
func (p *path) to(x, y float64) *path {
	command := "L"
	if p.data.Len() == 0 {
		command = "M"
	}
	return p.add("%s%.5g,%.5g", command, x, y)
}

func (p *path) close() *path { return p.add("Z") }

// add adds data.
func (p *path) add(format string, args ...any) *path {
	fmt.Fprintf(&p.data, format, args...)
	return p
}

// String returns the data.
func (p *path) String() string { return p.data.String() }

func (d *drawing) fill(p *path, ink Ink) {
	fmt.Fprintf(&d.out, `<path d="%s" class="f-%s"/>`, p, ink)
}

// stroke draws a line; dashes is empty for a solid one.
func (d *drawing) stroke(p *path, ink Ink, width float64, dashes string) {
	fmt.Fprintf(&d.out, `<path d="%s" fill="none" stroke-width="%g"`, p, width)
	if dashes != "" {
		fmt.Fprintf(&d.out, ` stroke-dasharray="%s"`, dashes)
	}
	fmt.Fprintf(&d.out, ` class="s-%s"/>`, ink)
}

func (d *drawing) box(left, right, high, low float64, ink Ink) {
	d.fill(new(path).to(left, high).to(right, high).to(right, low).to(left, low).close(), ink)
}

// words writes a text. Its alignment is left to the browser, because only the browser knows the
// width of a text in the page's font.
func (d *drawing) words(x, y float64, anchor, text string, ink Ink) {
	fmt.Fprintf(&d.out, `<text x="%.5g" y="%.5g" font-size="%g"`, x, y, d.size.Font)
	if anchor != "" {
		fmt.Fprintf(&d.out, ` text-anchor="%s"`, anchor)
	}
	fmt.Fprintf(&d.out, ` class="f-%s">%s</text>`, ink, template.HTMLEscapeString(text))
}

// band shades a range of time.
func (d *drawing) band(b Band) {
	from, to := d.figure.X.at(b.From), d.figure.X.at(b.To)
	if !finite(from) || !finite(to) || to < d.x.low || from > d.x.high {
		return
	}
	left := d.atX(from)
	d.box(left, max(d.atX(to), left+2), d.top, d.bottom, b.Ink) // a short time stays visible
}

// grid draws a line at each tick of the Y axis.
func (d *drawing) grid() {
	for _, t := range d.yTicks {
		d.stroke(new(path).to(d.left, d.atY(t.At)).to(d.right, d.atY(t.At)), Grid, 1, "")
	}
}

// bar draws a column with a hairline of the page beside it.
func (d *drawing) bar(b Bar) {
	from, to, y := d.figure.X.at(b.From), d.figure.X.at(b.To), d.figure.Y.at(b.Y)
	if !finite(from) || !finite(to) || !finite(y) || b.Y <= 0 {
		return
	}
	left, right := d.atX(from), d.atX(to)
	if right-left > 3 {
		left, right = left+0.5, right-0.5
	}
	d.box(left, right, min(d.atY(y), d.bottom-1), d.bottom, First)
}

// line draws a line, in parts if it has gaps.
func (d *drawing) line(l Line) {
	var part []Point
	for _, p := range l.Points {
		at := Point{d.figure.X.at(p.X), d.figure.Y.at(p.Y)}
		if finite(at.X) && finite(at.Y) {
			part = append(part, at)
			continue
		}
		d.part(l, part)
		part = nil
	}
	d.part(l, part)
}

// part draws a line without gaps through points of the axes.
func (d *drawing) part(l Line, points []Point) {
	switch len(points) {
	case 0:
		return
	case 1: // not visible as a line
		d.dot(d.atX(points[0].X), d.atY(points[0].Y), l.Ink)
		return
	}
	drawn, area := new(path), new(path).to(d.atX(points[0].X), d.bottom)
	for i, p := range points {
		x, y := d.atX(p.X), d.atY(p.Y)
		if l.Steps && i > 0 {
			drawn.to(x, d.atY(points[i-1].Y))
			area.to(x, d.atY(points[i-1].Y))
		}
		drawn.to(x, y)
		area.to(x, y)
	}
	last := points[len(points)-1]
	if l.Fill {
		d.fill(area.to(d.atX(last.X), d.bottom).close(), Wash)
	}
	dashes := ""
	if l.Dashed {
		dashes = "6,4"
	}
	d.stroke(drawn, l.Ink, 2, dashes)
}

func (d *drawing) dot(x, y float64, ink Ink) {
	const radius = 2.5
	circle := new(path).to(x-radius, y)
	for _, end := range []float64{x + radius, x - radius} {
		circle.add("A%g,%g 0 1 0 %.5g,%.5g", radius, radius, end, y)
	}
	d.fill(circle.close(), ink)
}

// marks draws vertical lines, each with its label in the first row that has space.
func (d *drawing) marks() {
	const rows, gap = 3, 4
	var taken [rows]float64 // the end of the last label in each row
	for _, mark := range d.figure.Marks {
		at := d.figure.X.at(mark.X)
		if !finite(at) || at != d.x.clamp(at) {
			continue
		}
		x := d.atX(at)
		d.stroke(new(path).to(x, d.top).to(x, d.bottom), mark.Ink, 1.5, "3,3")
		begin := x + gap
		end := begin + d.widthOf(mark.Label)
		if end > d.right { // the label stands before its line
			begin, end = 2*x-end, x
		}
		for row := range taken {
			if begin > taken[row] && begin >= d.left {
				d.words(begin, d.top+1+d.size.Font*(rise+1.25*float64(row)), "", mark.Label, mark.Ink)
				taken[row] = end + gap
				break
			}
		}
	}
}

// axes draws the X axis, and the labels of both.
func (d *drawing) axes() {
	font := d.size.Font
	d.words(0, 1+rise*font, "", d.figure.Y.Label, Words)
	for _, t := range d.yTicks {
		d.words(d.left-margin, d.atY(t.At)+middle*font, "end", t.Label, Words)
	}
	axis := new(path).to(d.left, d.bottom).to(d.right, d.bottom)
	for _, t := range d.xTicks {
		x := d.atX(t.At)
		axis.add("M%.5g,%.5gv%g", x, d.bottom, tickLength)
		d.words(x, d.bottom+tickLength+rise*font, "middle", t.Label, Words)
	}
	d.stroke(axis, Axis, 1, "")
	d.words(d.left+(d.right-d.left)/2, d.bottom+tickLength+(leading+rise)*font+labelGap, "middle", d.figure.X.Label, Words)
}

// svg returns the drawing, with a title and a description for readers who cannot see it.
func (d *drawing) svg() template.HTML {
	var all strings.Builder
	class, id := template.HTMLEscapeString(d.size.Name), template.HTMLEscapeString(d.figure.ID)
	fmt.Fprintf(&all, `<svg class="%[1]s" viewBox="0 0 %[2]g %[3]g" role="img" aria-labelledby="%[4]s-%[1]s-t %[4]s-%[1]s-d">`,
		class, d.size.Width, d.size.Height, id)
	fmt.Fprintf(&all, `<title id="%[1]s-%[2]s-t">%[3]s</title><desc id="%[1]s-%[2]s-d">%[4]s</desc>`,
		id, class, template.HTMLEscapeString(d.figure.Title), template.HTMLEscapeString(d.figure.Desc))
	all.WriteString(d.out.String())
	all.WriteString("</svg>\n")
	return template.HTML(all.String()) //nolint:gosec // every text in it was escaped here.
}
