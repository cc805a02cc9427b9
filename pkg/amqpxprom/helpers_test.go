package amqpxprom

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type clientSource struct {
	stats amqpx.ClientStats
	state amqpx.State
}

func (s clientSource) Stats() amqpx.ClientStats { return s.stats }
func (s clientSource) Status() amqpx.Status     { return amqpx.Status{State: s.state} }

type serverSource struct {
	stats amqpx.ServerStats
	state amqpx.State
}

func (s serverSource) Stats() amqpx.ServerStats { return s.stats }
func (s serverSource) Status() amqpx.Status     { return amqpx.Status{State: s.state} }

// gather scrapes c with a registry that checks every metric against its description.
func gather(t testing.TB, c ...prometheus.Collector) []*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	for _, one := range c {
		if err := registry.Register(one); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// scraped maps each metric's name and labels without the queue, such as `x_total{b,ok}`, to
// its value, or for a histogram to the number of observations.
func scraped(t testing.TB, c prometheus.Collector) map[string]float64 {
	t.Helper()
	values := make(map[string]float64)
	for _, family := range gather(t, c) {
		for _, m := range family.GetMetric() {
			values[family.GetName()+labels(m)] = value(m)
		}
	}
	return values
}

func labels(m *dto.Metric) string {
	var list []string
	for _, name := range []string{"method", "code", "state", "side"} {
		for _, l := range m.GetLabel() {
			if l.GetName() == name {
				list = append(list, l.GetValue())
			}
		}
	}
	if list == nil {
		return ""
	}
	return "{" + strings.Join(list, ",") + "}"
}

func value(m *dto.Metric) float64 {
	switch {
	case m.GetHistogram() != nil:
		return float64(m.GetHistogram().GetSampleCount())
	case m.GetCounter() != nil:
		return m.GetCounter().GetValue()
	default:
		return m.GetGauge().GetValue()
	}
}

// want compares values with a scrape, of which only the names that begin with prefix count.
func want(t *testing.T, c prometheus.Collector, prefix string, values map[string]float64) {
	t.Helper()
	got := scraped(t, c)
	for name, v := range values {
		if shown, ok := got[name]; !ok || shown != v {
			t.Errorf("%s is %v (shown: %v), want %v", name, shown, ok, v)
		}
	}
	for name, v := range got {
		if _, ok := values[name]; !ok && strings.HasPrefix(name, prefix) {
			t.Errorf("%s is shown as %v", name, v)
		}
	}
}
