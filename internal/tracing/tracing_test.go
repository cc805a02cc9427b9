package tracing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/internal/version"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxotel"
)

// start starts tracing with these variables in the environment.
func start(t *testing.T, env map[string]string) (*Tracing, *observer.ObservedLogs) {
	t.Helper()
	c, faults := load(t, env)
	if faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	core, logs := observer.New(zap.DebugLevel)
	tr, err := Start(t.Context(), c, Service{Name: "tester", Queue: "q", Broker: "amqp://u:hunter2@broker/"}, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	return tr, logs
}

// run runs a handler once, as a server would.
func (t *Tracing) run(ctx context.Context) {
	h := amqpxotel.Server(t.options...)(func(context.Context, *amqpx.Request) ([]byte, error) { return nil, nil })
	_, _ = h(ctx, &amqpx.Request{Method: "greet", CorrelationID: "\xff\xfe"})
}

// within fails the test if f takes longer than d.
func within(t *testing.T, d time.Duration, f func()) {
	t.Helper()
	begun := time.Now()
	f()
	if took := time.Since(begun); took > d {
		t.Errorf("took %v, want at most %v", took, d)
	}
}

// one returns the only line with a message.
func one(t *testing.T, logs *observer.ObservedLogs, message string) observer.LoggedEntry {
	t.Helper()
	lines := logs.FilterMessage(message).All()
	if len(lines) != 1 {
		t.Fatalf("%d lines %q, want 1: %v", len(lines), message, logs.All())
	}
	return lines[0]
}

//nolint:paralleltest // sets the environment
func TestExport(t *testing.T) {
	for name, c := range map[string]struct {
		serve          func(*testing.T) (string, <-chan export)
		protocol, path string
	}{
		"http":  {collect, "", "/v1/traces"},
		"https": {collectTLS, "", "/v1/traces"},
		"grpc":  {collectGRPC, "grpc", ""},
	} {
		t.Run(name, func(t *testing.T) {
			url, exports := c.serve(t)
			tr, logs := start(t, map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": c.protocol,
				"OTEL_EXPORTER_OTLP_CERTIFICATE": os.Getenv("COLLECTOR_CERTIFICATE"),
				"OTEL_EXPORTER_OTLP_HEADERS":     "authorization=Bearer%20hunter2",
				"OTEL_RESOURCE_ATTRIBUTES":       "team=blue%20sky,service.instance.id=seven",
			})
			tr.run(t.Context())
			tr.Stop(t.Context())
			got := receive(t, exports)
			spans := got.spans()
			if got.path != c.path || got.token != "Bearer hunter2" || len(spans) != 1 || spans[0].GetName() != "greet" {
				t.Fatalf("got %+v", got)
			}
			host, err := os.Hostname()
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				"service.name": "tester", "service.version": version.Of().Version, "service.instance.id": "seven", "host.name": host,
				"team": "blue sky", "telemetry.sdk.language": "go", "telemetry.sdk.name": "opentelemetry", "telemetry.sdk.version": "1.47.0",
			}
			resource := map[string]string{}
			for _, kv := range got.resources[0].GetResource().GetAttributes() {
				resource[kv.GetKey()] = kv.GetValue().GetStringValue()
			}
			if !maps.Equal(resource, want) {
				t.Errorf("resource %v, want %v", resource, want)
			}
			line := one(t, logs, "calls are traced")
			if fields := fmt.Sprint(line.ContextMap()); fields != fmt.Sprintf("map[endpoint:%s protocol:%s]", url, cmp.Or(c.protocol, protocolHTTP)) {
				t.Errorf("it says %s", fields)
			}
			if logs.Len() != 1 {
				t.Errorf("it logged %v", logs.All())
			}
		})
	}
}

// An unreachable collector makes no call fail, and delays the end of a service for a bounded
// time.
//
//nolint:paralleltest // sets the environment
func TestCollectorAway(t *testing.T) {
	for name, c := range map[string]struct {
		url      func(*testing.T) string
		protocol string
		patience time.Duration // of Stop's context; 0: its own
	}{
		"refused":             {deadCollector, "http/protobuf", 0},
		"refused over grpc":   {deadCollector, "grpc", 100 * time.Millisecond},
		"silent":              {silentCollector, "http/protobuf", 100 * time.Millisecond},
		"silent over grpc":    {silentCollector, "grpc", 100 * time.Millisecond},
		"silent, no patience": {silentCollector, "http/protobuf", time.Nanosecond},
	} {
		t.Run(name, func(t *testing.T) {
			tr, logs := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.url(t), "OTEL_EXPORTER_OTLP_PROTOCOL": c.protocol})
			for range 3 {
				tr.run(t.Context())
			}
			ctx := t.Context()
			if c.patience > 0 {
				bounded, cancel := context.WithTimeout(ctx, c.patience)
				defer cancel()
				ctx = bounded
			}
			within(t, stopTimeout, func() { tr.Stop(ctx) }) // some cutTimeout, on an idle machine
			line := one(t, logs, "spans could not be exported")
			if line.Level != zapcore.WarnLevel || line.ContextMap()["spans"] != int64(3) {
				t.Errorf("it says %v", line)
			}
		})
	}
}

// Without an endpoint tracing is off, and all methods may still be called.
//
//nolint:paralleltest // sets the environment, and counts goroutines
func TestOff(t *testing.T) {
	before := runtime.NumGoroutine()
	tr, logs := start(t, map[string]string{"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"})
	if tr != nil || logs.Len() != 0 {
		t.Errorf("tracing is on: %v", logs.All())
	}
	if _, err := amqpx.NewServer("amqp://h/", tr.Server()); err != nil {
		t.Error(err)
	}
	log := zap.NewNop()
	handed := false
	tr.Logged(log, func(l *zap.Logger) amqpx.Middleware { handed = l == log; return nil })
	tr.Stop(t.Context())
	if !handed {
		t.Error("the logger was replaced")
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, %d before", after, before)
	}
	one := amqpx.WithMiddleware()
	if fmt.Sprintf("%T", tr.Client()) != fmt.Sprintf("%T", one) {
		t.Error("the option is not an empty one")
	}
}

// Spans dropped because the queue is full are logged.
func TestFullQueue(t *testing.T) {
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
	t.Setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
	tr, logs := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": silentCollector(t)})
	const spans = 50
	for range spans {
		tr.run(t.Context())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	tr.Stop(ctx)
	dropped, _ := one(t, logs, "spans found no place in the queue for export").ContextMap()["spans"].(int64)
	failed := int64(0)
	for _, line := range logs.FilterMessage("spans could not be exported").All() {
		n, _ := line.ContextMap()["spans"].(int64)
		failed += n
	}
	if failed+dropped != spans || dropped == 0 {
		t.Errorf("%d failed and %d were dropped, of %d", failed, dropped, spans)
	}
}

//nolint:paralleltest // sets the environment
func TestSamplerAndPropagators(t *testing.T) {
	url, exports := collect(t)
	tr, _ := start(t, map[string]string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url + "/elsewhere",
		"OTEL_TRACES_SAMPLER":                "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0", "OTEL_PROPAGATORS": "none",
	})
	var header map[string]any
	call := amqpxotel.Client(tr.options...)(func(_ context.Context, req *amqpx.Request) ([]byte, error) { header = req.Header; return nil, nil })
	_, _ = call(t.Context(), &amqpx.Request{Method: "greet"})
	tr.Stop(t.Context())
	if header != nil || len(exports) != 0 {
		t.Errorf("sent %v, and %d exports", header, len(exports))
	}
}

// The samplers that follow their parent draw before a span is started; all samplers keep their
// meaning, for calls without a parent and with one.
//
//nolint:paralleltest // sets the environment
func TestSamplers(t *testing.T) {
	const sampled, not = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	for _, c := range []struct {
		sampler, arg                   string
		root, ofSampled, ofNot, ofMark bool
	}{
		{"", "", true, true, false, false},
		{"parentbased_always_on", "", true, true, false, false},
		{" ParentBased_Always_Off ", "", false, true, false, false},
		{"parentbased_traceidratio", "0", false, true, false, false},
		{"parentbased_traceidratio", "1", true, true, false, false},
		{"parentbased_traceidratio", "", true, true, false, false},
		{"parentbased_traceidratio", "seven", true, true, false, false},
		{"always_on", "", true, true, true, true},
		{"always_off", "", false, false, false, false},
		{"traceidratio", "0", false, false, false, false},
		{"traceidratio", "", true, true, true, true},
	} {
		t.Run(c.sampler+" "+c.arg, func(t *testing.T) {
			url, exports := collect(t)
			tr, _ := start(t, map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_TRACES_SAMPLER": c.sampler, "OTEL_TRACES_SAMPLER_ARG": c.arg,
			})
			recorded := map[string]bool{}
			for name, req := range map[string]*amqpx.Request{
				"root": {}, "sampled": {Header: map[string]any{"traceparent": sampled}}, "not": {Header: map[string]any{"traceparent": not}},
				"mark": {Unsampled: true},
			} {
				h := amqpxotel.Server(tr.options...)(func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
					recorded[name] = trace.SpanFromContext(ctx).IsRecording()
					return nil, nil
				})
				_, _ = h(t.Context(), req)
			}
			tr.Stop(t.Context())
			want := map[string]bool{"root": c.root, "sampled": c.ofSampled, "not": c.ofNot, "mark": c.ofMark}
			if !maps.Equal(recorded, want) {
				t.Errorf("recorded %v, want %v", recorded, want)
			}
			if c.root || c.ofSampled {
				receive(t, exports)
			}
		})
	}
}

// An error of the exporter for a value that Validate accepted is a fault of the configuration.
// A signal to stop is not.
func TestStartFails(t *testing.T) {
	c, faults := load(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"})
	if faults != nil {
		t.Fatal(faults)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tr, err := Start(ctx, c, Service{Name: "x"}, zap.NewNop())
	if err != nil {
		t.Fatalf("while it is told to stop: %v", err)
	}
	tr.Stop(ctx)
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", certificateOf(t, server))
	_, err = Start(t.Context(), c, Service{Name: "x"}, zap.NewNop())
	if coded, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); !ok || coded.ExitCode() != 2 {
		t.Errorf("got %v", err)
	}
}
