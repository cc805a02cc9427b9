//go:build integration

package observability

import (
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// unknownMethod is a method without a handler: its calls fail.
const unknownMethod = "missing"

// stage is a pair under load, scraped by Prometheus.
type stage struct {
	queue            string
	servers, clients []*running
	// classic scrapes classic histograms, native also scrapes native histograms.
	classic, native *prometheus
}

// newStage starts two servers, and two clients: all calls of the first succeed and all calls
// of the second fail.
func newStage(t *testing.T) *stage {
	t.Helper()
	r := rig.New(t)
	s := &stage{queue: r.Queue.Name}
	server, client := rig.Build(t, "rpc-server"), rig.Build(t, "rpc-client")
	for range 2 {
		s.servers = append(s.servers, start(t, r, server))
	}
	s.clients = []*running{startClient(t, r, client, "b", 500), startClient(t, r, client, unknownMethod, 10)}
	broker, err := url.Parse(rig.MetricsURL(t))
	if err != nil {
		t.Fatal(err)
	}
	at := targets{
		"rpc-server": {s.servers[0].addr, s.servers[1].addr},
		"rpc-client": {s.clients[0].addr, s.clients[1].addr},
		"rabbitmq":   {broker.Host}, "rabbitmq-queues": {broker.Host},
	}
	s.classic = startPrometheus(t, adapted(t, at))
	s.native = startPrometheus(t, adapted(t, at), "--enable-feature=native-histograms")
	return s
}

// running is a service in a separate program.
type running struct {
	*rig.Program

	addr   string // host:port of its metrics
	report string // folder of a client's report
}

// httpAddr matches a service's HTTP address in its log.
var httpAddr = regexp.MustCompile(`"http_addr":"([^"]+)"`)

// start starts a service on the rig's queue, with further settings.
func start(t *testing.T, r *rig.Rig, binary string, settings ...string) *running {
	t.Helper()
	s := &running{Program: rig.Run(t, append([]string{
		"AMQP_URL=" + r.URL, "RPC_QUEUE=" + r.Queue.Name, "HTTP_ADDR=127.0.0.1:0", "METRICS_NATIVE_HISTOGRAMS=true",
	}, settings...), binary)}
	for ready := false; !ready || s.addr == ""; { // either line may be the first
		said := s.Says("")
		ready = ready || strings.Contains(said, `"msg":"ready"`)
		if addr := httpAddr.FindStringSubmatch(said); addr != nil {
			s.addr = addr[1]
		}
	}
	return s
}

// startClient starts a client with a constant rate of calls to a method until it is stopped.
// The call timeout is short, so the client ends soon after the servers.
func startClient(t *testing.T, r *rig.Rig, binary, method string, rate int) *running {
	t.Helper()
	report := t.TempDir()
	s := start(t, r, binary,
		"RPC_METHOD="+method, "RPC_RATE="+strconv.Itoa(rate), "RPC_DURATION=10m", "RPC_TIMEOUT=3s", "RPC_REPORT_DIR="+report)
	s.report = report
	return s
}

// result is the compared part of report.json.
type result struct {
	OK     int
	Errors map[string]int
}

// result returns the counts of an ended client.
func (s *running) result(t *testing.T) result {
	t.Helper()
	var r result
	readJSON(t, &r, filepath.Join(s.report, "report.json"))
	return r
}
