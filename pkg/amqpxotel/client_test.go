package amqpxotel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// sent returns the attributes of every client span in these tests, and more.
func sent(more map[attribute.Key]any) map[attribute.Key]any {
	all := map[attribute.Key]any{
		"rpc.system.name": "amqpx", "rpc.method": "greet", "messaging.system": "rabbitmq",
		"messaging.operation.name": "send", "messaging.operation.type": "send",
		"messaging.message.conversation_id": "id", "messaging.message.body.size": int64(5),
	}
	maps.Copy(all, more)
	return all
}

func TestClientSpan(t *testing.T) {
	t.Parallel()
	r := record(t)
	call := Client(append(r.options, WithQueue("q"), WithBrokerURL("amqp://u:hunter2@broker/v"))...)(answering([]byte("hello"), nil))
	response, err := call(t.Context(), &amqpx.Request{
		Method: "greet", Body: []byte("world"), CorrelationID: "id", IdempotencyKey: "key", Idempotent: true,
	})
	if string(response) != "hello" || err != nil {
		t.Errorf("got %q, %v", response, err)
	}
	span := r.only()
	if span.Name != "greet" || span.SpanKind != trace.SpanKindClient || span.Status.Code != codes.Unset {
		t.Errorf("span %q of kind %v with status %v", span.Name, span.SpanKind, span.Status)
	}
	if s := span.InstrumentationScope; s.Name != scope || s.SchemaURL != semconv.SchemaURL {
		t.Errorf("scope %+v", s)
	}
	expect(t, span, sent(map[attribute.Key]any{
		"messaging.destination.name": "q", "server.address": "broker", "server.port": int64(5672),
		"messaging.message.id": "key", "amqpx.idempotent": true, "amqpx.outcome": "ran", "amqpx.answer_bytes": int64(5),
	}))
}

func TestClientSpanOfAFailedCall(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err                        error
		code, outcome, description string
	}{
		"coded":    {amqpx.Errorf(amqpx.CodeNotFound, "no such thing"), "not_found", "ran", "no such thing"},
		"wrapped":  {fmt.Errorf("outer: %w", amqpx.Errorf(amqpx.CodeAborted, "inner")), "aborted", "ran", "inner"},
		"deadline": {context.DeadlineExceeded, "deadline_exceeded", "may have run", "context deadline exceeded"},
		"other":    {errors.New("odd"), "unknown", "may have run", "odd"},
		"garbage":  {amqpx.Errorf(amqpx.CodeInternal, "bad \xff byte"), "internal", "ran", "bad \uFFFD byte"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := record(t)
			_, err := Client(r.options...)(answering(nil, c.err))(t.Context(), &amqpx.Request{
				Method: "greet", Body: []byte("world"), CorrelationID: "id",
			})
			if !errors.Is(err, c.err) {
				t.Errorf("the caller got %v, want %v", err, c.err)
			}
			span := r.only()
			if span.Status.Code != codes.Error || span.Status.Description != c.description {
				t.Errorf("status %+v, want an error with %q", span.Status, c.description)
			}
			expect(t, span, sent(map[attribute.Key]any{
				"rpc.response.status_code": c.code, "error.type": c.code, "amqpx.outcome": c.outcome, "amqpx.remote": false,
			}))
		})
	}
}

// A call that panics or exits its goroutine ends its span, and unwinds as without middleware.
func TestSpanOfACallThatUnwinds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(){"panic": func() { panic("boo") }, "goexit": runtime.Goexit} {
		for side, middleware := range map[string]func(...Option) amqpx.Middleware{"client": Client, "server": Server} {
			t.Run(name+" "+side, func(t *testing.T) {
				t.Parallel()
				r := record(t)
				h := middleware(r.options...)(func(context.Context, *amqpx.Request) ([]byte, error) {
					end()
					return nil, nil
				})
				unwound := make(chan any)
				go func() { // ends with the handler
					defer func() { unwound <- recover() }()
					_, _ = h(context.Background(), &amqpx.Request{Method: "greet"})
				}()
				if v := <-unwound; (v == "boo") != (name == "panic") {
					t.Errorf("recovered %v", v)
				}
				if span := r.only(); span.Status.Code != codes.Error || span.Status.Description != errUnwound.Error() {
					t.Errorf("status %+v", span.Status)
				}
			})
		}
	}
}

func TestTextsAreBoundedAndValid(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "short", strings.Repeat("x", mostText), strings.Repeat("ü", mostText), strings.Repeat("\x80", 2*mostText),
		"x" + strings.Repeat("€", mostText), strings.Repeat("\xff", mostText),
	} {
		got := text(s)
		if !utf8.ValidString(got) || len(got) > 3*mostText+len("…") {
			t.Errorf("%q became %q", s, got)
		}
		if len(s) <= mostText && utf8.ValidString(s) && got != s {
			t.Errorf("%q became %q", s, got)
		}
		if len(s) > mostText && !strings.HasSuffix(got, "…") {
			t.Errorf("%q does not say that it was cut", got)
		}
	}
}

// The cache of start options is bounded, however many methods are called.
func TestManyMethods(t *testing.T) {
	t.Parallel()
	r := record(t)
	tr := newTracing(trace.SpanKindClient, r.options)
	for i := range 2 * mostStarts {
		if s := tr.startOf(fmt.Sprint(i)); s.name != fmt.Sprint(i) {
			t.Fatalf("method %d has the span name %q", i, s.name)
		}
	}
	kept := 0
	tr.starts.Range(func(any, any) bool { kept++; return true })
	if kept != mostStarts {
		t.Errorf("%d are kept, want %d", kept, mostStarts)
	}
}

func TestBrokerURL(t *testing.T) {
	t.Parallel()
	for broker, want := range map[string]struct {
		host string
		port int64
	}{
		"amqp://u:p@h:7/v": {"h", 7}, "amqps://h/": {"h", 5671}, "amqp://[::1]": {"::1", 5672},
		"amqp://h/ ,": {"h", 5672}, "amqp://a/,amqp://b/": {}, "": {}, "nonsense": {}, "amqp://u:%zz@h/": {}, "amqp://h:x/": {},
	} {
		r := record(t)
		_, _ = Client(append(r.options, WithBrokerURL(broker))...)(answering(nil, nil))(t.Context(), &amqpx.Request{Method: "m"})
		got := attributes(r.only())
		host, _ := got["server.address"].(string)
		port, _ := got["server.port"].(int64)
		if host != want.host || port != want.port {
			t.Errorf("%q gives %q and %d, want %+v", broker, host, port, want)
		}
	}
}
