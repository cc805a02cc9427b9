package amqpxprom

import (
	"strings"
	"testing"
	"time"

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

// streamStats are counts of streams, each with a value of its own.
func streamStats() amqpx.StreamStats {
	return amqpx.StreamStats{
		Open: 51, Opened: 52, Failed: 53, Refused: 54, ItemsSent: 55, ItemsReceived: 56, BytesSent: 57, BytesReceived: 58,
		MessagesSent: 59, Late: 60, SendWait: 61500 * time.Millisecond,
	}
}

// withStreams adds to values what streamStats, and a stream for each of two codes, show.
func withStreams(prefix string, values map[string]float64) map[string]float64 {
	for name, v := range map[string]float64{
		"stream_duration_seconds{s,ok}":       1,
		"stream_duration_seconds{s,canceled}": 1,
		"streams_open":                        51,
		"streams_opened_total":                52,
		"stream_items_sent_total":             55,
		"stream_items_received_total":         56,
		"stream_sent_bytes_total":             57,
		"stream_received_bytes_total":         58,
		"stream_messages_sent_total":          59,
		"stream_late_frames_total":            60,
		"stream_send_wait_seconds_total":      61.5,
	} {
		values[prefix+name] = v
	}
	return values
}

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
