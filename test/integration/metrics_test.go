//go:build integration

package integration

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxprom"
	"rabbitmq-rpc/test/internal/rig"
)

// measured is a client and a server with their metrics, each behind a separate proxy.
type measured struct {
	client        *amqpx.Client
	server        *rig.Server
	ours, theirs  *rig.Proxy
	clientMetrics *amqpxprom.ClientMetrics
	serverMetrics *amqpxprom.ServerMetrics
}

func measure(t *testing.T, methods rig.Methods) *measured {
	t.Helper()
	r := rig.New(t)
	m := &measured{
		ours: r.Proxy(), theirs: r.Proxy(),
		clientMetrics: amqpxprom.NewClientMetrics(r.Queue.Name),
		serverMetrics: amqpxprom.NewServerMetrics(r.Queue.Name),
	}
	m.server = r.ServeAt(m.theirs.URL(), methods, amqpx.WithServerObserver(m.serverMetrics))
	m.serverMetrics.Watch(m.server)
	m.client = r.ClientAt(m.ours.URL(), amqpx.WithClientObserver(m.clientMetrics))
	m.clientMetrics.Watch(m.client)
	rig.Connected(t, m.client)
	return m
}

func TestMetricsEqualTheCounters(t *testing.T) {
	t.Parallel()
	m := measure(t, rig.Methods{
		"echo": echo,
		"fail": func(context.Context, *amqpx.Request) ([]byte, error) {
			return nil, amqpx.Errorf(amqpx.CodeNotFound, "no")
		},
	})
	const callers, each = 64, 30
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for i := range each {
				_, _ = m.client.Call(rig.Patience(t), []string{"echo", "fail", "nobody"}[i%3], []byte("x"))
			}
		})
	}
	all.Wait()
	if err := m.server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	cs, ss := m.client.Stats(), m.server.Stats()
	if cs.OK != callers*each/3 || cs.Failed != 2*cs.OK || cs.Batched == 0 || ss.Batched == 0 {
		t.Fatalf("the client counted %+v, the server %+v", cs, ss)
	}
	client, server := shown(t, m.clientMetrics), shown(t, m.serverMetrics)
	for _, c := range []struct {
		what string
		got  float64
		want uint64
	}{
		{"answers", client["amqpx_client_call_duration_seconds{echo,ok}"], cs.OK},
		{"errors", client.sum("amqpx_client_call_duration_seconds", "fail") + client.sum("amqpx_client_call_duration_seconds", "nobody"), cs.Failed},
		{"calls in flight", client["amqpx_client_calls_in_flight"], cs.InFlight},
		{"calls sent in batches", client["amqpx_client_batched_calls_total"], cs.Batched},
		{"resends", client["amqpx_client_resends_total"], cs.Resent},
		{"results", server["amqpx_server_handler_duration_seconds{echo,ok}"], ss.OK},
		{"failures", server["amqpx_server_handler_duration_seconds{fail,not_found}"], ss.Failed},
		{"runs", server["amqpx_server_queue_wait_seconds{echo}"] + server["amqpx_server_queue_wait_seconds{fail}"], ss.OK + ss.Failed},
		{"refusals", server["amqpx_server_refused_requests_total{unknown,unimplemented}"], ss.Refused},
		{"requests", server["amqpx_server_requests_total"], ss.Requests},
		{"requests in flight", server["amqpx_server_requests_in_flight"], ss.InFlight},
		{"calls that came in batches", server["amqpx_server_batched_requests_total"], ss.Batched},
		{"workers", server["amqpx_server_workers"], uint64(ss.Workers)},
	} {
		if c.got != float64(c.want) {
			t.Errorf("%s: %v shown, %d counted", c.what, c.got, c.want)
		}
	}
	if server["amqpx_server_connection_state{closed}"] != 1 || client["amqpx_client_connection_state{ready}"] != 1 {
		t.Errorf("the client shows %v, the server %v", client, server)
	}
}

func TestMetricsDuringReconnect(t *testing.T) {
	t.Parallel()
	slow := hold()
	m := measure(t, rig.Methods{"slow": slow.handle})
	call := begin(rig.Patience(t), m.client, "slow", []byte("once"), amqpx.Idempotent())
	rig.Recv(t, slow.entered, "the request to arrive")
	if got := shown(t, m.serverMetrics); got["amqpx_server_workers_busy"] != 1 || got["amqpx_server_requests_in_flight"] != 1 {
		t.Errorf("while a handler runs the server shows %v", got)
	}
	for _, p := range []*rig.Proxy{m.ours, m.theirs} {
		p.Refuse(true)
		p.Cut()
	}
	rig.Eventually(t, "both noticed", func() bool { return !m.client.Status().Ready() && !m.server.Status().Ready() })
	client, server := shown(t, m.clientMetrics), shown(t, m.serverMetrics)
	if client["amqpx_client_connection_state{ready}"] != 0 || client.sum("amqpx_client_connection_state", "reconnecting")+client.sum("amqpx_client_connection_state", "connecting") != 1 ||
		client["amqpx_client_calls_in_flight"] != 1 {
		t.Errorf("without a connection the client shows %v", client)
	}
	if server["amqpx_server_connection_state{ready}"] != 0 || server.sum("amqpx_server_connection_state", "reconnecting")+server.sum("amqpx_server_connection_state", "connecting") != 1 {
		t.Errorf("without a connection the server shows %v", server)
	}
	for _, p := range []*rig.Proxy{m.ours, m.theirs} {
		p.Refuse(false)
	}
	rig.Eventually(t, "both are back", func() bool { return m.client.Status().Ready() && m.server.Status().Ready() })
	client, server = shown(t, m.clientMetrics), shown(t, m.serverMetrics)
	if client["amqpx_client_reconnects_total"] != 1 || client["amqpx_client_connection_state{ready}"] != 1 || server["amqpx_server_reconnects_total"] != 1 {
		t.Errorf("with the next connection the client shows %v, the server %v", client, server)
	}
	m.server.Stop()
	rig.Eventually(t, "the server drains", func() bool { return m.server.Status().State == amqpx.StateDraining })
	if got := shown(t, m.serverMetrics); got["amqpx_server_connection_state{draining}"] != 1 {
		t.Errorf("while it drains the server shows %v", got)
	}
	close(slow.release)
	if got := rig.Recv(t, call, "the response"); got.err != nil {
		t.Errorf("the call ended with %v", got.err)
	}
	if err := m.client.Close(rig.Patience(t)); err != nil {
		t.Errorf("close: %v", err)
	}
	if got := shown(t, m.clientMetrics); got["amqpx_client_connection_state{closed}"] != 1 || got["amqpx_client_call_duration_seconds{slow,ok}"] != 1 {
		t.Errorf("after it was closed the client shows %v", got)
	}
}

// TestMetricsOfManyMethods: ten thousand method names create a bounded number of series on
// either side.
func TestMetricsOfManyMethods(t *testing.T) {
	t.Parallel()
	const names = 10_000
	m := measure(t, rig.Methods{"echo": echo})
	var all sync.WaitGroup
	for caller := range 50 {
		all.Go(func() {
			for i := caller; i < names; i += 50 {
				_, err := m.client.Call(rig.Patience(t), "method "+strconv.Itoa(i), nil)
				if amqpx.CodeOf(err) != amqpx.CodeUnimplemented {
					t.Errorf("call %d: %v", i, err)
				}
			}
		})
	}
	all.Wait()
	rig.Call(t, m.client, "echo", nil)
	client, server := shown(t, m.clientMetrics), shown(t, m.serverMetrics)
	known := 0
	for series := range client {
		if strings.HasPrefix(series, "amqpx_client_call_duration_seconds{method ") {
			known++
		}
	}
	if other := client["amqpx_client_call_duration_seconds{other,unimplemented}"]; known != amqpxprom.DefaultMaxMethods || other != names-amqpxprom.DefaultMaxMethods {
		t.Errorf("the client tells %d methods apart and has %v calls of others", known, other)
	}
	if got := server["amqpx_server_refused_requests_total{unknown,unimplemented}"]; got != names || len(server) > 60 {
		t.Errorf("the server shows %v refusals in %d series", got, len(server))
	}
}
