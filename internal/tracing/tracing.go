// Package tracing exports the services' traces over OTLP, as OpenTelemetry's standard
// variables say. Without an endpoint among them it does nothing: no exporter, no goroutine,
// no middleware.
package tracing

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/zap"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxotel"
)

// stopTimeout bounds what Stop waits for a collector, cutTimeout what it then waits for the
// exporter to give up.
const (
	stopTimeout = 5 * time.Second
	cutTimeout  = time.Second
)

// Service says whose spans they are.
type Service struct {
	// Name is the service's name, unless OTEL_SERVICE_NAME gives another.
	Name string
	// Queue is the request queue's name.
	Queue string
	// Broker is the broker's URL. Only its host and port go into spans.
	Broker string
}

// Tracing is a service's tracing; nil is tracing that is off. Its methods are safe for any
// number of goroutines.
type Tracing struct {
	provider *sdktrace.TracerProvider
	exporter *exporter
	library  *complaints
	options  []amqpxotel.Option
}

// Start starts the tracing of a service, or returns nil if it is off. It does not wait for
// a collector. What the settings hold and is ignored goes to the log, also while tracing is
// off, and what the SDK itself complains of from then on.
func Start(ctx context.Context, c *Config, s Service, log *zap.Logger) (*Tracing, error) {
	log = log.Named("tracing")
	c.warn(log)
	if !c.On() {
		return nil, nil //nolint:nilnil // off is no error.
	}
	ctx = context.WithoutCancel(ctx) // a service that is told to stop meanwhile is not badly set
	secrets := append(c.Headers.secrets(), c.TracesHeaders.secrets()...)
	library := newComplaints(func(f ...zap.Field) { log.Warn("the tracing library complains", f...) }, secrets...)
	otel.SetLogger(newLibraryLog(library))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(library.hear))
	client, err := newExporter(ctx, c.protocol())
	if err != nil {
		return nil, lifecycle.ConfigError(fmt.Errorf("export traces: %s", withoutSecrets(err.Error(), secrets)))
	}
	t := &Tracing{
		exporter: &exporter{SpanExporter: client, log: log, failed: newComplaints(func(f ...zap.Field) {
			log.Warn("spans could not be exported", f...)
		}, secrets...)},
		library: library,
	}
	resource, err := newResource(ctx, s.Name)
	if err != nil {
		library.hear(err)
	}
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(t.exporter),
		sdktrace.WithSpanProcessor(&t.exporter.counts),
		sdktrace.WithResource(resource),
	)
	t.options = []amqpxotel.Option{
		amqpxotel.WithTracerProvider(t.provider),
		amqpxotel.WithPropagator(newPropagator(c.propagators())),
		amqpxotel.WithQueue(s.Queue),
		amqpxotel.WithBrokerURL(s.Broker),
	}
	log.Info("calls are traced", zap.String("endpoint", c.endpoint()), zap.String("protocol", c.protocol()))
	return t, nil
}

// newExporter makes the exporter of a protocol; it reads the rest of the variables.
func newExporter(ctx context.Context, protocol string) (*otlptrace.Exporter, error) {
	if protocol == protocolGRPC {
		return otlptracegrpc.New(ctx)
	}
	return otlptracehttp.New(ctx)
}

func newPropagator(names []string) propagation.TextMapPropagator {
	var list []propagation.TextMapPropagator
	for _, name := range names {
		switch name {
		case traceContext:
			list = append(list, propagation.TraceContext{})
		case baggage:
			list = append(list, propagation.Baggage{})
		}
	}
	return propagation.NewCompositeTextMapPropagator(list...)
}

// Client returns the option that traces a client's calls. It comes first among options, so
// that its middleware is outermost.
func (t *Tracing) Client() amqpx.Option { return t.option(amqpxotel.Client) }

// Server returns the option that traces a server's calls. It comes first among options.
func (t *Tracing) Server() amqpx.Option { return t.option(amqpxotel.Server) }

func (t *Tracing) option(middleware func(...amqpxotel.Option) amqpx.Middleware) amqpx.Option {
	if t == nil {
		return amqpx.WithMiddleware()
	}
	return amqpx.WithMiddleware(middleware(t.options...))
}

// Stop exports what is left and ends every goroutine. It waits no longer than stopTimeout
// and a moment; when ctx ends, only that moment. What is lost is logged and is no error: a
// collector that does not answer must not make a service fail.
func (t *Tracing) Stop(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	done := make(chan struct{})
	go func() { // ends when the exporter has, which the cut below sees to
		defer close(done)
		_ = t.provider.Shutdown(context.WithoutCancel(ctx))
	}()
	select {
	case <-done:
	case <-ctx.Done():
		_ = t.exporter.Shutdown(ctx) // cuts off the export that is under way, and fails the next
		timer := time.NewTimer(cutTimeout)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
		}
	}
	t.exporter.sum()
	t.library.flush()
}
