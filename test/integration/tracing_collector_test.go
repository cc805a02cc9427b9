//go:build integration

package integration

import (
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// otlpSpan is a span received by a collector.
type otlpSpan struct {
	resource   map[string]any
	attributes map[string]any
	*tracepb.Span
}

func (s otlpSpan) trace() string  { return hex.EncodeToString(s.GetTraceId()) }
func (s otlpSpan) id() string     { return hex.EncodeToString(s.GetSpanId()) }
func (s otlpSpan) parent() string { return hex.EncodeToString(s.GetParentSpanId()) }

// otlpCollector receives OTLP over HTTP.
type otlpCollector struct {
	url         string
	connections atomic.Int64

	mu    sync.Mutex
	spans []otlpSpan
}

func startCollector(t *testing.T) *otlpCollector {
	t.Helper()
	c := &otlpCollector{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		request := &collector.ExportTraceServiceRequest{}
		if err == nil {
			err = proto.Unmarshal(body, request)
		}
		if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("the collector cannot read what came to %s: %v", r.URL.Path, err)
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c.keep(request)
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			c.connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *otlpCollector) keep(request *collector.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range request.GetResourceSpans() {
		for _, scope := range r.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, otlpSpan{plain(r.GetResource().GetAttributes()), plain(s.GetAttributes()), s})
			}
		}
	}
}

// of returns the spans of one kind by correlation id.
func (c *otlpCollector) of(kind tracepb.Span_SpanKind) map[string]otlpSpan {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[string]otlpSpan)
	for _, s := range c.spans {
		if id, _ := s.attributes["messaging.message.conversation_id"].(string); s.GetKind() == kind {
			all[id] = s
		}
	}
	return all
}

// plain returns attributes as Go values.
func plain(list []*common.KeyValue) map[string]any {
	all := make(map[string]any)
	for _, kv := range list {
		switch v := kv.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			all[kv.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			all[kv.GetKey()] = v.IntValue
		case *common.AnyValue_BoolValue:
			all[kv.GetKey()] = v.BoolValue
		case *common.AnyValue_DoubleValue:
			all[kv.GetKey()] = v.DoubleValue
		}
	}
	return all
}
