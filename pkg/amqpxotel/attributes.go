package amqpxotel

import (
	"errors"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"rabbitmq-rpc/pkg/amqpx"
)

// Attributes of this package; their meaning is in doc.go.
const (
	keyOutcome       = "amqpx.outcome"
	keyRemote        = "amqpx.remote"
	keyResponseBytes = "amqpx.answer_bytes"
	keyQueueWait     = "amqpx.queue_wait_ms"
	keyIdempotent    = "amqpx.idempotent"
	keyRedelivered   = "amqpx.redelivered"
	keyOneWay        = "amqpx.one_way"
	keyStream        = "amqpx.stream"
	keyItemsSent     = "amqpx.stream.items_sent"
	keyItemsReceived = "amqpx.stream.items_received"
)

// errUnwound is the error of a call that neither returned a response nor an error.
var errUnwound = errors.New("it panicked, or ended its goroutine")

// ofRequest appends the attributes of a request that clients and servers share.
func ofRequest(to []attribute.KeyValue, req *amqpx.Request) []attribute.KeyValue {
	to = append(to, semconv.MessagingMessageBodySize(len(req.Body)))
	if req.CorrelationID != "" {
		to = append(to, semconv.MessagingMessageConversationID(text(req.CorrelationID)))
	}
	if req.IdempotencyKey != "" {
		to = append(to, semconv.MessagingMessageID(text(req.IdempotencyKey)))
	}
	if req.Idempotent {
		to = append(to, attribute.Bool(keyIdempotent, true))
	}
	return to
}

// ofStream appends the attributes of the request of a stream. It returns false for a call.
func ofStream(to []attribute.KeyValue, req *amqpx.Request) ([]attribute.KeyValue, bool) {
	p, ok := req.StreamProgress()
	if !ok {
		return to, false
	}
	return append(
		to, attribute.Bool(keyStream, true),
		attribute.Int64(keyItemsSent, int64(p.Sent)),         //nolint:gosec // items of one stream.
		attribute.Int64(keyItemsReceived, int64(p.Received)), //nolint:gosec // items of one stream.
	), true
}

// remote reports whether a server sent the error.
func remote(err error) bool {
	coded, ok := errors.AsType[*amqpx.Error](err)
	return ok && coded.Remote()
}

// message returns the error's text without the code, which is a separate attribute.
func message(err error) string {
	if coded, ok := errors.AsType[*amqpx.Error](err); ok {
		return text(coded.Message())
	}
	return text(err.Error())
}
