// Package amqpxotel traces the calls of [rabbitmq-rpc/pkg/amqpx] with OpenTelemetry.
//
// [Client] and [Server] are middleware, to be put outermost:
//
//	client, err := amqpx.NewClient(url, amqpx.WithMiddleware(amqpxotel.Client()))
//	server, err := amqpx.NewServer(url, amqpx.WithMiddleware(amqpxotel.Server()))
//
// A client's span lasts until its call settles, over every re-send. Its context travels
// in the application headers traceparent, tracestate and baggage
// (https://www.w3.org/TR/trace-context/), whether the call travels alone or in a batch,
// and the span of the handler is its child. A request that is handed out twice has two
// such children. A header that cannot be read is ignored; of baggage, OpenTelemetry's global
// error handler is told once in a process.
//
// # Spans
//
// A span's name is the method's, its kind CLIENT or SERVER, after the conventions for RPC
// (https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/), with what those for
// RabbitMQ add (https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/):
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
// and attributes of our own:
//
//	amqpx.outcome        "ran", "may have run" or "did not run"; client only
//	amqpx.remote         whether a server sent the error, of a call that failed; client only
//	amqpx.answer_bytes   bytes of the answer, if the call did not fail
//	amqpx.queue_wait_ms  how long the request waited in the server for a worker; server only
//	amqpx.idempotent     true if the caller declared the call safe to run twice
//	amqpx.redelivered    true if an earlier run may have happened; server only
//	amqpx.one_way        true if the caller wants no answer; server only
//
// Neither arguments nor answers are recorded. The description of a span's status is the
// error's text, cut at 256 bytes: at a server also that of an error without a code, which
// the caller does not see.
//
// A client's span has the status Error if its call failed in any way. A server's has it
// only if the server is to blame, by the list for gRPC: unknown, deadline_exceeded,
// unimplemented, internal, unavailable, data_loss.
//
// # What it does not see
//
// Requests that a server refuses without running them have no span there, and neither
// have duplicates that it answers from its store. An answer beyond the size limit is
// refused only after the span has ended.
//
// # Cost
//
// Without an SDK, and for calls that are not sampled, nothing is recorded, but a valid
// context is still handed on. Headers take calls that travel alone an eighth of their
// throughput. With middleware a call made with [amqpx.Client.Go] takes a goroutine.
package amqpxotel
