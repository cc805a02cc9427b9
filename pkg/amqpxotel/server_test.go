package amqpxotel

import (
	"context"
	"errors"
	"maps"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// processed returns the attributes of every server span in these tests, and more.
func processed(more map[attribute.Key]any) map[attribute.Key]any {
	all := sent(map[attribute.Key]any{"messaging.operation.name": "process", "messaging.operation.type": "process"})
	maps.Copy(all, more)
	return all
}

func TestServerSpan(t *testing.T) {
	t.Parallel()
	r := record(t)
	var inside trace.SpanContext
	h := Server(append(r.options, WithQueue("q"))...)(func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		inside = trace.SpanContextFromContext(ctx)
		return []byte("hi"), nil
	})
	_, err := h(t.Context(), &amqpx.Request{
		Method: "greet", Body: []byte("world"), CorrelationID: "id", IdempotencyKey: "key",
		Idempotent: true, Redelivered: true, OneWay: true, Queued: 1500 * time.Microsecond,
	})
	if err != nil {
		t.Error(err)
	}
	span := r.only()
	if span.Name != "greet" || span.SpanKind != trace.SpanKindServer || span.Status.Code != codes.Unset {
		t.Errorf("span %q of kind %v with status %v", span.Name, span.SpanKind, span.Status)
	}
	if !inside.Equal(span.SpanContext) {
		t.Error("the handler's context does not have the span")
	}
	expect(t, span, processed(map[attribute.Key]any{
		"messaging.destination.name": "q", "messaging.message.id": "key", "amqpx.idempotent": true,
		"amqpx.redelivered": true, "amqpx.one_way": true, "amqpx.queue_wait_ms": 1.5, "amqpx.answer_bytes": int64(2),
	}))
}

// A span of a server is an error only if the server is to blame.
func TestServerSpanOfAFailedCall(t *testing.T) {
	t.Parallel()
	coded := func(c amqpx.Code) error { return amqpx.Errorf(c, "why") }
	for _, c := range []struct {
		err   error
		code  string
		fault bool
	}{
		{coded(amqpx.CodeInvalidArgument), "invalid_argument", false},
		{coded(amqpx.CodeNotFound), "not_found", false},
		{coded(amqpx.CodeAlreadyExists), "already_exists", false},
		{coded(amqpx.CodePermissionDenied), "permission_denied", false},
		{coded(amqpx.CodeUnauthenticated), "unauthenticated", false},
		{coded(amqpx.CodeResourceExhausted), "resource_exhausted", false},
		{coded(amqpx.CodeFailedPrecondition), "failed_precondition", false},
		{coded(amqpx.CodeAborted), "aborted", false},
		{coded(amqpx.CodeOutOfRange), "out_of_range", false},
		{coded(amqpx.CodeCanceled), "canceled", false},
		{context.Canceled, "canceled", false},
		{coded(amqpx.CodeUnknown), "unknown", true},
		{coded(amqpx.CodeDeadlineExceeded), "deadline_exceeded", true},
		{context.DeadlineExceeded, "deadline_exceeded", true},
		{coded(amqpx.CodeUnimplemented), "unimplemented", true},
		{coded(amqpx.CodeInternal), "internal", true},
		{coded(amqpx.CodeUnavailable), "unavailable", true},
		{coded(amqpx.CodeDataLoss), "data_loss", true},
		{errors.New("no code"), "internal", true},
	} {
		t.Run(c.err.Error(), func(t *testing.T) {
			t.Parallel()
			r := record(t)
			_, err := Server(r.options...)(answering(nil, c.err))(t.Context(), &amqpx.Request{
				Method: "greet", Body: []byte("world"), CorrelationID: "id",
			})
			if !errors.Is(err, c.err) {
				t.Errorf("the server got %v, want %v", err, c.err)
			}
			span := r.only()
			want := processed(map[attribute.Key]any{"rpc.response.status_code": c.code, "amqpx.queue_wait_ms": 0.0})
			if c.fault {
				want["error.type"] = c.code
			}
			expect(t, span, want)
			if is := span.Status.Code == codes.Error; is != c.fault {
				t.Errorf("status %+v, want an error: %v", span.Status, c.fault)
			}
		})
	}
}
