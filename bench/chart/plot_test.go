package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestPlotIsSVG(t *testing.T) {
	t.Parallel()
	p := Plot{Title: "Speed & size", X: "callers", Y: "calls per second", Series: []Series{
		{Name: "first", Bars: true, Points: []Interval{{1, 10, 9, 12}, {1024, 200_000, 150_000, 210_000}}},
		{Name: "none"},
		{Name: "second", Colour: 1, Dash: 1, Points: []Interval{{1, 20, 20, 20}}},
	}}
	texts, paths := parsePlot(t, p)
	for _, want := range []string{"Speed & size", "callers", "calls per second", "first", "second", "1.024k", "100k"} {
		if !texts[want] {
			t.Errorf("no text %q among %v", want, texts)
		}
	}
	if texts["none"] {
		t.Error("the legend names a line without points")
	}
	if !strings.Contains(paths, "stroke:#0072B2") {
		t.Errorf("no path in the first colour:\n%s", paths)
	}
}

func TestPlotOfOnePoint(t *testing.T) {
	t.Parallel()
	for _, linear := range []bool{false, true} {
		p := Plot{Linear: linear, Series: []Series{{Name: "one", Points: []Interval{{1, 1, 1, 1}}}}}
		if texts, _ := parsePlot(t, p); !texts["one"] {
			t.Errorf("linear: %v: no legend", linear)
		}
	}
}

func TestPlotOfNothing(t *testing.T) {
	t.Parallel()
	p := Plot{Series: []Series{{Name: "none"}}}
	if _, err := p.SVG(); !errors.Is(err, ErrNoPoints) {
		t.Errorf("error %v, want %v", err, ErrNoPoints)
	}
}

// parsePlot returns the texts of a plot's SVG and the styles of its paths.
func parsePlot(t *testing.T, p Plot) (texts map[string]bool, paths string) {
	t.Helper()
	svg, err := p.SVG()
	if err != nil {
		t.Fatal(err)
	}
	texts = make(map[string]bool)
	var styles strings.Builder
	root, within := "", ""
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch v := token.(type) {
		case xml.StartElement:
			within = v.Name.Local
			if root == "" {
				root = within
			}
			for _, a := range v.Attr {
				if a.Name.Local == "style" && within == "path" {
					styles.WriteString(a.Value + "\n")
				}
			}
		case xml.CharData:
			if within == "text" {
				texts[string(v)] = true
			}
		case xml.EndElement:
			within = ""
		}
	}
	if root != "svg" {
		t.Errorf("root element %q", root)
	}
	return texts, styles.String()
}

func TestThousands(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0.25: "0.25", 1: "1", 999: "999", 1000: "1k", 16_384: "16.38k", 2e6: "2M"} {
		if got := thousands(v); got != want {
			t.Errorf("thousands(%v) = %s, want %s", v, got, want)
		}
	}
}
