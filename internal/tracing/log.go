package tracing

import (
	"context"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxotel"
)

// Logged returns a logging middleware, such as [amqpx.AccessLog], whose lines include trace_id
// and span_id. The middleware must be inside [Tracing.Server]. Lines of a call that was not drawn
// have no ids, because the ids would name no trace. While tracing is off, no line has ids.
func (t *Tracing) Logged(log *zap.Logger, of func(*zap.Logger) amqpx.Middleware) amqpx.Middleware {
	if t == nil {
		return of(log)
	}
	return func(next amqpx.Handler) amqpx.Handler {
		plain := of(log)(next)
		return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			if amqpxotel.Unsampled(ctx) {
				return plain(ctx, req)
			}
			span := trace.SpanContextFromContext(ctx)
			if !span.IsValid() {
				return plain(ctx, req)
			}
			// Lazy: most calls log nothing.
			named := log.WithLazy(zap.Stringer("trace_id", span.TraceID()), zap.Stringer("span_id", span.SpanID()))
			return of(named)(next)(ctx, req)
		}
	}
}
