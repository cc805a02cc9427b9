package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func sizes() []Size {
	return []Size{
		{Name: "wide", Width: 800, Height: 260, Font: 12, Gutter: 36, XTicks: 8, YTicks: 5},
		{Name: "narrow", Width: 320, Height: 240, Font: 13, Gutter: 36, XTicks: 4, YTicks: 4},
	}
}

// parse reads an SVG as strict XML and returns its elements.
func parse(t *testing.T, svg string) []xml.StartElement {
	t.Helper()
	var all []xml.StartElement
	in := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := in.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%v in %s", err, svg)
		}
		if e, ok := token.(xml.StartElement); ok {
			all = append(all, e.Copy())
		}
	}
}

// checkSVG checks the properties of every drawing.
func checkSVG(t *testing.T, svg string) {
	t.Helper()
	for _, bad := range []string{"NaN", "Inf", "style=", "<?xml", "<!--", "xmlns", "font-family", "url(", "href"} {
		if strings.Contains(svg, bad) {
			t.Errorf("%s in %s", bad, svg)
		}
	}
	classes := []string{"wide", "narrow"}
	for i := range names() {
		classes = append(classes, "f-"+names()[i], "s-"+names()[i])
	}
	for _, e := range parse(t, svg) {
		for _, a := range e.Attr {
			switch a.Name.Local {
			case "width", "height":
				t.Errorf("<%s> has a %s of its own", e.Name.Local, a.Name.Local)
			case "fill", "stroke":
				if a.Value != "none" {
					t.Errorf("<%s> has the colour %q", e.Name.Local, a.Value)
				}
			case "class":
				for class := range strings.FieldsSeq(a.Value) {
					if !slices.Contains(classes, class) {
						t.Errorf("<%s> has the class %q", e.Name.Local, class)
					}
				}
			}
		}
	}
}

func drawn(t *testing.T, f *Figure) []string {
	t.Helper()
	var all []string
	for _, s := range sizes() {
		svg := string(f.SVG(s))
		checkSVG(t, svg)
		all = append(all, svg)
	}
	return all
}

func example() *Figure {
	return &Figure{
		ID: "x", Title: "a title", Desc: "what is in it",
		X: Scale{Label: "seconds", Max: 10}, Y: Scale{Label: "calls", Max: 100},
		Bands: []Band{{2, 3, Shadow}},
		Marks: []Mark{{2, "lost", Bad}, {2.1, "blocked", Bad}, {9.99, "reconnect", Bad}},
		Bars:  []Bar{{0, 1, 20}, {1, 2, 40}},
		Lines: []Line{
			{Ink: First, Fill: true, Steps: true, Points: []Point{{0, 10}, {5, 90}, {10, 50}}},
			{Ink: Second, Dashed: true, Points: []Point{{0, 1}, {5, 2}}},
		},
	}
}

func TestFigure(t *testing.T) {
	t.Parallel()
	for _, svg := range drawn(t, example()) {
		root := parse(t, svg)[0]
		attributes := make(map[string]string)
		for _, a := range root.Attr {
			attributes[a.Name.Local] = a.Value
		}
		if root.Name.Local != "svg" || attributes["role"] != "img" || attributes["viewBox"] == "" {
			t.Errorf("the root is %+v", root)
		}
		for id := range strings.FieldsSeq(attributes["aria-labelledby"]) {
			if !strings.Contains(svg, `id="`+id+`"`) {
				t.Errorf("the label %q is missing", id)
			}
		}
		for _, want := range []string{
			">a title</title>", ">what is in it</desc>", ">seconds<", ">calls<", ">lost<", ">blocked<", ">reconnect<",
			`class="f-wash"`, `class="s-first"`, `class="s-second"`, `class="f-shadow"`, `stroke-dasharray`, `text-anchor="middle"`,
			`text-anchor="end"`,
		} {
			if !strings.Contains(svg, want) {
				t.Errorf("no %s in %s", want, svg)
			}
		}
	}
}

// One page holds all sizes of a figure, so the ids must differ.
func TestIDsAreUnique(t *testing.T) {
	t.Parallel()
	all := strings.Join(drawn(t, example()), "")
	seen := make(map[string]bool)
	for _, id := range regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(all, -1) {
		if seen[id[1]] {
			t.Errorf("%q is there twice", id[1])
		}
		seen[id[1]] = true
	}
	if len(seen) != 4 {
		t.Errorf("ids %v", seen)
	}
}

func TestFigureEscapes(t *testing.T) {
	t.Parallel()
	f := example()
	const evil = `"><script>alert(1)</script>&`
	f.ID, f.Title, f.Desc, f.X.Label, f.Y.Label, f.Marks[0].Label = evil, evil, evil, evil, evil, evil
	for _, svg := range drawn(t, f) {
		if strings.Contains(svg, "<script") {
			t.Error(svg)
		}
		for _, e := range parse(t, svg) {
			if !slices.Contains([]string{"svg", "title", "desc", "g", "path", "text"}, e.Name.Local) {
				t.Errorf("there is a <%s>", e.Name.Local)
			}
		}
	}
}

// Every combination of values gives a valid drawing.
func TestFigureOfAnything(t *testing.T) {
	t.Parallel()
	values := []float64{0, 1, -1, 1e-9, 1e12, math.NaN(), math.Inf(1), math.Inf(-1)}
	for _, low := range values {
		for _, high := range values {
			for _, log := range []bool{false, true} {
				s := Scale{Label: "x", Min: low, Max: high, Log: log}
				f := &Figure{
					ID: "x", X: s, Y: s, Bands: []Band{{low, high, Shadow}}, Marks: []Mark{{low, "m", Bad}}, Bars: []Bar{{low, high, low}, {high, low, high}},
					Lines: []Line{{Points: []Point{{low, high}, {high, low}, {low, low}}}, {Fill: true}, {Steps: true, Points: []Point{{1, 1}}}},
				}
				if svg := drawn(t, f)[0]; len(svg) > 100_000 {
					t.Errorf("%v to %v: %d bytes", low, high, len(svg))
				}
			}
		}
	}
}

func TestLineHasGaps(t *testing.T) {
	t.Parallel()
	f := &Figure{
		ID: "x", X: Scale{Max: 10}, Y: Scale{Max: 10},
		Lines: []Line{{Ink: First, Points: []Point{{1, 1}, {2, 2}, {3, math.NaN()}, {4, 4}, {5, 5}, {6, math.NaN()}, {7, 7}}}},
	}
	svg := drawn(t, f)[0]
	if parts := strings.Count(svg, `class="s-first"`); parts != 2 {
		t.Errorf("%d parts, want 2: %s", parts, svg)
	}
	if dots := strings.Count(svg, `class="f-first"`); dots != 1 {
		t.Errorf("%d dots for lone points, want 1", dots)
	}
}

func TestTicks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		log       bool
		low, high float64
		want      string
	}{
		{false, 0, 10, "0 2 4 6 8 10"}, // two fewer than requested would be 0 5 10
		{false, 0, 1000, "0 200 400 600 800 1000"},
		{false, 0, 0.004, "0 0.001 0.002 0.003 0.004"},
		{false, 0, 123456, "0 50k 100k"},
		{true, 0, 1, "1 2 5 10"},
		{true, 0.08, 0.25, "1.4 1.6"},
		{true, -1, 3, "0.1 1 10 100 1000"},
		{true, -3, 7, "0.001 0.1 10 1000 100k 10M"},
	} {
		ticks := linearTicks(c.low, c.high, 5)
		if c.log {
			ticks = logTicks(c.low, c.high, 5)
		}
		var labels []string
		for _, tick := range ticks {
			labels = append(labels, tick.Label)
		}
		if got := strings.Join(labels, " "); got != c.want {
			t.Errorf("%v to %v: %s, want %s", c.low, c.high, got, c.want)
		}
	}
}

// A tick beyond the bound by a rounding error is moved onto the bound.
func TestTickAtTheBound(t *testing.T) {
	t.Parallel()
	s := Scale{Ticks: []Tick{{At: 4 + 1e-12}, {At: -1e-12}, {At: 3}}}
	got := s.ticks(0, 4, 5)
	if got[0].At != 4 || got[1].At != 0 || got[2].At != 3 {
		t.Errorf("got %+v", got)
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{
		0: "0", 0.001: "0.001", 0.0123456: "0.0123", 0.5: "0.5", 1: "1", 1.2345: "1.23", 12.345: "12.3", 999.6: "1000",
		1234.5: "1235", 9999: "9999", 10000: "10k", 123456: "123k", 1e6: "1M", 2.5e6: "2.5M", 1e9: "1G", -5: "-5",
		math.Inf(1): "0",
	} {
		if got := Short(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
	if got := Short(math.NaN()); got != "0" {
		t.Errorf("not a number is %q", got)
	}
}

// A label of digits at the end of the axis stays within the figure in DejaVu Sans, whose digits are
// wider than those of other common fonts.
func TestLastLabelIsWithinTheFigure(t *testing.T) {
	t.Parallel()
	const label, digit = "1000", 0.636 // of the font's size
	for _, size := range sizes() {
		f := &Figure{X: Scale{Min: 0, Max: 1000, Ticks: []Tick{{At: 1000, Label: label}}}, Y: Scale{Min: 0, Max: 1}}
		d := newDrawing(f, size)
		if end := d.atX(1000) + digit*size.Font*float64(len(label))/2; end > size.Width {
			t.Errorf("%s: the label ends at %.1f of %v", size.Name, end, size.Width)
		}
	}
}
