// Package amqpxotel traces calls of [rabbitmq-rpc/pkg/amqpx] with OpenTelemetry.
//
// [TraceClient] returns an option for clients, [Server] middleware for servers, which should be the
// outermost:
//
//	client, err := amqpx.NewClient(url, amqpxotel.TraceClient())
//	server, err := amqpx.NewServer(url, amqpx.WithMiddleware(amqpxotel.Server()))
//
// To trace a part of the calls, give both [WithSampleRatio], and the provider the sampler
// ParentBased(AlwaysSample()).
//
// A client's span lasts until the call settles and includes every re-send. The trace context
// travels in the application headers traceparent, tracestate and baggage
// (https://www.w3.org/TR/trace-context/), whether or not the call is sent in a batch, and the
// handler's span is a child of the client's span. A request that is delivered twice has two
// child spans. Unreadable headers are ignored; unreadable baggage is reported to
// OpenTelemetry's global error handler once per process.
//
// # Spans
//
// A span's name is the method's name and its kind is CLIENT or SERVER, as in the conventions
// for RPC (https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/). Spans also have the
// attributes of the conventions for RabbitMQ
// (https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/):
//
//	rpc.system.name                    "amqpx"
//	rpc.method                         the method
//	rpc.response.status_code           the code of a call that failed, such as "not_found"
//	error.type                         the same, if the span's status is an error
//	messaging.system                   "rabbitmq"
//	messaging.operation.name, .type    "send" at the client, "process" at the server
//	messaging.destination.name         the request queue, see [WithQueue]
//	messaging.message.conversation_id  the correlation id
//	messaging.message.id               the idempotency key, if there is one
//	messaging.message.body.size        bytes of the request
//	server.address, server.port        the broker, see [WithBrokerURL]
//
// and attributes of this package:
//
//	amqpx.outcome        "ran", "may have run" or "did not run"; client only
//	amqpx.remote         for a failed call, whether a server sent the error; client only
//	amqpx.answer_bytes   bytes of the response, if the call did not fail
//	amqpx.queue_wait_ms  how long the request waited in the server for a worker; server only
//	amqpx.idempotent     true if the caller declared the call safe to run twice
//	amqpx.redelivered    true if an earlier run may have happened; server only
//	amqpx.one_way        true if the caller wants no response; server only
//	amqpx.stream         true for a stream, which is one span at each side, from its opening to its
//	                     end: at the client to the end of the stream, at the server of the handler
//	amqpx.stream.items_sent, amqpx.stream.items_received
//	                     the items of a stream that this side sent, and that its application took
//
// Neither arguments nor results are recorded. The description of a span's status is the
// error's text, cut at 256 bytes. A server's span also has the text of an error without a
// code, which the caller does not see.
//
// A client's span has the status Error if the call failed in any way. A server's span has the
// status Error only if the server is to blame, by the list for gRPC: unknown,
// deadline_exceeded, unimplemented, internal, unavailable, data_loss.
//
// # Limits
//
// A server has no span for a request that is refused without being run, nor for a duplicate
// that gets a stored response. A response beyond the size limit is refused only after the span
// has ended.
//
// # Cost
//
// With [WithSampleRatio], a call that is not drawn costs about 0.1 µs on each side. The decision
// takes eight bytes of a message, or two in a batch. Without [WithSampleRatio] every call makes
// ids and asks the sampler, about 1 µs on each side, and has headers.
//
// Without an SDK, and for calls that are not sampled, nothing is recorded, but a valid trace
// context is still propagated. The headers cost calls that are not batched an eighth of their
// throughput. A call that passes middleware and is made with [amqpx.Client.Go] takes a goroutine.
package amqpxotel
