package health

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
)

// get requests path from a server and returns the response.
func get(t *testing.T, s *Server, path, accept string) (code int, body string, header http.Header) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr().String()+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content), response.Header
}

func withMetrics(t *testing.T, more ...prometheus.Collector) *Server {
	t.Helper()
	registry, err := NewRegistry(more...)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, "127.0.0.1:0", status{State: amqpx.StateReady}, WithMetrics(registry))
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	own := prometheus.NewGauge(prometheus.GaugeOpts{Name: "own_gauge", Help: "A service's own."})
	own.Set(7)
	s := withMetrics(t, own)
	code, body, header := get(t, s, "/metrics", "")
	if code != 200 || !strings.HasPrefix(header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("%d, %v", code, header)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%v in\n%s", err, body)
	}
	for _, name := range []string{"go_goroutines", "go_gc_duration_seconds", "process_open_fds", "process_resident_memory_bytes", "own_gauge"} {
		if families[name] == nil {
			t.Errorf("no %s in\n%s", name, body)
		}
	}
	labels := map[string]string{}
	built := families["rabbitmq_rpc_build_info"].GetMetric()[0]
	for _, l := range built.GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	if labels["version"] == "" || labels["revision"] == "" || labels["go_version"] != runtime.Version() || built.GetGauge().GetValue() != 1 {
		t.Errorf("the build is %v", built)
	}
}

// The formats that a scraper requests: with exemplars, and with native histograms.
func TestMetricsInOtherFormats(t *testing.T) {
	t.Parallel()
	s := withMetrics(t)
	for accept, want := range map[string]string{
		"application/openmetrics-text;version=1.0.0":                                                 "application/openmetrics-text; version=1.0.0",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited": "application/vnd.google.protobuf",
	} {
		code, body, header := get(t, s, "/metrics", accept)
		if kind := header.Get("Content-Type"); code != 200 || !strings.HasPrefix(kind, want) {
			t.Errorf("%s: %d, %s", accept, code, kind)
		}
		if strings.HasPrefix(want, "application/openmetrics") && !strings.HasSuffix(body, "# EOF\n") {
			t.Errorf("%s ends in %q", accept, body[max(0, len(body)-20):])
		}
	}
}

func TestMetricsAreCompressed(t *testing.T) {
	t.Parallel()
	s := withMetrics(t)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr().String()+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept-Encoding", "gzip")
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	unzipped, err := gzip.NewReader(response.Body)
	if err != nil || response.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("%v, %v", response.Header, err)
	}
	if body, err := io.ReadAll(unzipped); err != nil || !strings.Contains(string(body), "go_goroutines") {
		t.Errorf("%v, %s", err, body)
	}
}

func TestRegistryNamesWhatIsThereTwice(t *testing.T) {
	t.Parallel()
	own := prometheus.NewGauge(prometheus.GaugeOpts{Name: "own_gauge"})
	if _, err := NewRegistry(own, own); err == nil || !strings.HasPrefix(err.Error(), "metrics: duplicate metrics collector") {
		t.Errorf("got %v", err)
	}
}

// broken is a metric that cannot be collected.
type broken struct{ prometheus.Gauge }

func (b broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(b.Desc(), errors.New("no figure"))
}

func TestMetricsThatCannotBeShown(t *testing.T) {
	t.Parallel()
	registry, err := NewRegistry(broken{prometheus.NewGauge(prometheus.GaugeOpts{Name: "own_gauge"})})
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.WarnLevel)
	s, err := Start(t.Context(), listening(t, "127.0.0.1:0"), status{}, zap.New(core), WithMetrics(registry))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop(t.Context())
	code, body, _ := get(t, s, "/metrics", "")
	failed := logs.FilterMessage("metrics could not be shown").All()
	if code != 500 || !strings.Contains(body, "no figure") || len(failed) != 1 {
		t.Errorf("%d %s, logged %v", code, body, logs.All())
	}
}

func TestScrapesAtOnce(t *testing.T) {
	t.Parallel()
	s := withMetrics(t)
	var all sync.WaitGroup
	for range mostScrapes {
		all.Go(func() {
			if code, body, _ := get(t, s, "/metrics", ""); code != 200 {
				t.Errorf("%d %s", code, body)
			}
		})
	}
	all.Wait()
}
