//go:build integration

package observability

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// nativeFirst separates the two parts of a query with preference for native histograms.
const nativeFirst = " or histogram_quantile("

// TestQueriesAboutARealPair: Prometheus, with the overlay's settings, evaluates every query of
// the dashboard and of the alerts for a running pair, and its counts equal the clients'
// counts.
func TestQueriesAboutARealPair(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	t.Run("every target is up", s.targetsAreUp)
	t.Run("panels", s.panels)
	t.Run("variables", s.variables)
	t.Run("quantiles of native histograms", s.nativeQuantiles)
	t.Run("every metric is on the dashboard", s.allShown)
	t.Run("alerts", s.alerts)
	t.Run("what becomes of it without servers", s.withoutServers)
}

func (s *stage) targetsAreUp(t *testing.T) {
	for _, p := range []*prometheus{s.classic, s.native} {
		p.of(t).counts("sum(up)", 6)
		if p.of(t).shows(`{queue=~".+\\.(reply|s)\\..+"}`) {
			t.Error("there are series of reply queues, or of queues for streams, without end")
		}
	}
}

// panels checks every query for a result.
func (s *stage) panels(t *testing.T) {
	p := s.classic.of(t)
	for title, queries := range readDashboard(t).panelQueries() {
		for _, q := range queries {
			expr := fill(t, q, s.queue)
			rig.Eventually(t, fmt.Sprintf("panel %q shows %s", title, expr), func() bool { return p.shows(expr) })
		}
	}
}

// variables checks the dashboard's offered queues for the test's queue.
func (s *stage) variables(t *testing.T) {
	values := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	for _, v := range readDashboard(t).Templating.List {
		if v.Type != "query" {
			continue
		}
		query := values.FindStringSubmatch(v.Definition)
		if query == nil {
			t.Fatalf("variable %s: what is %q?", v.Name, v.Definition)
		}
		var offered []string
		s.classic.of(t).ask(&offered, "label/"+query[2]+"/values", url.Values{"match[]": {query[1]}})
		if !slices.Contains(offered, s.queue) {
			t.Errorf("variable %s offers %v, without %s", v.Name, offered, s.queue)
		}
	}
}

// nativeQuantiles checks the native part of each query for a result alone, and every query for
// validity with native histograms.
func (s *stage) nativeQuantiles(t *testing.T) {
	p := s.native.of(t)
	tried := 0
	for title, queries := range readDashboard(t).queries() {
		for _, q := range queries {
			expr := fill(t, q, s.queue)
			p.query(expr)
			native, _, both := strings.Cut(expr, nativeFirst)
			if !both {
				continue
			}
			tried++
			rig.Eventually(t, fmt.Sprintf("panel %q shows %s", title, native), func() bool { return p.shows(native) })
		}
	}
	if tried < 10 {
		t.Errorf("only %d queries take native histograms", tried)
	}
}

// allShown checks the dashboard for every metric.
func (s *stage) allShown(t *testing.T) {
	text := string(read(t, folder(t), "grafana", "dashboards", "rabbitmq-rpc.json"))
	names := s.classic.of(t).names("amqpx_")
	if len(names) < 30 {
		t.Errorf("Prometheus has only %v", names)
	}
	parts := regexp.MustCompile(`_(bucket|sum|count)$`)
	for _, name := range names {
		if !strings.Contains(text, parts.ReplaceAllString(name, "")) {
			t.Errorf("%s is not on the dashboard", name)
		}
	}
}
