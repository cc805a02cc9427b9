package amqpxprom

import (
	"context"
	"errors"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// served is a client and a server with metrics, on one broker in memory.
type served struct {
	broker        *amqpxtest.Broker
	client        *amqpx.Client
	server        *amqpx.Server
	clientMetrics *ClientMetrics
	serverMetrics *ServerMetrics
}

// serve starts a server with the methods "fine" and "failing", and a client. Call serve inside a
// synctest bubble.
func serve(t *testing.T) *served {
	t.Helper()
	s := &served{broker: amqpxtest.NewBroker(), clientMetrics: NewClientMetrics("q"), serverMetrics: NewServerMetrics("q")}
	var err error
	if s.server, err = amqpx.NewServer(amqpxtest.URL, s.broker.Option(), amqpx.WithServerObserver(s.serverMetrics)); err != nil {
		t.Fatal(err)
	}
	s.serverMetrics.Watch(s.server)
	fine := func(context.Context, *amqpx.Request) ([]byte, error) { return nil, nil }
	failing := func(context.Context, *amqpx.Request) ([]byte, error) {
		return nil, amqpx.Errorf(amqpx.CodeNotFound, "nothing here")
	}
	if err := errors.Join(s.server.Handle("fine", fine), s.server.Handle("failing", failing)); err != nil {
		t.Fatal(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.server.Serve(ctx) }()
	if s.client, err = amqpx.NewClient(amqpxtest.URL, s.broker.Option(), amqpx.WithClientObserver(s.clientMetrics)); err != nil {
		t.Fatal(err)
	}
	s.clientMetrics.Watch(s.client)
	t.Cleanup(func() {
		err := s.client.Close(context.Background())
		drain()
		if err := errors.Join(err, <-ended); err != nil {
			t.Error(err)
		}
	})
	s.wait(t)
	return s
}

func (s *served) wait(t *testing.T) {
	t.Helper()
	if err := errors.Join(s.server.WaitReady(t.Context()), s.client.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// expect compares some of the figures of the client and of the server.
func (s *served) expect(t *testing.T, want map[string]float64) {
	t.Helper()
	synctest.Wait()
	got := scraped(t, s.clientMetrics)
	maps.Copy(got, scraped(t, s.serverMetrics))
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
}

// TestFiguresOfCalls: what a client and a server report of the same calls agrees.
func TestFiguresOfCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := serve(t)
		for range 3 {
			if _, err := s.client.Call(t.Context(), "fine", nil, amqpx.WaitForServer()); err != nil {
				t.Fatal(err)
			}
		}
		for _, method := range []string{"failing", "missing"} {
			if _, err := s.client.Call(t.Context(), method, nil, amqpx.WaitForServer()); err == nil {
				t.Errorf("%s: no error", method)
			}
		}
		s.expect(t, map[string]float64{
			"amqpx_client_call_duration_seconds{fine,ok}":               3,
			"amqpx_client_call_duration_seconds{failing,not_found}":     1,
			"amqpx_client_call_duration_seconds{missing,unimplemented}": 1,
			"amqpx_client_calls_in_flight":                              0,
			"amqpx_server_handler_duration_seconds{fine,ok}":            3,
			"amqpx_server_handler_duration_seconds{failing,not_found}":  1,
			"amqpx_server_requests_in_flight":                           0,
			"amqpx_server_queue_wait_seconds{fine}":                     3,
		})
		// The client asks for another server with the method, so this server refuses more than once.
		const refused = "amqpx_server_refused_requests_total{unknown,unimplemented}"
		if n := scraped(t, s.serverMetrics)[refused]; n < 1 {
			t.Errorf("%s is %v, want 1 or more", refused, n)
		}
	})
}

// TestFiguresOfConnections: states, reconnects and blocked seconds are those of a real client
// and a real server whose broker fails.
func TestFiguresOfConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := serve(t)
		if _, err := s.client.Call(t.Context(), "fine", nil, amqpx.WaitForServer()); err != nil {
			t.Fatal(err)
		}
		s.expect(t, map[string]float64{
			"amqpx_client_connection_state{ready}": 1, "amqpx_server_connection_state{ready}": 1,
			"amqpx_client_reconnects_total": 0, "amqpx_server_reconnects_total": 0,
		})
		s.broker.Disconnect()
		s.expect(t, map[string]float64{
			"amqpx_client_connection_state{reconnecting}": 1, "amqpx_client_connection_state{ready}": 0,
		})
		s.wait(t)
		if _, err := s.client.Call(t.Context(), "fine", nil, amqpx.WaitForServer()); err != nil {
			t.Fatal(err)
		}
		s.broker.Block("low on memory")
		s.expect(t, map[string]float64{
			"amqpx_client_connection_state{blocked}": 1, "amqpx_client_reconnects_total": 1, "amqpx_server_reconnects_total": 1,
		})
		time.AfterFunc(90*time.Second, s.broker.Unblock)
		s.wait(t)
		s.expect(t, map[string]float64{"amqpx_client_connection_state{ready}": 1, "amqpx_client_blocked_seconds_total": 90})
	})
}
