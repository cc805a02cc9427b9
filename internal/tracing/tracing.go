// Package tracing exports the services' traces over OTLP, configured by OpenTelemetry's
// standard variables. Without an endpoint, tracing is off: there is no exporter, no goroutine
// and no middleware.
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

// stopTimeout limits how long Stop waits for a collector, and cutTimeout how long Stop then
// waits for the exporter to return.
const (
	stopTimeout = 5 * time.Second
	cutTimeout  = time.Second
)

// Service describes the service that makes the spans.
type Service struct {
	// Name is the service's name, unless OTEL_SERVICE_NAME sets another name.
	Name string
	// Queue is the request queue's name.
	Queue string
	// Broker is the broker's URL. Only the host and port appear in spans.
	Broker string
}

// Tracing is a service's tracing; nil means that tracing is off. Its methods are safe for
// concurrent use.
type Tracing struct {
	provider *sdktrace.TracerProvider
	exporter *exporter
	library  *complaints
	options  []amqpxotel.Option
}

// Start starts the tracing of a service, or returns nil if tracing is off. Start does not wait
// for a collector. Ignored settings are logged, even if tracing is off; errors of the SDK are
// logged from then on.
func Start(ctx context.Context, c *Config, s Service, log *zap.Logger) (*Tracing, error) {
	log = log.Named("tracing")
	c.warn(log)
	if !c.On() {
		return nil, nil //nolint:nilnil // off is no error.
	}
	ctx = context.WithoutCancel(ctx) // a signal to stop at this moment must not look like a wrong setting
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
	settings := []sdktrace.TracerProviderOption{
		sdktrace.WithBatcher(t.exporter),
		sdktrace.WithSpanProcessor(&t.exporter.counts),
		sdktrace.WithResource(resource),
	}
	ratio, parentBased := c.sampleRatio()
	if parentBased { // otherwise the SDK reads the sampler from the environment
		settings = append(settings, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())))
	}
	t.provider = sdktrace.NewTracerProvider(settings...)
	t.options = []amqpxotel.Option{
		amqpxotel.WithTracerProvider(t.provider),
		amqpxotel.WithPropagator(newPropagator(c.propagators())),
		amqpxotel.WithQueue(s.Queue),
		amqpxotel.WithBrokerURL(s.Broker),
	}
	if parentBased {
		t.options = append(t.options, amqpxotel.WithSampleRatio(ratio))
	}
	log.Info("calls are traced", zap.String("endpoint", c.endpoint()), zap.String("protocol", c.protocol()))
	return t, nil
}

// newExporter returns the exporter of a protocol; the exporter reads the other variables.
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

// Client returns the option that traces a client's calls, outside all middleware.
func (t *Tracing) Client() amqpx.ClientOption {
	if t == nil {
		return amqpx.WithMiddleware()
	}
	return amqpxotel.TraceClient(t.options...)
}

// Server returns the option that traces a server's calls. It must be the first option.
func (t *Tracing) Server() amqpx.Option {
	if t == nil {
		return amqpx.WithMiddleware()
	}
	return amqpx.WithMiddleware(amqpxotel.Server(t.options...))
}

// Stop exports the remaining spans and ends every goroutine. It waits at most stopTimeout and
// cutTimeout; after the end of ctx, at most cutTimeout. Lost spans are logged and are not an
// error: a collector that does not respond must not make a service fail.
func (t *Tracing) Stop(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	done := make(chan struct{})
	go func() { // ends after the exporter, which the cut below stops
		defer close(done)
		_ = t.provider.Shutdown(context.WithoutCancel(ctx))
	}()
	select {
	case <-done:
	case <-ctx.Done():
		_ = t.exporter.Shutdown(ctx) // cancels the export in progress, and makes the next fail
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
