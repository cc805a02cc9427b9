package amqpx

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
)

// Request is one call as handlers and middleware see it, on both sides. It must
// not be changed once it was handed on; middleware that needs another request
// passes a copy.
type Request struct {
	// Method is the function's name (the app_id property).
	Method string
	// Body is the argument, opaque to this package. The handler may keep it.
	Body []byte
	// Header holds the application headers; the names that begin with "rpc-" are
	// this package's and are not in it. It may be nil. The values that a server gets are
	// bool, string, []byte, time.Time, whole numbers and floats of any size, amqp091.Decimal,
	// nil, and of these []any and map[string]any.
	Header map[string]any
	// ContentType and ContentEncoding describe the body, if the caller says so; they are at
	// most 255 bytes long ([WithContentType]).
	ContentType, ContentEncoding string
	// CorrelationID identifies the call; the answer carries it back.
	CorrelationID string
	// IdempotencyKey is the same on every re-send of a call (the message_id
	// property). On the server it is empty when the caller sent none.
	IdempotencyKey string
	// Idempotent says that the caller declared the call safe to run twice.
	Idempotent bool
	// Redelivered says that an earlier run may have happened: the broker handed the
	// request out before, or its caller sent it before. Server only.
	Redelivered bool
	// User is the user that the broker has validated the caller as (the user_id
	// property, https://www.rabbitmq.com/docs/validated-user-id), or "" for a request
	// that does not tell. Server only.
	User string
	// Queued is how long the request waited in this server for a worker. Server only.
	Queued time.Duration
	// OneWay says that the caller wants no answer (no reply_to). Server only.
	OneWay bool

	sent sentWith // client only
}

// Handler answers one call. On a server it is the function itself; on a client
// the innermost Handler sends the request and waits for the answer.
//
// The context carries the call's deadline. It ends with that, when the caller gives the
// call up and nobody else waits for it ([WithControl]), when the server is stopped
// hard, and once the handler has returned. An [*Error] reaches the caller as it is; any
// other error, and a panic, reach it as [CodeInternal] without their text. Handlers run
// concurrently, up to the number of workers.
type Handler func(ctx context.Context, req *Request) ([]byte, error)

// Middleware wraps a Handler. The same middleware works on both sides.
type Middleware func(next Handler) Handler

// Chain returns h wrapped by the middleware, the first of which is outermost: it
// sees a request first and its result last. If h or a middleware is nil, the
// result refuses every call with [CodeInternal] and words that say so.
func Chain(h Handler, middleware ...Middleware) Handler {
	wrapped, err := chain(h, middleware)
	if err != nil {
		refusal := localError(CodeInternal, DidNotRun, nil, "amqpx.Chain: "+err.Error())
		return func(context.Context, *Request) ([]byte, error) { return nil, refusal }
	}
	return wrapped
}

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
