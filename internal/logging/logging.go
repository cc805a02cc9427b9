// Package logging makes the services' logger.
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

// Config is the logger's settings. It is a part of a
// service's settings.
type Config struct {
	// Level is the least severe level that is logged.
	Level string `envconfig:"LOG_LEVEL" default:"info" oneof:"debug info warn error"`
	// Format is json for machines, console for people, or auto: console where the log goes
	// to a terminal, else json.
	Format string `envconfig:"LOG_FORMAT" default:"auto" oneof:"auto json console"`
}

// formatConsole is the format for people.
const formatConsole = "console"

// For returns c with the format that auto means for a log that goes to w.
func (c Config) For(w io.Writer) Config {
	if c.Format == "auto" {
		c.Format = "json"
		if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
			c.Format = formatConsole
		}
	}
	return c
}

// StartFields returns what the first line of a service says of it: its version, and its
// settings, spec. A machine gets all settings, people only those that differ from the
// defaults, and the others at level debug.
func StartFields(l *zap.Logger, c Config, spec any) []zap.Field {
	shown := config.Describe(spec)
	if c.Format == formatConsole {
		l.Debug("all settings", zap.Any("config", shown))
		shown = config.Changed(spec)
	}
	return []zap.Field{zap.String("version", version.Of().Version), zap.Any("config", shown)}
}

// New returns a logger that writes to w, which need not be safe for concurrent
// use. Nothing is sampled: under load every line is there. A Level or Format
// outside its set means the default.
func New(c Config, service string, w io.Writer) *zap.Logger {
	level, err := zapcore.ParseLevel(c.Level)
	if err != nil {
		level = zapcore.InfoLevel
	}
	sink := zapcore.Lock(zapcore.AddSync(w))
	core := zapcore.NewCore(encoder(c.Format), sink, level)
	return zap.New(core, zap.ErrorOutput(sink)).With(zap.String("service", service))
}

// Sync flushes the logger. Its error is of no use: a terminal or a pipe on
// standard error cannot be synced, and says so.
func Sync(l *zap.Logger) { _ = l.Sync() }

func encoder(format string) zapcore.Encoder {
	c := zap.NewProductionEncoderConfig()
	c.TimeKey = "time"
	c.EncodeTime = utc
	c.EncodeDuration = zapcore.StringDurationEncoder
	if format == formatConsole {
		c.EncodeLevel = zapcore.CapitalLevelEncoder
		return zapcore.NewConsoleEncoder(c)
	}
	return zapcore.NewJSONEncoder(c)
}

// utc writes times that sort and compare across machines.
func utc(t time.Time, e zapcore.PrimitiveArrayEncoder) {
	e.AppendString(t.UTC().Format("2006-01-02T15:04:05.000000Z"))
}
