package amqpx

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
)

// panicError is what Recover makes of a panic. Its text stays in this process.
type panicError struct{ text string }

func (e *panicError) Error() string { return "panic: " + e.text }

// maxPanicText bounds what is kept and logged of the value of a panic, in bytes.
const maxPanicText = 4096

// panicText describes the value of a panic. fmt survives values whose own methods panic.
func panicText(value any) string {
	if value == nil {
		return "the goroutine was ended (runtime.Goexit)"
	}
	return truncate(fmt.Sprint(value), maxPanicText)
}

// orNop returns a logger that drops everything in place of nil.
func orNop(log *zap.Logger) *zap.Logger {
	if log == nil {
		return zap.NewNop()
	}
	return log
}

// Recover returns middleware that turns a panic into an error, which reaches the
// caller as [CodeInternal] without its text, and logs it with its stack. A server
// has it outermost already; add it to have middleware of your own see the error. A nil
// logger logs nothing.
func Recover(log *zap.Logger) Middleware {
	log = orNop(log)
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) (answer []byte, err error) {
			defer func() {
				if v := recover(); v != nil {
					text := panicText(v)
					answer, err = nil, &panicError{text}
					log.Error("handler panicked", zap.String("method", req.Method),
						zap.String("correlation_id", req.CorrelationID),
						zap.String("panic", text), zap.ByteString("stack", debug.Stack()))
				}
			}()
			return next(ctx, req)
		}
	}
}

// Timeout returns middleware that ends the context of every call after d, if its deadline is
// not earlier. On a client that bounds the call. A server's handler must heed its context:
// nothing can end one that does not, see [WithMaxHandlerTime].
func Timeout(d time.Duration) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, d)
			defer cancel()
			return next(ctx, req)
		}
	}
}

// AccessLog returns middleware that logs every call once it ended: at debug level
// when it succeeded, at info level with its code when it failed. A nil logger logs nothing.
func AccessLog(log *zap.Logger) Middleware {
	log = orNop(log)
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			begun := time.Now()
			answer, err := next(ctx, req)
			level := zap.DebugLevel
			if err != nil {
				level = zap.InfoLevel
			}
			if entry := log.Check(level, "call"); entry != nil {
				entry.Write(zap.String("method", req.Method), zap.String("correlation_id", req.CorrelationID),
					zap.Duration("took", time.Since(begun)), zap.Int("request_bytes", len(req.Body)),
					zap.Int("answer_bytes", len(answer)), zap.String("code", string(CodeOf(err))), zap.Error(err))
			}
			return answer, err
		}
	}
}
