//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"rabbitmq-rpc/test/internal/rig"
)

// programs holds the paths of the two built programs.
type programs struct{ server, client string }

// tracedPair runs the programs on a separate queue.
type tracedPair struct {
	programs

	t   *testing.T
	r   *rig.Rig
	env []string
}

func (p programs) on(t *testing.T) *tracedPair {
	t.Helper()
	r := rig.New(t)
	return &tracedPair{programs: p, t: t, r: r, env: []string{
		"AMQP_URL=" + r.URL, "RPC_QUEUE=" + r.Queue.Name, "HTTP_ADDR=127.0.0.1:0",
	}}
}

func TestTracingOfOurPrograms(t *testing.T) {
	t.Parallel()
	p := programs{rig.Build(t, "rpc-server"), rig.Build(t, "rpc-client")}
	for name, test := range map[string]func(*testing.T, programs){
		"exported": testExport, "turned off": testTracingTurnedOff, "badly set": testTracingBadlySet,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
	for name, endpoint := range map[string]string{"collector refuses": "http://" + deadAddress, "collector is silent": silentCollector(t)} {
		for _, protocol := range []string{"http/protobuf", "grpc"} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				t.Parallel()
				testWithoutACollector(t, p, "OTEL_EXPORTER_OTLP_ENDPOINT="+endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL="+protocol)
			})
		}
	}
}

// serve starts the server.
func (p *tracedPair) serve(env ...string) *rig.Program {
	p.t.Helper()
	server := rig.Run(p.t, append(p.env, env...), p.server)
	server.Says(`"ready"`)
	return server
}

// call runs the client, which must succeed, and returns the duration.
func (p *tracedPair) call(env ...string) time.Duration {
	p.t.Helper()
	begun := time.Now()
	if err := rig.Run(p.t, append(p.env, env...), p.client).Wait(); err != nil {
		p.t.Errorf("the client: %v", err)
	}
	return time.Since(begun)
}

// stop ends the server, which must drain.
func (p *tracedPair) stop(server *rig.Program) {
	p.t.Helper()
	server.Terminate()
	if err := server.Wait(); err != nil {
		p.t.Errorf("the server: %v", err)
	}
}

func testExport(t *testing.T, built programs) {
	t.Helper()
	p, c := built.on(t), startCollector(t)
	server := p.serve("OTEL_EXPORTER_OTLP_ENDPOINT="+c.url, "LOG_LEVEL=debug")
	p.call("OTEL_EXPORTER_OTLP_ENDPOINT="+c.url, "OTEL_SERVICE_NAME=caller", "OTEL_RESOURCE_ATTRIBUTES=team=blue",
		"RPC_CALLS=600", "RPC_CONCURRENCY=32")
	line := server.Says(`"msg":"call"`)
	// A caller's invalid data must not prevent the export of other callers' spans.
	inbox := p.r.Inbox()
	p.r.Request(amqp.Publishing{AppId: "b", CorrelationId: "odd \xff", ReplyTo: inbox.Name})
	if got := inbox.Next(); string(got.Body) != "b" {
		t.Errorf("got %q", got.Body)
	}
	p.stop(server)

	clients, servers := c.of(tracepb.Span_SPAN_KIND_CLIENT), c.of(tracepb.Span_SPAN_KIND_SERVER)
	if odd, ok := servers["odd \uFFFD"]; !ok || odd.parent() != "" {
		t.Errorf("the span of the odd call: %v", odd)
	}
	if len(clients) != 600 || len(servers) != 601 {
		t.Fatalf("%d spans of the client and %d of the server, want 600 and one more", len(clients), len(servers))
	}
	checkLine(t, line, servers)
	for id, call := range clients {
		run := servers[id]
		if run.trace() != call.trace() || run.parent() != call.id() || call.parent() != "" || run.GetName() != "b" || call.GetName() != "b" {
			t.Errorf("call %s: spans %v and %v", id, call.Span, run.Span)
		}
		for _, s := range []otlpSpan{call, run} {
			if s.attributes["messaging.destination.name"] != p.r.Queue.Name || s.attributes["server.address"] != "127.0.0.1" && s.attributes["server.address"] != "localhost" {
				t.Errorf("call %s: attributes %v", id, s.attributes)
			}
		}
		if call.resource["service.name"] != "caller" || call.resource["team"] != "blue" || run.resource["service.name"] != "rpc-server" {
			t.Errorf("resources %v and %v", call.resource, run.resource)
		}
		for _, name := range []string{"service.version", "service.instance.id", "host.name"} {
			if call.resource[name] == nil || run.resource[name] == nil {
				t.Errorf("resources %v and %v lack %s", call.resource, run.resource, name)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// checkLine checks that a line of the server's log names a span.
func checkLine(t *testing.T, line string, spans map[string]otlpSpan) {
	t.Helper()
	var said struct {
		TraceID string `json:"trace_id"`
		SpanID  string `json:"span_id"`
		Call    string `json:"correlation_id"`
	}
	if err := json.Unmarshal([]byte(line), &said); err != nil {
		t.Fatal(err)
	}
	if s, ok := spans[said.Call]; !ok || said.TraceID != s.trace() || said.SpanID != s.id() {
		t.Errorf("the log says %s, the span is %v", line, s.Span)
	}
}

// silentCollector returns a URL with a listener but no responses.
func silentCollector(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return "http://" + l.Addr().String()
}

// testWithoutACollector: an absent collector causes no failure and no long delay.
func testWithoutACollector(t *testing.T, built programs, env ...string) {
	t.Helper()
	p := built.on(t)
	server := p.serve(env...)
	const bound = 20 * time.Second // five for the collector, the rest for a busy machine
	if took := p.call(append(env, "RPC_CALLS=100")...); took > bound {
		t.Errorf("the client took %v", took)
	}
	begun := time.Now()
	p.stop(server)
	if took := time.Since(begun); took > bound {
		t.Errorf("the server took %v to stop", took)
	}
	server.Says("spans could not be exported")
}

// testTracingTurnedOff: disabled tracing makes no connection to a collector.
func testTracingTurnedOff(t *testing.T, built programs) {
	t.Helper()
	p, c := built.on(t), startCollector(t)
	for _, off := range []string{"OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=none", "OTEL_TRACES_SAMPLER=always_off"} {
		server := p.serve("OTEL_EXPORTER_OTLP_ENDPOINT="+c.url, off)
		p.call("OTEL_EXPORTER_OTLP_ENDPOINT="+c.url, off, "RPC_CALLS=20")
		p.stop(server)
	}
	if n := c.connections.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// testTracingBadlySet: bad settings are reported by name, without possible tokens, before the
// program starts its work.
func testTracingBadlySet(t *testing.T, built programs) {
	t.Helper()
	p := built.on(t)
	for _, program := range []string{p.server, p.client} {
		run := rig.Run(t, append(p.env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", "OTEL_EXPORTER_OTLP_HEADERS=authorization: hunter2"), program)
		line := run.Says("OTEL_EXPORTER_OTLP_HEADERS")
		if strings.Contains(line, "hunter2") || !strings.Contains(line, "header 1 is not key=value") {
			t.Errorf("it says %s", line)
		}
		var exit *exec.ExitError
		if err := run.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("it ends with %v, want 2", err)
		}
	}
}
