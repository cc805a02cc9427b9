package amqpxotel

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// Client returns middleware for clients. Each call gets a span, and the span's context is sent
// with the request. The middleware should be the outermost, to include the time of other
// middleware in the span and to give other middleware the span's id for logging; [TraceClient]
// makes the middleware the outermost. The middleware is safe for concurrent use, and clients with
// the same options may share it.
func Client(opts ...Option) amqpx.Middleware {
	return newClientTracing(opts).client
}

// TraceClient returns an option for clients with the middleware of [Client]. With
// [WithSampleRatio] the option is cheaper than the middleware alone: a call that is not drawn does
// not pass the middleware, and [amqpx.Client.Go] needs no goroutine for such a call. The decision
// is made with the caller's context.
func TraceClient(opts ...Option) amqpx.ClientOption {
	t := newClientTracing(opts)
	if !t.draws {
		return amqpx.WithTracing(t.client, nil)
	}
	t.early = true
	return amqpx.WithTracing(t.client, t.decideEarly)
}

func newClientTracing(opts []Option) *tracing {
	return newTracing(trace.SpanKindClient, opts, semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("send"))
}

// client is the middleware of clients.
func (t *tracing) client(next amqpx.Handler) amqpx.Handler {
	return func(ctx context.Context, req *amqpx.Request) (response []byte, err error) {
		if t.draws {
			switch span := trace.SpanFromContext(ctx); t.decide(span, req.Unsampled) {
			case decidedUnsampled:
				return next(ctx, t.injectUnsampled(ctx, span, req))
			case decidedByParent:
				return next(ctx, t.inject(ctx, req))
			case decidedSampled:
			}
		}
		traced, span := t.start(ctx, req.Method)
		sent := t.inject(traced, req)
		if !span.IsRecording() {
			return next(ctx, sent) // no code below reads the span, and waiting on the caller's own ctx is cheaper
		}
		err = errUnwound // unless next returns
		defer func() { endCall(span, req, response, err) }()
		return next(traced, sent)
	}
}

// endCall ends a client's span.
func endCall(span trace.Span, req *amqpx.Request, response []byte, err error) {
	const most = 9
	attributes := ofRequest(make([]attribute.KeyValue, 0, most), req)
	if req.OneWay {
		attributes = append(attributes, attribute.Bool(keyOneWay, true))
	}
	attributes = append(attributes, attribute.String(keyOutcome, amqpx.OutcomeOf(err).String()))
	if err == nil {
		attributes = append(attributes, attribute.Int(keyResponseBytes, len(response)))
	} else {
		code := string(amqpx.CodeOf(err))
		attributes = append(attributes, semconv.RPCResponseStatusCode(code), semconv.ErrorTypeKey.String(code),
			attribute.Bool(keyRemote, remote(err)))
		span.SetStatus(codes.Error, message(err))
	}
	span.SetAttributes(attributes...)
	span.End()
}
