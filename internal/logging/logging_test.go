package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestNewJSON(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := New(Config{Level: "info", Format: "json"}, "svc", &out)
	log.Debug("hidden")
	log.Named("part").Warn("shown", zap.Duration("took", 1500*time.Millisecond))
	var line struct{ Level, Time, Logger, Msg, Service, Took string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	at, err := time.Parse(time.RFC3339Nano, line.Time)
	if err != nil || time.Since(at) > time.Minute {
		t.Errorf("time is %q", line.Time)
	}
	line.Time = ""
	want := struct{ Level, Time, Logger, Msg, Service, Took string }{"warn", "", "part", "shown", "svc", "1.5s"}
	if line != want {
		t.Errorf("got %+v, want %+v", line, want)
	}
}

func TestNewConsole(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	New(Config{Level: "debug", Format: "console"}, "svc", &out).Debug("shown", zap.Int("n", 1))
	if got := out.String(); !strings.Contains(got, "DEBUG\tshown\t{\"service\": \"svc\", \"n\": 1}\n") {
		t.Errorf("got %q", got)
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("the log has colors")
	}
}

func TestNewLevels(t *testing.T) {
	t.Parallel()
	for level, want := range map[string]zapcore.Level{
		"debug": zap.DebugLevel, "info": zap.InfoLevel, "warn": zap.WarnLevel, "error": zap.ErrorLevel, "?": zap.InfoLevel,
	} {
		if got := New(Config{Level: level}, "svc", &bytes.Buffer{}).Level(); got != want {
			t.Errorf("%s: level %v, want %v", level, got, want)
		}
	}
}

func TestNothingIsSampled(t *testing.T) {
	t.Parallel()
	const lines = 5000
	var out bytes.Buffer
	log := New(Config{Level: "info", Format: "json"}, "svc", &out)
	for range lines {
		log.Info("same")
	}
	if got := strings.Count(out.String(), "\n"); got != lines {
		t.Errorf("%d of %d lines were written", got, lines)
	}
}

// unsyncable fails to sync, like a pipe.
type unsyncable struct{ bytes.Buffer }

func (*unsyncable) Sync() error { return errors.New("sync /dev/stderr: invalid argument") }

func TestSyncForgivesPipes(t *testing.T) {
	t.Parallel()
	var out unsyncable
	log := New(Config{}, "svc", &out)
	log.Info("line")
	Sync(log)
	if got := strings.Count(out.String(), "\n"); got != 1 {
		t.Errorf("%d lines, want 1: %s", got, out.String())
	}
}

func TestFormatOfTheScreen(t *testing.T) {
	t.Parallel()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for _, c := range []struct {
		format    string
		w         io.Writer
		forPeople bool
	}{{"auto", file, false}, {"auto", &bytes.Buffer{}, false}, {"console", file, true}, {"json", file, false}} {
		if got := (Config{Format: c.format}).For(c.w).forPeople(); got != c.forPeople {
			t.Errorf("%s on %T: for people: %v", c.format, c.w, got)
		}
	}
}

func TestFirstLine(t *testing.T) {
	t.Parallel()
	spec := struct {
		Calls int           `envconfig:"RPC_CALLS" default:"1000"`
		Wait  time.Duration `envconfig:"RPC_TIMEOUT" default:"1m"`
		Name  string        `envconfig:"RPC_QUEUE" default:"rpc_queue"`
	}{Calls: 5, Wait: time.Minute, Name: "rpc_queue"}
	const changed, all = `{"RPC_CALLS":"5"}`, `{"RPC_CALLS":"5","RPC_QUEUE":"rpc_queue","RPC_TIMEOUT":"1m0s"}`
	for _, c := range []struct{ format, level, want string }{
		{"json", "info", all}, {"console", "info", changed}, {"console", "debug", all},
	} {
		var out bytes.Buffer
		settings := Config{Level: c.level, Format: c.format}
		log := New(settings, "svc", &out)
		log.With(StartFields(log, settings, &spec)...).Info("starts")
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if c.level == "debug" && len(lines) != 2 || c.level == "info" && len(lines) != 1 {
			t.Fatalf("%s, %s: %q", c.format, c.level, lines)
		}
		if !strings.Contains(lines[0], c.want) {
			t.Errorf("%s, %s: got %s, want %s", c.format, c.level, lines[0], c.want)
		}
		if last := lines[len(lines)-1]; !strings.Contains(last, `"version"`) {
			t.Errorf("no version in %s", last)
		}
	}
}
