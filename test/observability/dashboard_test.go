//go:build integration

package observability

import (
	"regexp"
	"strings"
	"testing"
)

// dashboard is the checked part of Grafana's JSON.
type dashboard struct {
	UID        string
	Panels     []panel
	Templating struct {
		List []struct {
			Name, Type, Definition string
			Datasource             source
		}
	}
	Annotations struct {
		List []struct {
			Name, Expr string
			Datasource source
		}
	}
}

// panelQueries returns the queries of each panel by title.
func (d dashboard) panelQueries() map[string][]string {
	all := map[string][]string{}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			all[p.Title] = append(all[p.Title], q.Expr)
		}
	}
	return all
}

// queries returns the queries of panels and of annotations. An annotation's query may have no
// result.
func (d dashboard) queries() map[string][]string {
	all := d.panelQueries()
	for _, a := range d.Annotations.List {
		if a.Expr != "" {
			all[a.Name] = append(all[a.Name], a.Expr)
		}
	}
	return all
}

type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Datasource               source
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Targets                  []target
}

type target struct {
	RefID, Expr string
	Datasource  source
}

type source struct{ Type, UID string }

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	readJSON(t, &d, folder(t), "grafana", "dashboards", "rabbitmq-rpc.json")
	if len(d.Panels) == 0 {
		t.Fatal("the dashboard is empty")
	}
	return d
}

// rateInterval is the value of $__rate_interval: four times the scrape interval set by
// adapted, plus one interval.
const rateInterval = "5s"

// fill replaces the variables of a query by values.
func fill(t *testing.T, expr, queue string) string {
	t.Helper()
	literal := strings.ReplaceAll(regexp.QuoteMeta(queue), `\`, `\\`)
	filled := strings.NewReplacer("$__rate_interval", rateInterval, "$queue", literal).Replace(expr)
	if strings.Contains(filled, "$") {
		t.Errorf("%s: has a variable that nobody fills", expr)
	}
	return filled
}

func TestDashboardIsSound(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	ids := map[int]string{}
	grid := map[[2]int]string{}
	for _, p := range d.Panels {
		if other, twice := ids[p.ID]; twice || p.ID == 0 {
			t.Errorf("%q has the id %d of %q", p.Title, p.ID, other)
		}
		ids[p.ID] = p.Title
		if pos := p.GridPos; pos.X < 0 || pos.W <= 0 || pos.H <= 0 || pos.X+pos.W > 24 {
			t.Errorf("%q is outside of the grid: %+v", p.Title, pos)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, taken := grid[[2]int{x, y}]; taken {
					t.Fatalf("%q lies on %q", p.Title, other)
				}
				grid[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" {
			p.check(t)
		}
	}
	variables := map[string]string{}
	for _, v := range d.Templating.List {
		variables[v.Name] = v.Type
		if v.Type == "query" {
			chosen(t, v.Datasource, v.Name)
		}
	}
	for _, a := range d.Annotations.List {
		if a.Datasource.Type != "grafana" {
			chosen(t, a.Datasource, a.Name)
		}
	}
	if variables["datasource"] != "datasource" || variables["queue"] != "query" {
		t.Errorf("variables %v, want a datasource and a queue", variables)
	}
}

// chosen checks that a query uses the data source chosen by the viewer.
func chosen(t *testing.T, s source, what string) {
	t.Helper()
	if s != (source{"prometheus", "${datasource}"}) {
		t.Errorf("%q asks %+v, and not the variable datasource", what, s)
	}
}

func (p panel) check(t *testing.T) {
	t.Helper()
	if p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
		t.Errorf("panel %d lacks a title, a description, a unit or queries: %+v", p.ID, p)
	}
	chosen(t, p.Datasource, p.Title)
	refs := map[string]bool{}
	for _, q := range p.Targets {
		chosen(t, q.Datasource, p.Title)
		if refs[q.RefID] {
			t.Errorf("%q has two queries %s", p.Title, q.RefID)
		}
		refs[q.RefID] = true
		for _, m := range regexp.MustCompile(`\bamqpx_\w+(\{[^}]*\})?`).FindAllStringSubmatch(q.Expr, -1) {
			if !strings.Contains(m[1], `queue=~"$queue"`) {
				t.Errorf("%q: %s is not of the chosen queue", p.Title, m[0])
			}
		}
	}
}
