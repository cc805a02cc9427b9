// Package logging creates the services' logger.
package logging

import (
	"io"
	"os"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/version"
)

// Config holds the logger's settings. It is a part of a service's settings.
type Config struct {
	// Level is the minimum level of logged lines.
	Level string `envconfig:"LOG_LEVEL" default:"info" oneof:"debug info warn error"`
	// Format is json for machines, console for people, or auto: console if the log goes to a
	// terminal, else json.
	Format string `envconfig:"LOG_FORMAT" default:"auto" oneof:"auto json console"`

	onTerminal bool
}

// For returns c for a log that goes to w. The writer determines the meaning of the format
// auto.
func (c Config) For(w io.Writer) Config {
	file, ok := w.(*os.File)
	c.onTerminal = ok && term.IsTerminal(int(file.Fd()))
	return c
}

// forPeople reports whether the format is the one for people.
func (c Config) forPeople() bool { return c.Format == "console" || c.Format == "auto" && c.onTerminal }

// StartFields returns the fields of a service's first log line: its version, and its settings,
// spec. The json format includes all settings; the console format includes only changes from
// the defaults, and logs all settings at level debug.
func StartFields(l *zap.Logger, c Config, spec any) []zap.Field {
	shown := config.Describe(spec)
	if c.forPeople() {
		l.Debug("all settings", zap.Any("config", shown))
		shown = config.Changed(spec)
	}
	return []zap.Field{zap.String("version", version.Of().Version), zap.Any("config", shown)}
}

// New returns a logger that writes to w, which need not be safe for concurrent use. No lines
// are sampled away, even under load. An invalid Level or Format means the default.
func New(c Config, service string, w io.Writer) *zap.Logger {
	level, err := zapcore.ParseLevel(c.Level)
	if err != nil {
		level = zapcore.InfoLevel
	}
	sink := zapcore.Lock(zapcore.AddSync(w))
	core := zapcore.NewCore(encoder(c.forPeople()), sink, level)
	return zap.New(core, zap.ErrorOutput(sink)).With(zap.String("service", service))
}

// Sync flushes the logger. Its error is ignored, because a terminal or a pipe on standard
// error cannot be synced and always returns an error.
func Sync(l *zap.Logger) { _ = l.Sync() }

func encoder(forPeople bool) zapcore.Encoder {
	c := zap.NewProductionEncoderConfig()
	c.TimeKey = "time"
	c.EncodeTime = utc
	c.EncodeDuration = zapcore.StringDurationEncoder
	if forPeople {
		c.EncodeLevel = zapcore.CapitalLevelEncoder
		return zapcore.NewConsoleEncoder(c)
	}
	return zapcore.NewJSONEncoder(c)
}

// utc writes times that can be sorted and compared across machines.
func utc(t time.Time, e zapcore.PrimitiveArrayEncoder) {
	e.AppendString(t.UTC().Format("2006-01-02T15:04:05.000000Z"))
}
