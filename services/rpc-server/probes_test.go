package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/health"
)

// asked returns the HTTP response of a server without a connection, with variables set.
func asked(t *testing.T, path string, env ...string) (code int, body string) {
	t.Helper()
	isolate(t)
	t.Setenv("AMQP_URL", "amqp://127.0.0.1:1/")
	t.Setenv("HTTP_ADDR", "127.0.0.1:0")
	for _, one := range env {
		name, value, _ := strings.Cut(one, "=")
		t.Setenv(name, value)
	}
	settings, faults := load(t)
	if faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	made, shows, err := newServer(settings, settings.options(nil, zap.NewNop()))
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	listener, err := health.Listen(t.Context(), settings.HTTP.Addr)
	if err != nil {
		t.Fatal(err)
	}
	probes, err := health.Start(t.Context(), listener, made, zap.NewNop(), shows...)
	if err != nil {
		t.Fatal(err)
	}
	defer probes.Stop(context.WithoutCancel(t.Context()))
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+probes.Addr().String()+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

//nolint:paralleltest // sets the environment
func TestMetrics(t *testing.T) {
	code, body := asked(t, "/metrics")
	for _, want := range []string{
		`amqpx_server_workers{queue="rpc_queue"} 64`,
		`amqpx_server_connection_state{queue="rpc_queue",state="connecting"} 1`,
		`amqpx_server_connection_state{queue="rpc_queue",state="ready"} 0`,
		"rabbitmq_rpc_build_info{",
		"\ngo_goroutines ",
		"\nprocess_open_fds ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in %d\n%s", want, code, body)
		}
	}
	if code, body := asked(t, "/metrics", "METRICS=false"); code != http.StatusNotFound {
		t.Errorf("switched off: %d %s", code, body)
	}
}

//nolint:paralleltest // sets the environment
func TestPing(t *testing.T) {
	code, body := asked(t, "/pingz")
	if code != http.StatusServiceUnavailable || !strings.HasPrefix(body, `{"state":"failed","reason":"unavailable`) {
		t.Errorf("%d %s", code, body)
	}
	if code, body := asked(t, "/pingz", "RPC_CONTROL=false"); code != http.StatusNotFound {
		t.Errorf("switched off: %d %s", code, body)
	}
}

//nolint:paralleltest // sets the environment
func TestRefusedByTheLibrary(t *testing.T) {
	isolate(t)
	settings, _ := load(t)
	settings.Workers = 0
	if made, shows, err := newServer(settings, settings.options(nil, zap.NewNop())); err == nil || made != nil || shows != nil {
		t.Errorf("got %v, %v, %v", made, shows, err)
	}
}
