package amqpx

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// WithSlog sets the logger, like [WithLogger], for programs that log with log/slog. Messages have
// the attribute "logger", which is "amqpx" or the name of a part. nil logs nothing.
func WithSlog(l *slog.Logger) ConnectionOption { return WithLogger(FromSlog(l)) }

// FromSlog returns a logger of zap that writes to l, for the middleware of programs that log with
// log/slog: [AccessLog], [Recover], [Authorize], and any other function that takes a logger of zap. The
// fields of zap become attributes, a namespace becomes a group, and levels above error become
// [slog.LevelError]. The handler of l decides which levels are logged, and gets no context. nil logs
// nothing.
func FromSlog(l *slog.Logger) *zap.Logger {
	if l == nil {
		return zap.NewNop()
	}
	return zap.New(slogCore{l.Handler()}, zap.AddCaller())
}

// slogCore is a core of zap that writes to a handler of log/slog.
type slogCore struct{ handler slog.Handler }

// slogLevel returns the level of log/slog for a level of zap. zap's levels above error are used for
// errors that end the program, which this package does not log.
func slogLevel(l zapcore.Level) slog.Level {
	switch l {
	case zapcore.DebugLevel:
		return slog.LevelDebug
	case zapcore.InfoLevel:
		return slog.LevelInfo
	case zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelError
	}
}

// Enabled implements zapcore.LevelEnabler. zap has no context to pass on.
func (c slogCore) Enabled(l zapcore.Level) bool {
	return c.handler.Enabled(context.Background(), slogLevel(l)) //nolint:forbidigo // zap has none.
}

// With implements zapcore.Core.
func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	attrs, group := slogAttrs(fields)
	h := c.handler
	if len(attrs) > 0 {
		h = h.WithAttrs(attrs)
	}
	if group != "" {
		h = h.WithGroup(group)
	}
	return slogCore{h}
}

// Check implements zapcore.Core.
func (c slogCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	r := slog.NewRecord(e.Time, slogLevel(e.Level), e.Message, e.Caller.PC)
	if e.LoggerName != "" {
		r.AddAttrs(slog.String("logger", e.LoggerName))
	}
	attrs, _ := slogAttrs(fields)
	r.AddAttrs(attrs...)
	return c.handler.Handle(context.Background(), r) //nolint:forbidigo // zap has none.
}

// Sync implements zapcore.Core.
func (c slogCore) Sync() error { return nil }

// slogAttrs converts fields. The fields after a namespace are in a group; group is the name of a
// namespace at the end.
func slogAttrs(fields []zapcore.Field) (attrs []slog.Attr, group string) {
	for i, f := range fields {
		if f.Type != zapcore.NamespaceType {
			attrs = appendAttr(attrs, f)
			continue
		}
		rest, inner := slogAttrs(fields[i+1:])
		if len(rest) == 0 && inner == "" {
			return attrs, f.Key
		}
		return append(attrs, slog.Attr{Key: f.Key, Value: slog.GroupValue(rest...)}), ""
	}
	return attrs, ""
}

// appendAttr converts a field.
func appendAttr(attrs []slog.Attr, f zapcore.Field) []slog.Attr {
	switch f.Type { //nolint:exhaustive // zap encodes the others itself.
	case zapcore.StringType:
		return append(attrs, slog.String(f.Key, f.String))
	case zapcore.BoolType:
		return append(attrs, slog.Bool(f.Key, f.Integer == 1))
	case zapcore.DurationType:
		return append(attrs, slog.Duration(f.Key, time.Duration(f.Integer)))
	case zapcore.Int64Type, zapcore.Int32Type, zapcore.Int16Type, zapcore.Int8Type:
		return append(attrs, slog.Int64(f.Key, f.Integer))
	case zapcore.Uint64Type, zapcore.Uint32Type, zapcore.Uint16Type, zapcore.Uint8Type, zapcore.UintptrType:
		return append(attrs, slog.Uint64(f.Key, uint64(f.Integer))) //nolint:gosec // zap's own encoding.
	case zapcore.ErrorType:
		return append(attrs, slog.Any(f.Key, f.Interface))
	}
	encoded := zapcore.NewMapObjectEncoder()
	f.AddTo(encoded)
	for _, key := range slices.Sorted(maps.Keys(encoded.Fields)) {
		attrs = append(attrs, slog.Any(key, encoded.Fields[key]))
	}
	return attrs
}
