package model

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// truth is a model to make points with.
func truth() *Model {
	return &Model{
		client: cost{4, 25, 120}, server: cost{3, 22, 130}, broker: cost{1, 70, 210},
		exponent: 0.7, alone: 0.5, busy: 0.9, latency: 450, procs: 2,
		parts: []Part{
			{Batch: true, Side: Client, Name: "reader", OnPath: true, Micros: 1},
			{Batch: true, Side: Broker, Name: "queue", Micros: 0.2},
			{Side: Client, Name: "reader", Micros: 8},
			{Side: Broker, Name: "queue", Micros: 10},
		},
	}
}

// load returns a point as the model predicts it, on two processors.
func load(m *Model, label string, batch bool, callers, queues, clients, procs int, size float64) Point {
	p := Point{Label: label, Batch: batch, Callers: callers, Queues: queues, Clients: clients, Procs: procs, Processors: 2, Size: size}
	c := m.Costs(p)
	p.Client, p.Server, p.Broker = c.Client, c.Server, c.Broker
	p.Rate = m.Rate(p)
	return p
}

func points(m *Model) []Point {
	return []Point{
		load(m, "single 1", false, 1, 1, 1, 2, 1),
		load(m, "single 16", false, 16, 1, 1, 2, 1),
		load(m, "single 1024", false, 1024, 1, 1, 2, 1),
		load(m, "single 1, one processor", false, 1, 1, 1, 1, 1),
		load(m, "batch 64", true, 64, 1, 1, 2, 25),
		load(m, "batch 1024", true, 1024, 1, 1, 2, 200),
		load(m, "20 clients", true, 1024, 1, 20, 2, 12),
		load(m, "30 clients", true, 1024, 1, 30, 2, 8),
		load(m, "4 queues", true, 1024, 4, 4, 2, 80),
		load(m, "batch 1024, one processor", true, 1024, 1, 1, 1, 300),
	}
}

// The fit finds the model that made the points, and predicts those that it did not see.
func TestFit(t *testing.T) {
	t.Parallel()
	all := points(truth())
	m, err := Fit(all, truth().parts)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if off := m.Error(p); math.Abs(off) > 0.02 {
			t.Errorf("%s: %.0f calls/s, want %.0f", p.Label, m.Rate(p), p.Rate)
		}
	}
	if s := m.Check(all); s.Points != 4 || s.Within != 4 {
		t.Errorf("%+v, want 4 points to check, all within", s)
	}
}

func TestFitNeedsItsPoints(t *testing.T) {
	t.Parallel()
	all := points(truth())
	for i := range 6 {
		if _, err := Fit(append(all[:i:i], all[i+1:]...), nil); err == nil {
			t.Errorf("without %s: no error", all[i].Label)
		}
	}
	if _, err := Fit(nil, nil); err == nil {
		t.Error("without points: no error")
	}
	for name, spoil := range map[string]func([]Point){
		"no call":              func(p []Point) { p[0].Rate = 0 },
		"no broker":            func(p []Point) { p[2].Broker = 0 },
		"no time of a machine": func(p []Point) { p[2].Processors = 0 },
		"no batch":             func(p []Point) { p[5].Size = 1 },
	} {
		all := points(truth())
		spoil(all)
		if _, err := Fit(all, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Each resource is the limit where it is the scarcest.
func TestBounds(t *testing.T) {
	t.Parallel()
	m := truth()
	single := Point{Callers: 1024, Queues: 1, Clients: 1, Size: 1}
	batch := Point{Batch: true, Callers: 1024, Queues: 1, Clients: 1, Size: 200}
	few := single
	few.Callers = 1
	many := batch
	many.Callers = 100_000
	narrow := batch.On(32)
	narrow.Procs = 1
	for _, tt := range []struct {
		name  string
		point Point
		want  string
	}{
		{"one call at a time", few.On(32), BoundCallers},
		{"two processors", single.On(2), BoundProcessors},
		{"one queue", single.On(32), "queue"},
		{"the client's goroutine", many.On(32), "reader"},
		{"one processor for the client", narrow, BoundClient},
	} {
		bounds := m.Bounds(tt.point)
		if bounds[0].Name != tt.want {
			t.Errorf("%s: %+v is the limit, want %s", tt.name, bounds[0], tt.want)
		}
		for i := 1; i < len(bounds); i++ {
			if bounds[i].Rate < bounds[i-1].Rate {
				t.Errorf("%s: bounds not in order: %+v", tt.name, bounds)
			}
		}
	}
}

// A load of clients with few callers each is shown, and does not count.
func TestCovers(t *testing.T) {
	t.Parallel()
	all := points(truth())
	few := load(truth(), "200 clients", true, 1024, 1, 200, 2, 1.2)
	few.Rate /= 10
	m, err := Fit(append(all, few), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Check(append(all, few)); s.Points != 4 || s.WorstLabel == few.Label {
		t.Errorf("%+v, want 4 points", s)
	}
	if _, rows := m.pointRows([]Point{few}); !strings.Contains(rows[0][7], "not covered") {
		t.Errorf("row %v", rows[0])
	}
	if one := load(truth(), "few callers", false, 4, 1, 1, 2, 1); !one.Covers() {
		t.Error("one client with few callers is not covered")
	}
}

// With what Needed says, the processors are the limit.
func TestNeeded(t *testing.T) {
	t.Parallel()
	m := truth()
	p := Point{Callers: 1024, Queues: 1, Clients: 1, Size: 1}.On(32)
	needed := m.Needed(p)
	if needed[Client] < 2 || needed[Broker] < 2 || needed[Server] != 1 {
		t.Fatalf("%v, want several clients and queues", needed)
	}
	p.Clients, p.Queues, p.Callers = needed[Client], needed[Broker], p.Callers*needed[Client]
	if got := m.Bounds(p)[0]; got.Name != BoundProcessors {
		t.Errorf("with %v the limit is %+v", needed, got)
	}
	if got := m.Needed(p.On(2)); got[Client] != p.Clients {
		t.Errorf("on two processors %v, want as many as there are", got)
	}
}

// The model meets the loads that the documents show, and the documents show the model's tables.
func TestDocumentedModel(t *testing.T) {
	t.Parallel()
	docs := filepath.Join("..", "..", "docs")
	g, err := Read(filepath.Join(docs, "performance", "growth.json"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := Fit(g.Points, g.Parts)
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Check(g.Points); s.Points < 15 || s.Median > 0.15 || 4*s.Within < 3*s.Points {
		t.Errorf("want a median error of at most 15 %%, and three of four points within 25 %%: %s", s)
	}
	all, summary, err := g.Markdown()
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{filepath.Join("performance", "growth.md"): all, "performance.md": summary} {
		text, err := os.ReadFile(filepath.Join(docs, file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), want) {
			t.Errorf("%s does not show the tables of the model; go run -C bench . -model ../docs/performance/growth.json -out ../docs/performance writes them", file)
		}
	}
}

func TestReadFaults(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "growth.json")
	if _, err := Read(file); err == nil {
		t.Error("no file: no error")
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file); err == nil {
		t.Error("no JSON: no error")
	}
	if _, _, err := (Growth{}).Markdown(); err == nil {
		t.Error("no points: no error")
	}
}

func TestRounded(t *testing.T) {
	t.Parallel()
	for x, want := range map[float64]string{17_912: "18,000", 1_234_567: "1,200,000", 87: "87", 0: "–", math.Inf(1): "–"} {
		if got := rounded(x); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
}
