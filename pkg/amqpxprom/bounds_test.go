package amqpxprom

import (
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestClientRemembersSoManyMethods(t *testing.T) {
	t.Parallel()
	for n, limit := range map[int]int{3: 3, 0: DefaultMaxMethods, -1: DefaultMaxMethods} {
		m := NewClientMetrics("q", WithMaxMethods(n))
		for range 2 {
			for i := range 10_000 {
				m.CallSettled("method "+strconv.Itoa(i), "", 1)
			}
		}
		values := map[string]float64{"amqpx_client_call_duration_seconds{other,ok}": float64(2 * (10_000 - limit))}
		for i := range limit {
			values["amqpx_client_call_duration_seconds{method "+strconv.Itoa(i)+",ok}"] = 2
		}
		want(t, m, "amqpx_client_call_duration_seconds", values)
	}
}

func TestMethodsComeUpAtOnce(t *testing.T) {
	t.Parallel()
	const callers, calls, limit = 8, 1000, 20
	m := NewClientMetrics("q", WithMaxMethods(limit))
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for i := range calls {
				m.CallSettled(strconv.Itoa(i%(2*limit)), []amqpx.Code{"", amqpx.CodeAborted, amqpx.CodeInternal}[i%3], 1)
				m.BatchSent(i)
			}
		})
	}
	all.Go(func() { gather(t, m) })
	all.Wait()
	total, names := 0.0, map[string]bool{}
	for name, count := range scraped(t, m) {
		if labels, ok := strings.CutPrefix(name, "amqpx_client_call_duration_seconds{"); ok {
			method, _, _ := strings.Cut(labels, ",")
			total += count
			names[method] = true
		}
	}
	if total != callers*calls || len(names) != limit+1 || !names["other"] {
		t.Errorf("%v calls by %d names, want %d by %d", total, len(names), callers*calls, limit+1)
	}
}

func TestCodesAreAClosedSet(t *testing.T) {
	t.Parallel()
	m := NewClientMetrics("q")
	for i := range 1000 {
		m.CallSettled("b", amqpx.Code("made up "+strconv.Itoa(i)), 1)
	}
	m.CallSettled("b", amqpx.CodeUnknown, 1)
	want(t, m, "amqpx_client_call_duration_seconds", map[string]float64{"amqpx_client_call_duration_seconds{b,unknown}": 1001})
	if kept := len(*m.methods.of("b").series.Load()); kept != 1 {
		t.Errorf("%d codes are remembered, want 1", kept)
	}
}

// Invalid UTF-8 in one label would fail the whole scrape.
func TestNamesThatAreNoText(t *testing.T) {
	t.Parallel()
	client, server := NewClientMetrics("q\xff"), NewServerMetrics("\xc3")
	client.Watch(clientSource{})
	server.Watch(serverSource{})
	for _, name := range []string{"\xff", "\xfe", "b\x00", "ü", ""} {
		client.CallSettled(name, amqpx.Code("\xff"), 1)
		server.HandlerEnded(name, amqpx.Code("\xff"), 1, 1)
		server.RequestRefused(name, amqpx.Code("\xff"))
	}
	for _, family := range gather(t, client, server) {
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if !utf8.ValidString(l.GetValue()) {
					t.Errorf("%s has the label %s=%q", family.GetName(), l.GetName(), l.GetValue())
				}
			}
		}
	}
	want(t, client, "amqpx_client_call", map[string]float64{
		"amqpx_client_calls_in_flight":                       0,
		"amqpx_client_call_duration_seconds{\uFFFD,unknown}": 2,
		"amqpx_client_call_duration_seconds{b\x00,unknown}":  1,
		"amqpx_client_call_duration_seconds{ü,unknown}":      1,
		"amqpx_client_call_duration_seconds{,unknown}":       1,
	})
}

// A name that is too long to send is not stored.
func TestLongNames(t *testing.T) {
	t.Parallel()
	m := NewClientMetrics("q")
	longest := strings.Repeat("m", longestMethod)
	m.CallSettled(longest, "", 1)
	m.CallSettled(longest+"m", amqpx.CodeInvalidArgument, 1)
	want(t, m, "amqpx_client_call_duration_seconds", map[string]float64{
		"amqpx_client_call_duration_seconds{" + longest + ",ok}":     1,
		"amqpx_client_call_duration_seconds{other,invalid_argument}": 1,
	})
}

//nolint:paralleltest // AllocsPerRun counts those of the whole process
func TestTellingTakesNoMemory(t *testing.T) {
	m := NewClientMetrics("q", WithMaxMethods(1))
	s := NewServerMetrics("q")
	if n := testing.AllocsPerRun(100, func() {
		m.CallSettled("b", "", 1)
		m.CallSettled("a name beyond the limit", amqpx.CodeAborted, 1)
		m.BatchSent(3)
		s.HandlerEnded("b", "", 1, 1)
		s.RequestRefused("", amqpx.CodeUnimplemented)
		s.BatchReceived(3)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
