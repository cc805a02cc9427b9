package amqpxotel

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// Server returns middleware for servers. Each run of a handler gets a span, a child of the
// caller's span. The handler's context carries the span, so calls made by the handler belong
// to the same trace. A request of a call that the caller does not trace
// ([amqpx.Request.Unsampled]) counts as the child of a span that is not sampled. The middleware
// should be the outermost. The middleware is safe for concurrent use, and servers with the same
// options may share it.
func Server(opts ...Option) amqpx.Middleware {
	return newTracing(trace.SpanKindServer, opts, semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName("process")).server
}

// server is the middleware of servers.
func (t *tracing) server(next amqpx.Handler) amqpx.Handler {
	return func(ctx context.Context, req *amqpx.Request) (response []byte, err error) {
		ctx = t.extract(ctx, req)
		marked := req.Unsampled && len(t.carries().traces) > 0
		if t.draws {
			switch t.decide(trace.SpanFromContext(ctx), marked) {
			case decidedUnsampled:
				return next(t.unsampled(ctx, false), req)
			case decidedByParent:
				return next(ctx, req)
			case decidedSampled:
			}
		} else if marked && !trace.SpanContextFromContext(ctx).IsValid() {
			ctx = t.unsampled(ctx, true) // the parent for the provider's sampler
		}
		ctx, span := t.start(ctx, req.Method)
		if !span.IsRecording() {
			return next(ctx, req)
		}
		err = errUnwound // unless next returns
		defer func() { endRun(span, req, response, err) }()
		return next(ctx, req)
	}
}

// endRun ends a server's span.
func endRun(span trace.Span, req *amqpx.Request, response []byte, err error) {
	const most = 9
	attributes := ofRequest(make([]attribute.KeyValue, 0, most), req)
	attributes, isStream := ofStream(attributes, req)
	if !isStream {
		attributes = append(attributes, attribute.Float64(keyQueueWait, float64(req.Queued)/float64(time.Millisecond)))
	}
	if req.Redelivered {
		attributes = append(attributes, attribute.Bool(keyRedelivered, true))
	}
	if req.OneWay {
		attributes = append(attributes, attribute.Bool(keyOneWay, true))
	}
	switch {
	case err == nil && isStream:
	case err == nil:
		attributes = append(attributes, attribute.Int(keyResponseBytes, len(response)))
	default:
		code := codeForCaller(err)
		attributes = append(attributes, semconv.RPCResponseStatusCode(string(code)))
		if isFault(code) {
			attributes = append(attributes, semconv.ErrorTypeKey.String(string(code)))
			span.SetStatus(codes.Error, message(err))
		}
	}
	span.SetAttributes(attributes...)
	span.End()
}

// codeForCaller returns the code that the server sends: internal for an error without a code.
func codeForCaller(err error) amqpx.Code {
	code := amqpx.CodeOf(err)
	if _, coded := errors.AsType[*amqpx.Error](err); code == amqpx.CodeUnknown && !coded {
		return amqpx.CodeInternal
	}
	return code
}

// isFault reports whether the server, and not the caller, is to blame. The list is from the
// conventions for gRPC (https://opentelemetry.io/docs/specs/semconv/rpc/grpc/).
func isFault(code amqpx.Code) bool {
	switch code {
	case amqpx.CodeUnknown, amqpx.CodeDeadlineExceeded, amqpx.CodeUnimplemented,
		amqpx.CodeInternal, amqpx.CodeUnavailable, amqpx.CodeDataLoss:
		return true
	default:
		return false
	}
}
