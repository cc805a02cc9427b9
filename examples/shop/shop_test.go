package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"rabbitmq-rpc/examples/shop/api"
	"rabbitmq-rpc/examples/shop/gateway"
	"rabbitmq-rpc/examples/shop/orders"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// spans has the spans of all tests.
var spans = tracetest.NewInMemoryExporter() //nolint:gochecknoglobals // the tests share OpenTelemetry's globals.

func TestMain(m *testing.M) {
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)))
	otel.SetTextMapPropagator(propagation.TraceContext{})
	goleak.VerifyTestMain(m)
}

// open starts services on a broker in memory. Call open inside a synctest bubble.
func open(t *testing.T, add func(*shop) error) (*shop, *amqpxtest.Broker) {
	t.Helper()
	broker := amqpxtest.NewBroker()
	conn, err := amqpx.Connect(amqpxtest.URL, broker.Option())
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{conn: conn}
	if err := add(s); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, len(s.servers))
	s.start(context.Background(), ended)
	t.Cleanup(func() {
		if err := conn.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		for range s.servers {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	for _, server := range s.servers {
		if err := server.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return s, broker
}

func all(s *shop) error {
	for _, service := range []string{"inventory", "orders", "gateway"} {
		if err := s.add(service); err != nil {
			return err
		}
	}
	return nil
}

// request makes an HTTP request of a tenant.
func request(ctx context.Context, h http.Handler, tenant, key, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/orders", strings.NewReader(body))
	if id, get := strings.CutPrefix(body, "GET "); get {
		r = httptest.NewRequestWithContext(ctx, http.MethodGet, "/orders/"+id, nil)
	}
	r.Header.Set("Tenant", tenant)
	r.Header.Set("Idempotency-Key", key)
	r.Header.Set("Traceparent", traceparent(tenant))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// traceparent returns the header of a trace whose id is made of a tenant's name.
func traceparent(tenant string) string {
	const zeros = "00000000000000000000000000000001"
	id := fmt.Sprintf("%x", tenant)
	return "00-" + id + zeros[len(id):] + "-00f067aa0ba902b7-01"
}

// want compares a response; every part of want must be in its body.
func want(t *testing.T, w *httptest.ResponseRecorder, status int, want ...string) {
	t.Helper()
	if w.Code != status {
		t.Errorf("status %d, want %d: %s", w.Code, status, w.Body)
	}
	for _, part := range want {
		if !strings.Contains(w.Body.String(), part) {
			t.Errorf("the body is %s, want %s", w.Body, part)
		}
	}
}

const tv = `{"item": "tv", "count": 1}`

func TestOrders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, broker := open(t, all)
		ask := func(tenant, key, body string) *httptest.ResponseRecorder {
			return request(t.Context(), s.gateway, tenant, key, body)
		}
		want(t, ask("alice", "k1", tv), 200, `"id":"k1"`)
		want(t, ask("alice", "k1", tv), 200, `"id":"k1"`) // the same order
		want(t, ask("bob", "k1", tv), 200, `"id":"k1"`)   // an order of his own
		want(t, ask("alice", "", "GET k1"), 200, `"item":"tv"`)
		want(t, ask("carol", "", "GET k1"), 404, `"not_found"`)
		want(t, ask("", "k2", tv), 401, `"unauthenticated"`)
		want(t, ask("alice", "k3", `{"count": 0}`), 400, `"Field":"item"`, `"Description":"must be 1 to 100"`)
		want(t, ask("alice", "k3", `{"item": 1}`), 400, `"invalid_argument"`)
		want(t, ask("alice", "k4", `{"item": "tv", "count": 2}`), 400, `"OUT_OF_STOCK"`, `"left":"1"`)
		want(t, ask("alice", "k5", `{"item": "sofa", "count": 2}`), 404, `no item`)

		broker.FailResponses(api.Inventory, amqpxtest.Lose())
		want(t, ask("alice", "k6", tv), 504, `"deadline_exceeded"`)
		want(t, ask("alice", "k6", tv), 200, `"id":"k6"`) // the item was reserved before
		want(t, ask("alice", "k7", tv), 400, `"OUT_OF_STOCK"`, `"left":"0"`)

		s.stock.Count(true)
		busy := ask("alice", "k8", `{"item": "radio", "count": 1}`)
		want(t, busy, 503, `a service that this call needs is not available`)
		if after := busy.Header().Get("Retry-After"); after != "30" {
			t.Errorf("Retry-After %q", after)
		}
		s.stock.Count(false)
		want(t, ask("alice", "k8", `{"item": "radio", "count": 1}`), 200, `"id":"k8"`) // a failure is not stored
	})
}

// TestTrace: one trace goes from HTTP over both calls.
func TestTrace(t *testing.T) {
	t.Parallel()
	tenant := rand.Text()[:8]
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, all)
		want(t, request(t.Context(), s.gateway, tenant, "", tv), 200)
	})
	trace := strings.Split(traceparent(tenant), "-")
	parent, found := trace[2], 0
	byParent := make(map[string]tracetest.SpanStub)
	for _, span := range spans.GetSpans() {
		if span.SpanContext.TraceID().String() == trace[1] {
			byParent[span.Parent.SpanID().String()] = span
			found++
		}
	}
	for _, name := range []string{"server POST /orders", "client orders.create", "server orders.create", "client inventory.reserve", "server inventory.reserve"} {
		span := byParent[parent]
		if got := span.SpanKind.String() + " " + span.Name; got != name {
			t.Errorf("span %q, want %q", got, name)
		}
		parent = span.SpanContext.SpanID().String()
	}
	if found != 5 {
		t.Errorf("%d spans, want 5", found)
	}
}

// withInventory adds the gateway, the orders, and an inventory with another method.
func withInventory(reserve func(context.Context, api.ReserveRequest) (api.Reservation, error)) func(*shop) error {
	return func(s *shop) error {
		if err := s.serve(api.Inventory, func(server *amqpx.Server) error { return api.Reserve.Handle(server, reserve) }); err != nil {
			return err
		}
		if err := s.add("orders"); err != nil {
			return err
		}
		return s.add("gateway")
	}
}

// TestCancelAndDeadline: an HTTP request that is canceled, and one whose time runs out, end the
// handler two calls away.
func TestCancelAndDeadline(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limit  time.Duration // of the request
		cancel time.Duration // 0: never
		took   time.Duration
		status int
	}{
		"canceled":                  {limit: time.Minute, cancel: 300 * time.Millisecond, took: 300 * time.Millisecond, status: 499},
		"deadline of the request":   {limit: time.Second, took: time.Second, status: http.StatusGatewayTimeout},
		"deadline of the last call": {limit: time.Minute, took: 2 * time.Second, status: http.StatusGatewayTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var begun time.Time
				ended := make(chan time.Duration, 1)
				s, _ := open(t, withInventory(func(ctx context.Context, _ api.ReserveRequest) (api.Reservation, error) {
					if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > c.limit {
						t.Errorf("the deadline is %v", deadline)
					}
					<-ctx.Done()
					ended <- time.Since(begun)
					return api.Reservation{}, ctx.Err()
				}))
				begun = time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), c.limit)
				defer cancel()
				if c.cancel > 0 {
					time.AfterFunc(c.cancel, cancel)
				}
				want(t, request(ctx, s.gateway, "alice", "", tv), c.status)
				if took := time.Since(begun).Round(10 * time.Millisecond); took != c.took {
					t.Errorf("the request took %v, want %v", took, c.took)
				}
				if took := (<-ended).Round(10 * time.Millisecond); took != c.took {
					t.Errorf("the handler of the inventory ended after %v, want %v", took, c.took)
				}
			})
		})
	}
}

// TestOrdersWithoutBroker: the service of orders passes on what concerns its customer, and hides the
// rest. A function stands in for the inventory.
func TestOrdersWithoutBroker(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"placed":       {nil, `200`},
		"out of stock": {amqpx.Errorf(amqpx.CodeFailedPrecondition, "0 are left").WithDetail(amqpx.ErrorInfo{Reason: api.OutOfStock}), "400 failed_precondition OUT_OF_STOCK"},
		"gone":         {amqpxtest.Error(amqpx.CodeUnavailable, amqpx.DidNotRun, amqpxtest.Cause(amqpx.ErrUnroutable)), "503 unavailable "},
		"forbidden":    {amqpxtest.Error(amqpx.CodePermissionDenied, amqpx.DidNotRun, amqpxtest.Remote()), "500 internal "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inventory := amqpxtest.Caller(func(_ context.Context, req *amqpx.Request) ([]byte, error) {
				if req.Method != api.Reserve.Name() || !strings.HasPrefix(req.IdempotencyKey, `"alice" `) {
					t.Errorf("the inventory gets %+v", req)
				}
				return []byte(`{"left": 1}`), c.err
			})
			service := orders.New(inventory)
			h := gateway.New(amqpxtest.Caller(api.CreateOrder.Handler(service.Create)))
			w := request(t.Context(), h, "alice", "", tv)
			got := fmt.Sprint(w.Code)
			if w.Code != http.StatusOK {
				var p gateway.Problem
				if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
					t.Fatal(err)
				}
				got += fmt.Sprintf(" %s %s", p.Code, p.ErrorInfo.Reason)
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestGlue counts the lines of the glue, without imports, comments and empty lines.
func TestGlue(t *testing.T) {
	t.Parallel()
	total := 0
	for file, want := range map[string]int{"tenant/tenant.go": 19, "gateway/http.go": 21} {
		source, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		n, imports := 0, false
		for lines := bufio.NewScanner(source); lines.Scan(); {
			line := strings.TrimSpace(lines.Text())
			switch {
			case line == "import (":
				imports = true
			case imports:
				imports = line != ")"
			case line == "" || strings.HasPrefix(line, "//") || strings.HasPrefix(line, "package "):
			default:
				n++
			}
		}
		_ = source.Close()
		if n != want {
			t.Errorf("%s has %d lines, the documentation of the program says %d", file, n, want)
		}
		total += n
	}
	if total > 40 {
		t.Errorf("%d lines of glue", total)
	}
}
