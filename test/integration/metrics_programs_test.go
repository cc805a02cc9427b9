//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os/exec"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// logged is a log line of this project's programs.
type logged struct {
	HTTPAddr string `json:"http_addr"`
}

// started starts a program of this project and returns the program's HTTP URL.
func started(t *testing.T, service, says string, env ...string) (program *rig.Program, url string) {
	t.Helper()
	program = rig.Run(t, append(env, "HTTP_ADDR=127.0.0.1:0"), rig.Build(t, service))
	var line logged
	if err := json.Unmarshal([]byte(program.Says(says)), &line); err != nil || line.HTTPAddr == "" {
		t.Fatalf("%s does not say where it answers: %v", service, err)
	}
	return program, "http://" + line.HTTPAddr
}

// TestMetricsOfOurPrograms: the programs export every metric used by dashboards, follow
// Prometheus' naming conventions, and report a working path to themselves or to the other
// side.
func TestMetricsOfOurPrograms(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("promtool is missing: install the package prometheus")
	}
	r := rig.New(t)
	env := []string{"AMQP_URL=" + r.URL, "RPC_QUEUE=" + r.Queue.Name}
	server, serverURL := started(t, "rpc-server", "server starts", env...)
	server.Says(`"ready"`)
	if _, err := r.Ready().Call(rig.Patience(t), "nobody", nil); amqpx.CodeOf(err) != amqpx.CodeUnimplemented {
		t.Errorf("a method that nobody has: %v", err)
	}
	client, clientURL := started(t, "rpc-client", "client starts",
		append(env, "RPC_CALLS=1000000000", "RPC_CONCURRENCY=4")...)
	rig.Eventually(t, "the client has a response", func() bool {
		_, text := scrape(t, clientURL+"/metrics")
		return read(t, text)["amqpx_client_call_duration_seconds{b,ok}"] > 0
	})
	for url, names := range map[string][]string{serverURL: serverNames(), clientURL: clientNames()} {
		_, text := scrape(t, url+"/metrics")
		got := read(t, text)
		for _, name := range append(names, "rabbitmq_rpc_build_info", "go_goroutines", "process_cpu_seconds_total") {
			if _, ok := got[name]; !ok {
				t.Errorf("%s does not show %s", url, name)
			}
		}
		check := exec.CommandContext(rig.Patience(t), promtool, "check", "metrics")
		check.Stdin = bytes.NewReader(text)
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics, of %s: %v\n%s", url, err, out)
		}
		if code, text := scrape(t, url+"/pingz"); code != http.StatusOK || !bytes.HasPrefix(text, []byte(`{"state":"ok","took_ms":`)) {
			t.Errorf("%s/pingz answers %d %s", url, code, text)
		}
	}
	for _, p := range []*rig.Program{client, server} {
		p.Terminate()
		if err := p.Wait(); err != nil {
			t.Errorf("%v", err)
		}
	}
}

// clientNames returns the series of a client after calls of b; dashboards use them.
func clientNames() []string {
	return []string{
		"amqpx_client_call_duration_seconds{b,ok}",
		"amqpx_client_calls_in_flight",
		"amqpx_client_resends_total",
		"amqpx_client_retries_total",
		"amqpx_client_rejected_calls_total",
		"amqpx_client_late_responses_total",
		"amqpx_client_duplicate_responses_total",
		"amqpx_client_unknown_responses_total",
		"amqpx_client_batched_calls_total",
		"amqpx_client_batch_size",
		"amqpx_client_reconnects_total",
		"amqpx_client_blocked_seconds_total",
		"amqpx_client_connection_state{connecting}",
		"amqpx_client_connection_state{ready}",
		"amqpx_client_connection_state{blocked}",
		"amqpx_client_connection_state{reconnecting}",
		"amqpx_client_connection_state{draining}",
		"amqpx_client_connection_state{closed}",
	}
}

// serverNames returns the series of a server after requests for b and for an unknown method.
func serverNames() []string {
	return []string{
		"amqpx_server_handler_duration_seconds{b,ok}",
		"amqpx_server_queue_wait_seconds{b}",
		"amqpx_server_refused_requests_total{unknown,unimplemented}",
		"amqpx_server_requests_total",
		"amqpx_server_requests_in_flight",
		"amqpx_server_requests_waiting",
		"amqpx_server_workers",
		"amqpx_server_workers_busy",
		"amqpx_server_stuck_handlers",
		"amqpx_server_oldest_handler_seconds",
		"amqpx_server_panics_total",
		"amqpx_server_expired_requests_total",
		"amqpx_server_shed_requests_total",
		"amqpx_server_replayed_requests_total",
		"amqpx_server_requeued_requests_total",
		"amqpx_server_republished_requests_total",
		"amqpx_server_dead_letters_total",
		"amqpx_server_canceled_requests_total",
		"amqpx_server_undeliverable_responses_total",
		"amqpx_server_batched_requests_total",
		"amqpx_server_batch_size",
		"amqpx_server_reconnects_total",
		"amqpx_server_blocked_seconds_total",
		"amqpx_server_connection_state{connecting}",
		"amqpx_server_connection_state{ready}",
		"amqpx_server_connection_state{blocked}",
		"amqpx_server_connection_state{reconnecting}",
		"amqpx_server_connection_state{draining}",
		"amqpx_server_connection_state{closed}",
	}
}

func TestMetricsSwitchedOff(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server, url := started(t, "rpc-server", "server starts", "AMQP_URL="+r.URL, "RPC_QUEUE="+r.Queue.Name, "METRICS=false")
	server.Says(`"ready"`)
	if code, _ := scrape(t, url+"/metrics"); code != http.StatusNotFound {
		t.Errorf("/metrics answers %d", code)
	}
	server.Terminate()
	if err := server.Wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
}
