package main

import (
	"context"
	"errors"
	"maps"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestLogResponses(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	for _, failure := range []error{nil, amqpx.Errorf(amqpx.CodeNotFound, "nothing there")} {
		h := logResponses(zap.New(core))(func(context.Context, *amqpx.Request) ([]byte, error) {
			return []byte("b"), failure
		})
		got, err := h(t.Context(), &amqpx.Request{Method: "b", CorrelationID: "id"})
		if string(got) != "b" || !errors.Is(err, failure) {
			t.Errorf("changed the response to %q, %v", got, err)
		}
	}
	lines := logs.AllUntimed()
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2", len(lines))
	}
	if debug := logs.FilterLevelExact(zap.DebugLevel).Len(); debug != 2 {
		t.Errorf("%d of 2 lines are at debug level", debug)
	}
	for i, want := range []map[string]any{
		{"method": "b", "correlation_id": "id", "bytes": int64(1)},
		{"method": "b", "correlation_id": "id", "code": "not_found", "error": "not_found: nothing there"},
	} {
		fields := lines[i].ContextMap()
		if _, ok := fields["latency_ms"].(float64); !ok {
			t.Errorf("line %d has no latency: %v", i, fields)
		}
		delete(fields, "latency_ms")
		delete(fields, "errorVerbose")
		if !maps.Equal(fields, want) {
			t.Errorf("line %d has %v, want %v", i, fields, want)
		}
	}
}

// Middleware costs each call an own context for its deadline, so there is none for a log that
// shows no debug lines.
func TestOnlyADebugLogHasMiddleware(t *testing.T) {
	t.Parallel()
	number := func(level zapcore.Level) int {
		core, _ := observer.New(level)
		return len(plan(1, 1).options(zap.New(core)))
	}
	if debug, info := number(zap.DebugLevel), number(zap.InfoLevel); debug != info+1 {
		t.Errorf("%d options with a debug log, want one more than the %d with another", debug, info)
	}
}
