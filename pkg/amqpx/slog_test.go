package amqpx

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// slogged returns a logger of zap over slog, and a function that returns its lines.
func slogged(t *testing.T, level slog.Level) (*zap.Logger, func() []map[string]any) {
	t.Helper()
	var out bytes.Buffer
	handler := slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level, AddSource: true})
	cfg := new(linkConfig)
	WithSlog(slog.New(handler)).applyConnection(cfg)
	return cfg.logger, func() (lines []map[string]any) {
		for line := range strings.SplitSeq(strings.TrimSpace(out.String()), "\n") {
			var v map[string]any
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatalf("%v: %q", err, line)
			}
			lines = append(lines, v)
		}
		return lines
	}
}

func TestSlogGetsEveryField(t *testing.T) {
	t.Parallel()
	log, lines := slogged(t, slog.LevelInfo)
	log.Debug("not this")
	log.With(zap.Int("with", 1)).Warn("the message",
		zap.String("string", "s"), zap.Bool("bool", true), zap.Duration("duration", time.Second), zap.Int8("int", -3), zap.Uint64("uint", 1<<52),
		zap.Error(errors.New("broken")), zap.Strings("strings", []string{"a", "b"}), zap.Float64("float", 0.5),
		zap.Stringer("stringer", StateReady), zap.Time("time", time.Unix(0, 0).UTC()), zap.Skip(),
		zap.Namespace("inner"), zap.Int("deep", 2))
	log.With(zap.Namespace("outer")).Named("part").Error("grouped", zap.Int("field", 4))
	got := lines()
	if len(got) != 2 {
		t.Fatalf("%d lines: %v", len(got), got)
	}
	source, _ := got[0]["source"].(map[string]any)
	if file, _ := source["file"].(string); !strings.HasSuffix(file, "slog_test.go") {
		t.Errorf("the source is %v", source)
	}
	for _, line := range got {
		delete(line, "source")
		delete(line, "time")
	}
	for i, want := range []string{
		`{"bool":true,"duration":1000000000,"error":"broken","float":0.5,"inner":{"deep":2},"int":-3,"level":"WARN","logger":"amqpx",` +
			`"msg":"the message","string":"s","stringer":"ready","strings":["a","b"],"uint":4503599627370496,"with":1}`,
		`{"level":"ERROR","msg":"grouped","outer":{"field":4,"logger":"amqpx.part"}}`,
	} {
		text, err := json.Marshal(got[i])
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "line", string(text), want)
	}
}

func TestSlogCoreHasTheLevelOfItsHandler(t *testing.T) {
	t.Parallel()
	log, _ := slogged(t, slog.LevelInfo)
	for level, want := range map[zapcore.Level]bool{zap.DebugLevel: false, zap.InfoLevel: true, zap.WarnLevel: true, zap.ErrorLevel: true, zap.DPanicLevel: true} {
		wantSame(t, level.String(), log.Core().Enabled(level), want)
	}
	if err := log.Sync(); err != nil {
		t.Error(err)
	}
}

func TestConnectionLogsWithSlog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		b := brokertest.New()
		c := connectTo(t, b, WithSlog(slog.New(slog.NewTextHandler(&out, nil))))
		ready(t, c.WaitReady)
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if text := out.String(); !strings.Contains(text, "level=INFO msg=ready logger=amqpx broker=broker.test:5672 role=connection generation=1") {
			t.Errorf("the log: %s", text)
		}
		quiet := connectTo(t, b, WithSlog(nil))
		ready(t, quiet.WaitReady)
	})
}

// TestMiddlewareLogsWithSlog: the middleware that takes a logger of zap logs to a handler of log/slog.
func TestMiddlewareLogsWithSlog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	handler := slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})
	log := FromSlog(slog.New(handler).With("program", "orders"))
	req := &Request{Method: "m", CorrelationID: "7", User: "mallory"}
	panics := func(context.Context, *Request) ([]byte, error) { panic("broken") }
	if _, err := Chain(panics, AccessLog(log), Recover(log))(t.Context(), req); err == nil {
		t.Error("no error after a panic")
	}
	if _, err := Chain(panics, Authorize(nil, log))(t.Context(), req); CodeOf(err) != CodePermissionDenied {
		t.Errorf("got %v, want a refusal", err)
	}
	if _, err := Chain(panics, AccessLog(FromSlog(nil)), Recover(FromSlog(nil)))(t.Context(), req); err == nil {
		t.Error("no error after a panic")
	}
	lines := slices.Collect(strings.Lines(out.String()))
	if len(lines) != 3 {
		t.Fatalf("%d lines: %s", len(lines), &out)
	}
	for i, want := range []string{
		`{"code":"unknown","correlation_id":"7","error":"panic: broken","level":"INFO","method":"m","msg":"call","program":"orders","request_bytes":0,"response_bytes":0}`,
		`{"correlation_id":"7","level":"WARN","method":"m","msg":"refused a call that the authorization rules do not allow","program":"orders","user":"mallory"}`,
	} {
		var got map[string]any
		if err := json.Unmarshal([]byte(lines[i+1]), &got); err != nil {
			t.Fatal(err)
		}
		delete(got, "time")
		delete(got, "took")
		text, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "line", string(text), want)
	}
	var panicked struct{ Level, Msg, Panic, Stack string }
	if err := json.Unmarshal([]byte(lines[0]), &panicked); err != nil {
		t.Fatal(err)
	}
	if panicked.Level != "ERROR" || panicked.Msg != "handler panicked" || panicked.Panic != "broken" || !strings.Contains(panicked.Stack, "slog_test.go") {
		t.Errorf("the log of the panic: %s", lines[0])
	}
}
