package health

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
)

// The services pass the library's client and server.
var (
	_ Source = (*amqpx.Client)(nil)
	_ Source = (*amqpx.Server)(nil)
)

type status amqpx.Status

func (s status) Status() amqpx.Status { return amqpx.Status(s) }

var errRefused = errors.New("read tcp a->b: connection refused")

func TestReadyz(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status amqpx.Status
		code   int
		want   readiness
	}{
		"ready": {
			amqpx.Status{State: amqpx.StateReady, Broker: "b:5672", Generation: 2},
			200,
			readiness{"ready", "", "b:5672", 2, 0},
		},
		"ready, and the request queue is not": {
			amqpx.Status{State: amqpx.StateReady, Broker: "b:5672", Generation: 2, Reason: `request queue "q": its node is down`},
			200,
			readiness{"ready", `request queue "q": its node is down`, "b:5672", 2, 0},
		},
		"first attempt": {
			amqpx.Status{State: amqpx.StateConnecting, Broker: "b:5672"},
			503,
			readiness{"connecting", "not connected to the broker yet", "b:5672", 0, 0},
		},
		"never connected": {
			amqpx.Status{State: amqpx.StateReconnecting, Broker: "b:5672", Err: errRefused},
			503,
			readiness{"reconnecting", "not connected to the broker yet: read tcp a->b: connection refused", "b:5672", 0, 0},
		},
		"link lost": {
			amqpx.Status{State: amqpx.StateReconnecting, Err: errRefused, Generation: 1},
			503,
			readiness{"reconnecting", "lost the connection to the broker, reconnecting: read tcp a->b: connection refused", "", 1, 0},
		},
		"blocked": {
			amqpx.Status{State: amqpx.StateBlocked, Reason: "low on memory", Generation: 1},
			503,
			readiness{"blocked", "the broker blocks publishing: low on memory", "", 1, 0},
		},
		"draining": {
			amqpx.Status{State: amqpx.StateDraining, Generation: 1},
			503,
			readiness{"draining", "shutting down: finishing what has begun", "", 1, 0},
		},
		"closed": {
			amqpx.Status{State: amqpx.StateClosed, Generation: 1},
			503,
			readiness{"closed", "shut down", "", 1, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			recorder := httptest.NewRecorder()
			answer(status(c.status)).ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/readyz", http.NoBody))
			if recorder.Code != c.code {
				t.Errorf("status code %d, want %d", recorder.Code, c.code)
			}
			var got readiness
			if err := json.Unmarshal(recorder.Body.Bytes(), &got); err != nil || got != c.want {
				t.Errorf("got %s (%v), want %+v", recorder.Body, err, c.want)
			}
			if kind := recorder.Header().Get("Content-Type"); kind != "application/json" {
				t.Errorf("content type %q", kind)
			}
			if strings.Contains(recorder.Body.String(), `\u`) {
				t.Errorf("the body is escaped: %s", recorder.Body)
			}
			for _, field := range []string{`"state":`, `"reason":`, `"broker":`, `"generation":`} {
				if !strings.Contains(recorder.Body.String(), field) {
					t.Errorf("the body has no %s", field)
				}
			}
		})
	}
}

// answer returns the routes of a service with only a connection.
func answer(source Source) http.Handler { return routes(service{source: source}, nil, zap.NewNop()) }

func TestRoutes(t *testing.T) {
	t.Parallel()
	down := status{State: amqpx.StateReconnecting}
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{http.MethodGet, "/livez", 200, `{"state":"alive"}` + "\n"},
		{http.MethodHead, "/livez", 200, ""},
		{http.MethodPost, "/livez", 405, ""},
		{http.MethodPost, "/readyz", 405, ""},
		{http.MethodGet, "/", 404, ""},
		{http.MethodGet, "/pingz", 404, ""},
		{http.MethodGet, "/metrics", 404, ""},
		{http.MethodGet, "/livez/x", 404, ""},
	} {
		recorder := httptest.NewRecorder()
		answer(down).ServeHTTP(recorder, httptest.NewRequest(c.method, c.path, http.NoBody))
		if recorder.Code != c.code || (c.body != "" && recorder.Body.String() != c.body) {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, recorder.Code, recorder.Body, c.code, c.body)
		}
	}
}

func start(t *testing.T, addr string, source Source, opts ...Option) *Server {
	t.Helper()
	s, err := Start(t.Context(), listening(t, addr), source, zap.NewNop(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(context.Background()) })
	return s
}

func TestStartServesAndStops(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.InfoLevel)
	s, err := Start(t.Context(), listening(t, "127.0.0.1:0"), status{State: amqpx.StateReady}, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr().String()+"/livez", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil || string(body) != `{"state":"alive"}`+"\n" {
		t.Errorf("got %q, %v", body, err)
	}
	s.Stop(t.Context())
	s.Stop(t.Context())
	if err := Check(t.Context(), s.Addr().String()); err == nil {
		t.Error("something answers after Stop")
	}
	if logs.Len() != 0 {
		t.Errorf("a clean stop was logged: %v", logs.All())
	}
}

func TestStopCutsOffWhenTimeIsUp(t *testing.T) {
	t.Parallel()
	s := start(t, "127.0.0.1:0", status{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s.Stop(ended)
}

func TestServerHasTimeouts(t *testing.T) {
	t.Parallel()
	s := start(t, "127.0.0.1:0", status{})
	h := &s.http
	if h.ReadHeaderTimeout == 0 || h.ReadTimeout == 0 || h.WriteTimeout == 0 || h.IdleTimeout == 0 {
		t.Error("a slow client could hold a connection for ever")
	}
}

func TestStartNamesABusyAddress(t *testing.T) {
	t.Parallel()
	s := start(t, "127.0.0.1:0", status{})
	_, err := Listen(t.Context(), s.Addr().String())
	if lifecycle.ExitCode(err) != lifecycle.ExitConfig || !strings.HasPrefix(err.Error(), "HTTP_ADDR: listen tcp "+s.Addr().String()) {
		t.Errorf("got %v, exit code %d", err, lifecycle.ExitCode(err))
	}
}

type handlers amqpx.ServerStats

func (h handlers) Stats() amqpx.ServerStats { return amqpx.ServerStats(h) }

func TestReadyzTellsOfStuckHandlers(t *testing.T) {
	t.Parallel()
	for stuck, c := range map[int]struct {
		code   int
		reason string
	}{
		0: {200, ""},
		4: {200, ""},
		5: {503, "handlers are stuck: 1 of 4 workers wait for them"},
	} {
		s := start(t, "127.0.0.1:0", status{State: amqpx.StateReady}, WithHandlers(handlers{Workers: 4, Stuck: stuck}))
		code, body, _ := get(t, s, "/readyz", "")
		var got readiness
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		if code != c.code || got.Reason != c.reason || got.StuckHandlers != stuck {
			t.Errorf("%d stuck: %d, %+v", stuck, code, got)
		}
	}
}

func listening(t *testing.T, addr string) net.Listener {
	t.Helper()
	listener, err := Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	return listener
}
