package tracing

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxotel"
)

func TestLinesHaveTheTrace(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	h := new(Tracing).Logged(zap.New(core), amqpx.AccessLog)(func(context.Context, *amqpx.Request) ([]byte, error) { return nil, nil })
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})
	for _, ctx := range []context.Context{trace.ContextWithSpanContext(t.Context(), span), t.Context()} {
		if _, err := h(ctx, &amqpx.Request{Method: "greet"}); err != nil {
			t.Error(err)
		}
	}
	lines := logs.FilterMessage("call").All()
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2", len(lines))
	}
	with, without := lines[0].ContextMap(), lines[1].ContextMap()
	if with["trace_id"] != span.TraceID().String() || with["span_id"] != span.SpanID().String() || with["method"] != "greet" {
		t.Errorf("it says %v", with)
	}
	unsampled := h
	for _, m := range []amqpx.Middleware{new(Tracing).Logged(zap.New(core), amqpx.AccessLog), amqpxotel.Server(
		amqpxotel.WithPropagator(propagation.TraceContext{}), amqpxotel.WithSampleRatio(0))} {
		unsampled = m(unsampled)
	}
	if _, err := unsampled(t.Context(), &amqpx.Request{Method: "greet"}); err != nil {
		t.Error(err)
	}
	for _, line := range logs.FilterMessage("call").All()[2:] {
		if _, has := line.ContextMap()["trace_id"]; has {
			t.Errorf("of a call that was not drawn it says %v", line.ContextMap())
		}
	}
	if _, has := without["trace_id"]; has || without["method"] != "greet" {
		t.Errorf("without a span it says %v", without)
	}
}

func TestComplaintsArePaced(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	c := newComplaints(func(f ...zap.Field) { zap.New(core).Warn("trouble", f...) })
	now := time.Now()
	first, second := errors.New("first"), errors.New("second "+strings.Repeat("x", 1000)+"\xff")
	if !c.note(first, 10, now) {
		t.Error("the first is not told")
	}
	c.flush()
	for i := range 5 {
		if c.note(second, 10, now.Add(time.Duration(i)*time.Second)) {
			t.Error("another is told at once")
		}
	}
	if !c.note(second, 0, now.Add(complainEvery)) {
		t.Error("nothing is told after a while")
	}
	c.flush()
	c.flush() // nothing to log
	c.hear(first)
	lines := logs.All()
	if len(lines) != 2 || lines[0].ContextMap()["spans"] != int64(10) || lines[1].ContextMap()["spans"] != int64(50) {
		t.Fatalf("it says %v", lines)
	}
	if text := said(lines[1]); len(text) > 310 || !utf8.ValidString(text) {
		t.Errorf("the error is %q", text)
	}
}

// said returns the error in a log line.
func said(line observer.LoggedEntry) string {
	text, _ := line.ContextMap()["error"].(string)
	return text
}

// The SDK quotes values that it cannot parse, for example a token.
func TestLibraryLogHidesValues(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	core, logs := observer.New(zap.DebugLevel)
	l := newLibraryLog(newComplaints(func(f ...zap.Field) { zap.New(core).Warn("trouble", f...) })).WithName("n").WithValues("token", "hunter2")
	l.Info("info", "token", "hunter2")
	l.V(1).Info("warning", "token", "hunter2")
	l.Error(errors.New("missing hunter2"), "parse headers", "input", "hunter2")
	for _, line := range logs.All() {
		out.WriteString(line.Message + ": " + said(line))
	}
	if got := out.String(); got != "trouble: parse headers" {
		t.Errorf("it says %q", got)
	}
}
