//go:build integration

package integration

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"rabbitmq-rpc/test/internal/rig"
)

// figures holds the result of a scrape by name and labels without the queue, such as
// `x_total{b,ok}`: the value of a metric, or the count of a histogram.
type figures map[string]float64

// sum adds up the series of a metric with the given label value.
func (f figures) sum(name, label string) (total float64) {
	for series, value := range f {
		metric, labels, _ := strings.Cut(series, "{")
		if metric == name && slices.Contains(strings.Split(strings.TrimSuffix(labels, "}"), ","), label) {
			total += value
		}
	}
	return total
}

// read parses the text of a scrape.
func read(t *testing.T, text []byte) figures {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	shown := figures{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			shown[family.GetName()+labelsOf(m)] = valueOf(m)
		}
	}
	return shown
}

func labelsOf(m *dto.Metric) string {
	var list []string
	for _, name := range []string{"method", "code", "state"} {
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

func valueOf(m *dto.Metric) float64 {
	switch {
	case m.GetHistogram() != nil:
		return float64(m.GetHistogram().GetSampleCount())
	case m.GetCounter() != nil:
		return m.GetCounter().GetValue()
	default:
		return m.GetGauge().GetValue()
	}
}

// shown scrapes a collector.
func shown(t *testing.T, c prometheus.Collector) figures {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	response := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(response,
		httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
	if response.Code != http.StatusOK {
		t.Fatalf("%d %s", response.Code, response.Body)
	}
	return read(t, response.Body.Bytes())
}

// scrape requests a program's metrics.
func scrape(t *testing.T, url string) (code int, text []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(rig.Patience(t), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	text, err = io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil {
		t.Fatal(err)
	}
	return response.StatusCode, text
}
