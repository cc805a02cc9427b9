package amqpxotel

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// Client returns middleware for clients: each call gets a span, whose context travels with
// the request. It belongs outermost, so that what other middleware takes is in the span and
// what it logs can name it. It is safe for any number of goroutines, and for several
// clients that share the same options.
func Client(opts ...Option) amqpx.Middleware {
	t := newTracing(trace.SpanKindClient, opts, semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("send"))
	return func(next amqpx.Handler) amqpx.Handler {
		return func(ctx context.Context, req *amqpx.Request) (answer []byte, err error) {
			traced, span := t.start(ctx, req.Method)
			sent := t.inject(traced, req)
			if !span.IsRecording() {
				return next(ctx, sent) // nobody asks it for the span, and the client waits on it more cheaply
			}
			err = errUnwound // unless next returns
			defer func() { endCall(span, req, answer, err) }()
			return next(traced, sent)
		}
	}
}

// endCall ends a client's span.
func endCall(span trace.Span, req *amqpx.Request, answer []byte, err error) {
	const most = 8
	attributes := ofRequest(make([]attribute.KeyValue, 0, most), req)
	attributes = append(attributes, attribute.String(keyOutcome, amqpx.OutcomeOf(err).String()))
	if err == nil {
		attributes = append(attributes, attribute.Int(keyAnswerBytes, len(answer)))
	} else {
		code := string(amqpx.CodeOf(err))
		attributes = append(attributes, semconv.RPCResponseStatusCode(code), semconv.ErrorTypeKey.String(code),
			attribute.Bool(keyRemote, remote(err)))
		span.SetStatus(codes.Error, message(err))
	}
	span.SetAttributes(attributes...)
	span.End()
}
