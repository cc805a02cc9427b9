// Command shop has three services: an HTTP gateway calls the service of orders, which calls the
// inventory. Without arguments one process has them all, on one connection; arguments name the
// services of a process:
//
//	shop                    all of them
//	shop gateway            one of them
//	shop orders inventory   two of them
//
// Requests and responses have types and are checked (package api), errors have details and hints for
// their caller (inventory, orders), the tenant of a request goes with every call (tenant), one trace
// goes from HTTP over both calls, and a canceled HTTP request ends the handlers of both services.
//
// The glue, which is neither types nor business logic nor the wiring in this file, is 40 lines: the
// tenant's way from service to service (tenant.go, 19 lines), and from the result of a call to HTTP
// (gateway/http.go, 21 lines: status, details and Retry-After; the span of a request). A test
// counts them. The tests need no broker and took 0.4 to 0.8 s beside other work (shop_test.go).
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"rabbitmq-rpc/examples/shop/api"
	"rabbitmq-rpc/examples/shop/gateway"
	"rabbitmq-rpc/examples/shop/inventory"
	"rabbitmq-rpc/examples/shop/orders"
	"rabbitmq-rpc/examples/shop/tenant"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxotel"
)

// shop is the services of a process.
type shop struct {
	conn    *amqpx.Connection
	servers []*amqpx.Server
	gateway http.Handler // nil: another process has it
	stock   *inventory.Service
}

// add adds a service.
func (s *shop) add(service string) error {
	switch service {
	case "inventory":
		s.stock = inventory.New(map[string]int{"tv": 3, "radio": 10})
		return s.serve(api.Inventory, s.stock.Register)
	case "orders":
		client, err := s.client(api.Inventory)
		if err != nil {
			return err
		}
		return s.serve(api.Orders, orders.New(client).Register)
	case "gateway":
		client, err := s.client(api.Orders)
		s.gateway = gateway.New(client)
		return err
	default:
		return fmt.Errorf("no service %q", service)
	}
}

// client returns a client of a service.
func (s *shop) client(queue string) (*amqpx.Client, error) {
	return s.conn.NewClient(amqpx.WithQueue(amqpx.Queue{Name: queue}), amqpxotel.TraceClient(), amqpx.WithMiddleware(tenant.Carry))
}

// serve adds a server with the methods of a service. Its idempotency keys belong to a tenant.
func (s *shop) serve(queue string, register func(*amqpx.Server) error) error {
	server, err := s.conn.NewServer(amqpx.WithQueue(amqpx.Queue{Name: queue}), amqpx.WithMiddleware(amqpxotel.Server(), tenant.Carry),
		amqpx.WithDedupScope(func(ctx context.Context, _ *amqpx.Request) string { return tenant.Of(ctx) }))
	if err != nil {
		return err
	}
	s.servers = append(s.servers, server)
	return register(server)
}

// start starts the servers, which report their ends.
func (s *shop) start(ctx context.Context, ended chan<- error) {
	for _, server := range s.servers {
		go func() { ended <- server.Serve(ctx) }() // ends with the connection
	}
}

// run runs the services until ctx ends.
func run(ctx context.Context, services []string) (err error) {
	traces, err := startTraces(ctx)
	if err != nil {
		return err
	}
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672")
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	conn, err := amqpx.Connect(url, amqpx.WithName("shop"), amqpx.WithSlog(logger)) //nolint:contextcheck // it lives until Shutdown.
	if err != nil {
		return err
	}
	s := &shop{conn: conn}
	for _, service := range services {
		if err := s.add(service); err != nil { //nolint:contextcheck // servers and clients live as long as the connection.
			return err
		}
	}
	lasting, ended := context.WithoutCancel(ctx), make(chan error, len(services))
	s.start(lasting, ended)
	web := &http.Server{Addr: cmp.Or(os.Getenv("HTTP_ADDR"), "127.0.0.1:8080"), Handler: s.gateway, ReadHeaderTimeout: 5 * time.Second}
	if s.gateway != nil {
		go func() { ended <- web.ListenAndServe() }() // ends with Shutdown
	}
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	closing, cancel := context.WithTimeout(lasting, 20*time.Second)
	defer cancel()
	return errors.Join(err, web.Shutdown(closing), conn.Shutdown(closing), traces.Shutdown(closing))
}

// startTraces exports spans if OTEL_EXPORTER_OTLP_ENDPOINT names a collector, such as
// http://localhost:4318.
func startTraces(ctx context.Context) (*sdktrace.TracerProvider, error) {
	var options []sdktrace.TracerProviderOption
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" {
		exporter, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, err
		}
		options = append(options, sdktrace.WithBatcher(exporter))
	}
	provider := sdktrace.NewTracerProvider(options...)
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return provider, nil
}

func main() {
	services := os.Args[1:]
	if len(services) == 0 {
		services = []string{"inventory", "orders", "gateway"}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, services)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}
