package amqpxotel

import (
	"errors"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"rabbitmq-rpc/pkg/amqpx"
)

// Attributes of our own; doc.go says what they mean.
const (
	keyOutcome     = "amqpx.outcome"
	keyRemote      = "amqpx.remote"
	keyAnswerBytes = "amqpx.answer_bytes"
	keyQueueWait   = "amqpx.queue_wait_ms"
	keyIdempotent  = "amqpx.idempotent"
	keyRedelivered = "amqpx.redelivered"
	keyOneWay      = "amqpx.one_way"
)

// errUnwound is what a call came to that neither returned an answer nor an error.
var errUnwound = errors.New("it panicked, or ended its goroutine")

// ofRequest appends what both sides say about a request.
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

// remote reports whether a server sent the error.
func remote(err error) bool {
	coded, ok := errors.AsType[*amqpx.Error](err)
	return ok && coded.Remote()
}

// message is the error's text without its code, which is an attribute.
func message(err error) string {
	if coded, ok := errors.AsType[*amqpx.Error](err); ok {
		return text(coded.Message())
	}
	return text(err.Error())
}
