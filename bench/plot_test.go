package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// regexpImage matches the images in a Markdown text and captures their file names.
func regexpImage() *regexp.Regexp { return regexp.MustCompile(`!\[[^]]*\]\(([^)]+)\)`) }

func TestPlotIsSVG(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "plot.svg")
	p := plotted{title: "Speed & size", x: "callers", y: "calls per second"}
	lines := []line{
		{name: "first", bars: true, points: []point{{1, Spread{10, 9, 12}}, {1024, Spread{200_000, 150_000, 210_000}}}},
		{name: "none"},
		{name: "second", colour: 1, dash: 1, points: []point{{1, Spread{20, 20, 20}}}},
	}
	if err := writePlot(file, p, lines); err != nil {
		t.Fatal(err)
	}
	texts, paths := parseSVG(t, file)
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
		file := filepath.Join(t.TempDir(), "plot.svg")
		if err := writePlot(file, plotted{linear: linear}, []line{{name: "one", points: []point{{1, Spread{1, 1, 1}}}}}); err != nil {
			t.Fatal(err)
		}
		if texts, _ := parseSVG(t, file); !texts["one"] {
			t.Errorf("linear: %v: no legend", linear)
		}
	}
}

func TestPointsForALogarithm(t *testing.T) {
	t.Parallel()
	s := newSection(Experiment{loads: []load{{label: "none"}, {label: "a", x: 1}, {label: "b", x: 2}, {label: "c", x: 3}}}, Options2{})
	for label, rate := range map[string]float64{"none": 4, "a": 5, "b": 0} {
		s.add("x", label, Sample{Rate: rate})
	}
	want := []point{{1, Spread{5, 5, 5}}}
	if got := s.points("x", rate); !slices.Equal(got, want) {
		t.Errorf("points %v, want %v", got, want)
	}
}

func TestPlotOfNothing(t *testing.T) {
	t.Parallel()
	if err := writePlot(filepath.Join(t.TempDir(), "plot.svg"), plotted{}, []line{{name: "none"}}); !errors.Is(err, errNothing) {
		t.Errorf("error %v, want %v", err, errNothing)
	}
}

// parseSVG returns the texts of an SVG file and the styles of its paths.
func parseSVG(t *testing.T, file string) (texts map[string]bool, paths string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	texts = make(map[string]bool)
	var styles strings.Builder
	root, within := "", ""
	for d := xml.NewDecoder(f); ; {
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

func TestShort(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0.25: "0.25", 1: "1", 999: "999", 1000: "1k", 16_384: "16.38k", 2e6: "2M"} {
		if got := short(v); got != want {
			t.Errorf("short(%v) = %s, want %s", v, got, want)
		}
	}
}
