package amqpx

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
)

// panicError is what Recover makes of a panic. Its text stays in this process.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// Recover returns middleware that turns a panic into an error, which reaches the
// caller as [CodeInternal] without its text, and logs it with its stack. A server
// has it outermost already; add it to have middleware of your own see the error.
func Recover(log *zap.Logger) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) (answer []byte, err error) {
			defer func() {
				if v := recover(); v != nil {
					log.Error("handler panicked", zap.String("method", req.Method),
						zap.String("correlation_id", req.CorrelationID),
						zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
					answer, err = nil, &panicError{v}
				}
			}()
			return next(ctx, req)
		}
	}
}

// Timeout returns middleware that bounds every call by d, in addition to the
// deadline it has.
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
// when it succeeded, at info level with its code when it failed.
func AccessLog(log *zap.Logger) Middleware {
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
