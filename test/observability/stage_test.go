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

// unknownMethod is a function that no server has: calls of it fail.
const unknownMethod = "missing"

// stage is a pair that makes calls, and Prometheus that reads it.
type stage struct {
	queue            string
	servers, clients []*running
	// classic reads as any Prometheus does, native also has native histograms.
	classic, native *prometheus
}

// newStage starts two servers, a client whose calls are answered and one whose calls fail.
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

// running is a service that runs as a program of its own.
type running struct {
	*rig.Program

	addr   string // host:port of its metrics
	report string // folder of a client's report
}

// httpAddr is where a service says that it listens.
var httpAddr = regexp.MustCompile(`"http_addr":"([^"]+)"`)

// start starts a service on the rig's queue, with more of its settings.
func start(t *testing.T, r *rig.Rig, binary string, settings ...string) *running {
	t.Helper()
	s := &running{Program: rig.Run(t, append([]string{
		"AMQP_URL=" + r.URL, "RPC_QUEUE=" + r.Queue.Name, "HTTP_ADDR=127.0.0.1:0",
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

// startClient starts one that makes calls of a method at a rate until it is stopped. What
// a client may wait for an answer is short, so that it ends soon after the servers have.
func startClient(t *testing.T, r *rig.Rig, binary, method string, rate int) *running {
	t.Helper()
	report := t.TempDir()
	s := start(t, r, binary,
		"RPC_METHOD="+method, "RPC_RATE="+strconv.Itoa(rate), "RPC_DURATION=10m", "RPC_TIMEOUT=3s", "RPC_REPORT_DIR="+report)
	s.report = report
	return s
}

// result is the part of report.json that is compared.
type result struct {
	OK     int
	Errors map[string]int
}

// result is what a client has counted itself; it must have ended.
func (s *running) result(t *testing.T) result {
	t.Helper()
	var r result
	readJSON(t, &r, filepath.Join(s.report, "report.json"))
	return r
}
