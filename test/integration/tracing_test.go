//go:build integration

package integration

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxotel"
	"rabbitmq-rpc/test/internal/rig"
)

// traced is one side with its own tracing, separate from the other side as in two processes.
type traced struct {
	exporter *tracetest.InMemoryExporter
	options  []amqpxotel.Option
}

func traceSide(t *testing.T) *traced {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	return &traced{exporter, []amqpxotel.Option{
		amqpxotel.WithTracerProvider(provider),
		amqpxotel.WithPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
	}}
}

func (s *traced) client() amqpx.Option { return amqpx.WithMiddleware(amqpxotel.Client(s.options...)) }

func (s *traced) server() amqpx.Option { return amqpx.WithMiddleware(amqpxotel.Server(s.options...)) }

// byCall returns the spans by correlation ID.
func (s *traced) byCall(t *testing.T) map[string]tracetest.SpanStub {
	t.Helper()
	all := make(map[string]tracetest.SpanStub)
	for _, span := range s.exporter.GetSpans() {
		id, _ := ofSpan(span, "messaging.message.conversation_id").(string)
		if _, twice := all[id]; twice || id == "" {
			t.Errorf("call %q has two spans on one side", id)
		}
		all[id] = span
	}
	return all
}

// ofSpan returns an attribute of a span, or nil if the attribute is absent.
func ofSpan(s tracetest.SpanStub, name attribute.Key) any {
	for _, kv := range s.Attributes {
		if kv.Key == name {
			return kv.Value.AsInterface()
		}
	}
	return nil
}

// isChild checks that a server's span is a child of the client's span of the same call.
func isChild(t *testing.T, id string, server, client tracetest.SpanStub) {
	t.Helper()
	if server.SpanKind != trace.SpanKindServer || client.SpanKind != trace.SpanKindClient {
		t.Errorf("call %s: spans of kinds %v and %v", id, server.SpanKind, client.SpanKind)
	}
	if server.SpanContext.TraceID() != client.SpanContext.TraceID() ||
		server.Parent.SpanID() != client.SpanContext.SpanID() || !server.Parent.IsRemote() {
		t.Errorf("call %s: the server's span is no child of the client's", id)
	}
}

func TestTracingOfSingleCalls(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	front, back := traceSide(t), traceSide(t)
	server := r.Serve(rig.Methods{"echo": echo}, back.server())
	client := r.Ready(front.client())
	const calls = 10
	for range calls {
		rig.Call(t, client, "echo", []byte("x"), amqpx.Idempotent(), amqpx.WithHeader(map[string]any{"tenant": int64(7)}))
	}
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if n := client.Stats().Batched; n != 0 {
		t.Errorf("%d calls travelled together", n)
	}
	clients, servers := front.byCall(t), back.byCall(t)
	if len(clients) != calls || len(servers) != calls {
		t.Fatalf("%d and %d spans, want %d of each side", len(clients), len(servers), calls)
	}
	traces := make(map[trace.TraceID]bool)
	for id, c := range clients {
		isChild(t, id, servers[id], c)
		traces[c.SpanContext.TraceID()] = true
		if ofSpan(servers[id], "amqpx.idempotent") != true || ofSpan(servers[id], "messaging.message.id") != id ||
			ofSpan(c, "amqpx.outcome") != "ran" {
			t.Errorf("attributes %v, and %v", c.Attributes, servers[id].Attributes)
		}
		if wait, ok := ofSpan(servers[id], "amqpx.queue_wait_ms").(float64); !ok || wait < 0 {
			t.Errorf("waited %v ms", wait)
		}
	}
	if len(traces) != calls {
		t.Errorf("%d calls are in %d traces", calls, len(traces))
	}
}

func TestTracingOfCallsInBatches(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	front, back := traceSide(t), traceSide(t)
	server := r.Serve(rig.Methods{"echo": echo}, back.server())
	client := r.Ready(front.client())
	openLane(t, client)
	everyResponseIsMine(t, client, 64, 10)
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	sent, got := client.Stats(), server.Stats()
	if sent.Batched == 0 || got.Batched != sent.Batched {
		t.Errorf("%d calls left in batches, %d came in them", sent.Batched, got.Batched)
	}
	clients, servers := front.byCall(t), back.byCall(t)
	if uint64(len(clients)) != sent.OK || len(servers) != len(clients) {
		t.Fatalf("%d and %d spans, want %d of each side", len(clients), len(servers), sent.OK)
	}
	for id, c := range clients {
		isChild(t, id, servers[id], c)
	}
}

// TestTracingOfNestedCalls: a handler's call is a grandchild.
func TestTracingOfNestedCalls(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	front, middle := traceSide(t), traceSide(t)
	inner := r.Client(middle.client())
	r.Serve(rig.Methods{
		"echo": echo,
		"outer": func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			return inner.Call(ctx, "echo", req.Body)
		},
	}, middle.server())
	rig.Call(t, r.Ready(front.client()), "outer", []byte("x"))
	rig.Eventually(t, "every span has ended", func() bool { return len(middle.exporter.GetSpans()) == 3 })
	spans := middle.exporter.GetSpans() // in the order of their ends
	last, call, first, root := spans[0], spans[1], spans[2], front.exporter.GetSpans()[0]
	isChild(t, "outer", first, root)
	isChild(t, "echo", last, call)
	if call.Parent.SpanID() != first.SpanContext.SpanID() || call.Parent.IsRemote() {
		t.Error("the call that the handler made is no child of the handler's span")
	}
	if last.SpanContext.TraceID() != root.SpanContext.TraceID() {
		t.Error("they are in different traces")
	}
}

// TestUnsampledCalls: the broker delivers the mark of calls that the client has not drawn, alone and
// in batches, and their deadlines.
func TestUnsampledCalls(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	front, back := traceSide(t), traceSide(t)
	var unmarked, endless atomic.Int64
	look := func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		if !req.Unsampled || req.Header != nil {
			unmarked.Add(1)
		}
		if _, ok := ctx.Deadline(); !ok {
			endless.Add(1)
		}
		return req.Body, nil
	}
	server := r.Serve(rig.Methods{"echo": look}, amqpx.WithMiddleware(amqpxotel.Server(append(back.options, amqpxotel.WithSampleRatio(1))...)))
	client := r.Ready(amqpxotel.TraceClient(append(front.options, amqpxotel.WithSampleRatio(0))...))
	const alone = 10
	for range alone {
		rig.Call(t, client, "echo", []byte("x"), amqpx.WaitForServer())
	}
	if n := client.Stats().Batched; n != 0 {
		t.Errorf("%d calls travelled together", n)
	}
	openLane(t, client)
	everyResponseIsMine(t, client, 64, 10)
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if client.Stats().Batched == 0 {
		t.Error("no call travelled in a batch")
	}
	if n, m := unmarked.Load(), endless.Load(); n != 0 || m != 0 {
		t.Errorf("of %d calls %d came without the mark, %d without a deadline", client.Stats().OK, n, m)
	}
	if n := len(front.exporter.GetSpans()) + len(back.exporter.GetSpans()); n != 0 {
		t.Errorf("%d spans", n)
	}
}

// TestTracingWithGarbage: an unreadable trace context from any sender never harms a call.
func TestTracingWithGarbage(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	back := traceSide(t)
	r.Serve(rig.Methods{"echo": echo}, back.server())
	inbox := r.Inbox()
	single := map[string]any{
		"text": "nonsense", "cut": "00-0af7651916cd43dd8448eb211c80319c", "number": int32(7), "float": 1.5, "bool": true,
		"bytes": []byte{0xff, 0}, "nothing": nil, "list": []any{"00-"}, "table": amqp.Table{"traceparent": "x"}, "long": fmt.Sprintf("%01000d", 0),
	}
	ids := make([]string, 0, 2*len(single))
	for name, v := range single {
		ids = append(ids, name+" "+uuid.NewString()+" \xff")
		r.Request(amqp.Publishing{
			AppId: "echo", CorrelationId: ids[len(ids)-1], ReplyTo: inbox.Name, Body: []byte("x"),
			Headers: amqp.Table{"traceparent": v, "tracestate": v, "baggage": v},
		})
	}
	var batch [][]byte
	for _, text := range []string{"", "nonsense", "00-\x00", "\xff"} {
		header := rig.Record(rig.Field{Number: 1, Value: "traceparent"}, rig.Field{Number: 2, Value: text})
		ids = append(ids, uuid.NewString())
		batch = append(batch, rig.RawCall(ids[len(ids)-1], "echo", "x", rig.Field{Number: rig.CallHeader, Value: header}))
	}
	r.SendBatch(inbox.Name, batch...)
	responses := inbox.ResponsesTo(ids...)
	for _, id := range ids {
		if a := responses[id]; a.Body != "x" || a.Code != "" {
			t.Errorf("call %q: %+v", id, a)
		}
	}
	rig.Eventually(t, "every span has ended", func() bool { return len(back.exporter.GetSpans()) == len(ids) })
	for _, span := range back.exporter.GetSpans() {
		if span.Parent.IsValid() {
			t.Errorf("a span has the parent %v", span.Parent)
		}
	}
}

// TestTracingOfACallThatNobodyTakes: a span has the library's outcome: here no server ran the
// call.
func TestTracingOfACallThatNobodyTakes(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	front := traceSide(t)
	client := r.Ready(front.client())
	_, err := client.Call(rig.Patience(t), "echo", nil)
	if amqpx.CodeOf(err) != amqpx.CodeUnavailable {
		t.Fatalf("got %v", err)
	}
	span := front.exporter.GetSpans()[0]
	got := make(map[attribute.Key]any)
	for _, name := range []attribute.Key{"amqpx.outcome", "amqpx.remote", "error.type", "rpc.response.status_code"} {
		got[name] = ofSpan(span, name)
	}
	want := map[attribute.Key]any{
		"amqpx.outcome": "did not run", "amqpx.remote": false, "error.type": "unavailable", "rpc.response.status_code": "unavailable",
	}
	if !maps.Equal(got, want) || !strings.HasPrefix(span.Status.Description, amqpx.ErrUnroutable.Error()) {
		t.Errorf("%v, status %+v", got, span.Status)
	}
}
