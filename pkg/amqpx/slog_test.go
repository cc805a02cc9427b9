package amqpx

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
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
