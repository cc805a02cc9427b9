package tracing

import (
	"compress/gzip"
	"context"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// export is the content of one request to a collector.
type export struct {
	path, token string
	resources   []*trace.ResourceSpans
}

// spans returns the spans of an export.
func (e export) spans() (all []*trace.Span) {
	for _, r := range e.resources {
		for _, s := range r.GetScopeSpans() {
			all = append(all, s.GetSpans()...)
		}
	}
	return all
}

// collect serves OTLP over HTTP and returns its URL.
func collect(t *testing.T) (url string, exports <-chan export) {
	t.Helper()
	server, got := newCollector(t)
	server.Start()
	return server.URL, got
}

// collectTLS serves OTLP over HTTPS, and makes the exporter trust its certificate.
func collectTLS(t *testing.T) (url string, exports <-chan export) {
	t.Helper()
	server, got := newCollector(t)
	server.StartTLS()
	t.Setenv("COLLECTOR_CERTIFICATE", certificateOf(t, server))
	return server.URL, got
}

// certificateOf writes a server's certificate to a file and returns its path.
func certificateOf(t *testing.T, server *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newCollector(t *testing.T) (*httptest.Server, <-chan export) {
	t.Helper()
	got := make(chan export, 16)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var from io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			from, _ = gzip.NewReader(r.Body)
		}
		body, err := io.ReadAll(from)
		var request collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &request)
		}
		if err != nil {
			t.Errorf("the collector cannot read an export: %v", err)
		}
		got <- export{r.URL.Path, r.Header.Get("Authorization"), request.GetResourceSpans()}
	}))
	t.Cleanup(server.Close)
	return server, got
}

// grpcCollector serves OTLP over gRPC.
type grpcCollector struct {
	collector.UnimplementedTraceServiceServer

	got chan<- export
}

// Export receives an export.
func (c grpcCollector) Export(ctx context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	e := export{resources: r.GetResourceSpans()}
	if md, ok := metadata.FromIncomingContext(ctx); ok && len(md.Get("authorization")) > 0 {
		e.token = md.Get("authorization")[0]
	}
	c.got <- e
	return &collector.ExportTraceServiceResponse{}, nil
}

// collectGRPC serves OTLP over gRPC and returns its URL.
func collectGRPC(t *testing.T) (url string, exports <-chan export) {
	t.Helper()
	got := make(chan export, 16)
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, grpcCollector{got: got})
	l := listen(t)
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return "http://" + l.Addr().String(), got
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// deadCollector refuses connections.
func deadCollector(t *testing.T) string {
	t.Helper()
	l := listen(t)
	defer func() { _ = l.Close() }()
	return "http://" + l.Addr().String()
}

// silentCollector accepts connections and never responds.
func silentCollector(t *testing.T) string {
	t.Helper()
	l := listen(t)
	t.Cleanup(func() { _ = l.Close() })
	return "http://" + l.Addr().String()
}

// receive returns the next export.
func receive(t *testing.T, exports <-chan export) export {
	t.Helper()
	select {
	case e := <-exports:
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was exported")
		return export{}
	}
}
