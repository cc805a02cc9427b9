package amqpxprom

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestClientShowsEveryFigure(t *testing.T) {
	t.Parallel()
	m := NewClientMetrics("q")
	m.Watch(clientSource{state: amqpx.StateBlocked, stats: amqpx.ClientStats{
		OK: 1, Failed: 2, InFlight: 3, Resent: 4, Retried: 5, Rejected: 6, Late: 7, Duplicates: 8, Unknown: 9,
		Batched: 10, Reconnects: 11, Blocked: 12500 * time.Millisecond, Streams: streamStats(), Hedged: 14,
	}})
	m.CallSettled("b", "", time.Millisecond)
	m.CallSettled("b", "", time.Second)
	m.CallSettled("b", amqpx.CodeUnavailable, time.Minute)
	m.BatchSent(512)
	m.StreamEnded("s", "", time.Hour, amqpx.Progress{})
	m.StreamEnded("s", amqpx.CodeCanceled, time.Second, amqpx.Progress{})
	want(t, m, "", withStreams("amqpx_client_", map[string]float64{
		"amqpx_client_call_duration_seconds{b,ok}":          2,
		"amqpx_client_call_duration_seconds{b,unavailable}": 1,
		"amqpx_client_batch_size":                           1,
		"amqpx_client_calls_in_flight":                      3,
		"amqpx_client_resends_total":                        4,
		"amqpx_client_retries_total":                        5,
		"amqpx_client_hedges_total":                         14,
		"amqpx_client_rejected_calls_total":                 6,
		"amqpx_client_late_responses_total":                 7,
		"amqpx_client_duplicate_responses_total":            8,
		"amqpx_client_unknown_responses_total":              9,
		"amqpx_client_batched_calls_total":                  10,
		"amqpx_client_reconnects_total":                     11,
		"amqpx_client_blocked_seconds_total":                12.5,
		"amqpx_client_connection_state{connecting}":         0,
		"amqpx_client_connection_state{ready}":              0,
		"amqpx_client_connection_state{blocked}":            1,
		"amqpx_client_connection_state{reconnecting}":       0,
		"amqpx_client_connection_state{draining}":           0,
		"amqpx_client_connection_state{closed}":             0,
	}))
}

func TestClientShowsWhatItWasToldBeforeItWatches(t *testing.T) {
	t.Parallel()
	m := NewClientMetrics("q")
	m.CallSettled("b", "", time.Millisecond)
	want(t, m, "", map[string]float64{
		"amqpx_client_call_duration_seconds{b,ok}": 1,
		"amqpx_client_batch_size":                  0,
	})
	m.Watch(clientSource{stats: amqpx.ClientStats{Resent: 1}})
	m.Watch(clientSource{stats: amqpx.ClientStats{Resent: 2}})
	want(t, m, "amqpx_client_resends", map[string]float64{"amqpx_client_resends_total": 2})
}

func TestDurationsAreClassicAndNative(t *testing.T) {
	t.Parallel()
	m := NewClientMetrics("q", WithNativeHistograms(true))
	for _, took := range []time.Duration{0, 300 * time.Microsecond, 2 * time.Millisecond, time.Minute} {
		m.CallSettled("b", "", took)
	}
	families := gather(t, m)
	h := families[1].GetMetric()[0].GetHistogram()
	if got := families[1].GetName(); got != "amqpx_client_call_duration_seconds" {
		t.Fatalf("the second family is %s", got)
	}
	if h.GetSampleCount() != 4 || h.GetSampleSum() != 60.0023 {
		t.Errorf("%d calls took %v s, want 4 and 60.0023", h.GetSampleCount(), h.GetSampleSum())
	}
	buckets := map[float64]uint64{}
	for _, b := range h.GetBucket() {
		buckets[b.GetUpperBound()] = b.GetCumulativeCount()
	}
	for bound, calls := range map[float64]uint64{0.0005: 2, 0.001: 2, 0.0025: 3, 1: 3, 30: 3} {
		if buckets[bound] != calls {
			t.Errorf("%d calls took at most %v s, want %d", buckets[bound], bound, calls)
		}
	}
	const tenPercent = 3 // 2^(1/2^3) is 1.09
	if h.GetSchema() != tenPercent || h.GetZeroCount() != 1 || len(h.GetPositiveDelta()) < 3 {
		t.Errorf("schema %d, %d zeros, %d native buckets", h.GetSchema(), h.GetZeroCount(), len(h.GetPositiveDelta()))
	}
}

// TestHistogramsAreClassicByDefault: native buckets cost time, which only some scrapers make use of.
func TestHistogramsAreClassicByDefault(t *testing.T) {
	t.Parallel()
	observe := func(client *ClientMetrics, server *ServerMetrics) (histograms, native int) {
		client.CallSettled("b", "", time.Millisecond)
		client.BatchSent(2)
		client.StreamEnded("b", "", time.Millisecond, amqpx.Progress{})
		server.HandlerEnded("b", "", time.Millisecond, time.Millisecond)
		server.BatchReceived(2)
		server.StreamEnded("b", "", time.Millisecond, amqpx.Progress{})
		for _, f := range append(gather(t, client), gather(t, server)...) {
			for _, m := range f.GetMetric() {
				h := m.GetHistogram()
				if len(h.GetBucket()) > 0 {
					histograms++
				}
				if len(h.GetPositiveSpan()) > 0 {
					native++
				}
			}
		}
		return histograms, native
	}
	if all, native := observe(NewClientMetrics("q"), NewServerMetrics("q")); all != 7 || native != 0 {
		t.Errorf("%d histograms, %d of them native, want 7 and none", all, native)
	}
	if all, native := observe(NewClientMetrics("q", WithNativeHistograms(true)), NewServerMetrics("q", WithNativeHistograms(true))); all != 7 || native != 7 {
		t.Errorf("with the option: %d histograms, %d of them native, want all 7", all, native)
	}
}

func TestBatchSizesReachAFullBatch(t *testing.T) {
	t.Parallel()
	m := NewClientMetrics("q")
	for _, calls := range []int{2, 3, 512} {
		m.BatchSent(calls)
	}
	h := gather(t, m)[0].GetMetric()[0].GetHistogram()
	last := h.GetBucket()[len(h.GetBucket())-1]
	if h.GetSampleSum() != 517 || last.GetUpperBound() != 512 || last.GetCumulativeCount() != 3 {
		t.Errorf("%v calls, of %d batches %d of at most %v", h.GetSampleSum(), h.GetSampleCount(), last.GetCumulativeCount(), last.GetUpperBound())
	}
}

func TestOneRegistryTakesSeveralQueues(t *testing.T) {
	t.Parallel()
	first, second, server := NewClientMetrics("one"), NewClientMetrics("two"), NewServerMetrics("one")
	first.Watch(clientSource{})
	second.Watch(clientSource{})
	for _, family := range gather(t, first, second, server) {
		if family.GetName() == "amqpx_client_resends_total" && len(family.GetMetric()) != 2 {
			t.Errorf("got %v, want a series for each queue", family)
		}
	}
}

func TestMetricsFollowTheConventions(t *testing.T) {
	t.Parallel()
	client, server := NewClientMetrics("q"), NewServerMetrics("q")
	client.Watch(clientSource{})
	server.Watch(serverSource{})
	client.CallSettled("b", "", 1)
	client.StreamEnded("b", "", 1, amqpx.Progress{})
	server.StreamEnded("b", "", 1, amqpx.Progress{})
	server.HandlerEnded("b", "", 1, 1)
	server.RequestRefused("", amqpx.CodeUnimplemented)
	problems, err := promlint.NewWithMetricFamilies(gather(t, client, server)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
