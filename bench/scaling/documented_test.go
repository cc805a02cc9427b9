package scaling

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rabbitmq-rpc/bench/document"
	"rabbitmq-rpc/bench/model"
)

// The formula and the simulation meet the measured points as well as docs/scaling.md says, and the
// document shows their tables.
func TestDocumentedScaling(t *testing.T) {
	t.Parallel()
	docs := filepath.Join("..", "..", "docs")
	m, err := Read(filepath.Join(docs, "performance", "scaling.json"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := model.Read(filepath.Join(docs, "performance", "growth.json"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDocument(m, g.Parts)
	if err != nil {
		t.Fatal(err)
	}
	simulated, sizes, formula, memory := d.Checks()
	for name, c := range map[string]Check{"simulation": simulated, "calls in a message": sizes, "memory": memory} {
		if c.Points < 5 || c.Median > 0.3 || 2*c.Within < c.Points {
			t.Errorf("%s: want a median error of at most 30 %%, and half of the points within the tolerance: %s", name, c)
		}
	}
	if formula.Points < 5 || formula.Median > 0.4 {
		t.Errorf("formula, a lower bound: want a median error of at most 40 %%: %s", formula)
	}
	text, err := os.ReadFile(filepath.Join(docs, "scaling.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range d.Blocks() {
		if block == "" {
			t.Errorf("the block %q is empty: it was not measured", name)
		}
		if !strings.Contains(string(text), document.Block(name, block)) {
			t.Errorf("scaling.md does not show the block %q; go run -C bench ./simulate -out ../docs/scaling.md writes it", name)
		}
	}
}

func TestAppend(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "scaling.json")
	for round := range 3 {
		var m Measurement
		m.AddRun(base(true, 64), Run{Rate: float64(round + 1)})
		m.AddIdle(base(true, 0), Holdings{Connections: 4})
		if err := m.Append(file); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Read(file)
	if err != nil || len(m.Points) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	if got := m.Points[0].Medians().Rate; got != 2 {
		t.Errorf("median %v, want that of three rounds", got)
	}
	if got := m.Points[1].Holds(func(h Holdings) float64 { return h.Connections }); got != 4 || len(m.Points[1].Idle) != 3 {
		t.Errorf("%v connections in %d rounds", got, len(m.Points[1].Idle))
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Append(file); err == nil {
		t.Error("no JSON: no error")
	}
}

func TestFitNeedsItsPoints(t *testing.T) {
	t.Parallel()
	if _, err := Fit(Measurement{}, nil); err == nil {
		t.Error("no points: no error")
	}
}
