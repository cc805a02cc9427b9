package amqpx

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Request is one call as seen by handlers and middleware, on both sides. Middleware must not
// change a Request after passing the Request to the next handler; to change a field, middleware
// passes a copy.
type Request struct {
	// Method is the method's name (the app_id property).
	Method string
	// Body is the argument, opaque to this package. The handler may keep the bytes.
	Body []byte
	// Header holds the application headers, or nil. Headers of this package, whose names begin with
	// "rpc-", are left out. A server receives values of the types bool, string, []byte, time.Time,
	// whole numbers and floats of any size, amqp091.Decimal, nil, and []any and map[string]any of
	// these.
	Header map[string]any
	// ContentType and ContentEncoding describe the body; "" when the caller does not set them.
	// Each is at most 255 bytes long ([WithContentType]).
	ContentType, ContentEncoding string
	// CorrelationID identifies the call; the response carries the same id.
	CorrelationID string
	// IdempotencyKey is the same on every re-send of a call: the message_id property or, in an
	// idempotent request without it, the correlation id. On the server it is empty when the caller
	// sent no key.
	IdempotencyKey string
	// Idempotent is true if the caller declared the call safe to run twice.
	Idempotent bool
	// Redelivered is true if the request may have run before: the broker delivered the request
	// before, or the caller sent the request before. Server only.
	Redelivered bool
	// User is the user of the broker whose connection published the request, as validated by
	// the broker (the user_id property, https://www.rabbitmq.com/docs/validated-user-id). No
	// other user of the broker can cause this value, unless the user has the tag
	// "impersonator" or knows the password of the servers' user. In a request that a server
	// has republished after a loss or during a drain, User is still the first caller's user.
	//
	// User is empty, which means an unknown caller and never a trusted one, if the caller sends
	// no user_id; if the broker did not confirm the caller's name ([WithUserID]); if the broker
	// has dead-lettered the request, or an operator has moved it back from the dead letters;
	// and if this server has switched WithUserID off. Server only.
	User string
	// Queued is how long the request waited in this server for a worker. Server only.
	Queued time.Duration
	// OneWay is true if the caller wants no response ([Client.Send]; on the wire no reply_to).
	// Middleware of a client can read it, and has no effect on it.
	OneWay bool
	// Unsampled is true if the caller decided not to trace the call; the default is false: the
	// caller traces the call, or has decided nothing. Tracing middleware of a client sets it
	// instead of sending trace context; tracing middleware of a server then records nothing.
	// Trace context in Header takes precedence. Unsampled takes eight bytes of a message, two in a
	// batch, and has no effect of its own.
	Unsampled bool
	// Priority is the priority of the request, see [WithPriority]. The default is 0, the lowest.
	Priority uint8

	sent   sentWith      // client only
	run    *invocation   // server only
	stream *ServerStream // of a stream; server only
}

// StreamProgress returns how far the stream of the request has come, and ok = false for the request
// of a call. It is for middleware, after the next handler has returned: the stream of a client has
// ended then, and the handler of a server. Sent includes the items that wait to be sent, Received those
// that wait for the application.
func (req *Request) StreamProgress() (p Progress, ok bool) {
	switch {
	case req.stream != nil:
		return progressFrom(req.stream.st.Given()), true
	case req.sent.stream == nil:
		return p, false
	case req.sent.stream.stream.begun.Load():
		return req.sent.stream.progress(), true
	default:
		return p, true
	}
}

// Handler processes one call. On a server a Handler is the method's function; on a client the
// innermost Handler sends the request and waits for the response.
//
// The context carries the call's deadline. It ends at the deadline, when the caller cancels
// the call and no other caller waits for the same execution ([WithControl]), when the server
// is stopped hard, and when the handler has returned. An [*Error] reaches the caller
// unchanged; any other error, and a panic, reach the caller as [CodeInternal] without their
// text. Handlers run concurrently, up to the number of workers.
type Handler func(ctx context.Context, req *Request) ([]byte, error)

// Middleware wraps a Handler. The same middleware works on both sides.
type Middleware func(next Handler) Handler

// Chain returns h wrapped by the middleware. The first middleware is outermost: it sees a
// request first and the result last. If h or a middleware is nil, the returned Handler refuses
// every call with [CodeInternal] and a text that names the mistake.
func Chain(h Handler, middleware ...Middleware) Handler {
	wrapped, err := chain(h, middleware)
	if err != nil {
		refusal := localError(CodeInternal, DidNotRun, nil, "amqpx.Chain: "+err.Error())
		return func(context.Context, *Request) ([]byte, error) { return nil, refusal }
	}
	return wrapped
}

// panicError is the error into which Recover turns a panic. Its text stays in this process.
type panicError struct{ text string }

func (e *panicError) Error() string { return "panic: " + e.text }

// maxPanicText bounds the stored and logged text of a panic's value, in bytes.
const maxPanicText = 4096

// panicText describes the value of a panic. fmt survives values whose own methods panic.
func panicText(value any) string {
	if value == nil {
		return "the goroutine was ended (runtime.Goexit)"
	}
	return wire.Truncate(fmt.Sprint(value), maxPanicText)
}

// orNop returns log, or a logger that drops everything if log is nil.
func orNop(log *zap.Logger) *zap.Logger {
	if log == nil {
		return zap.NewNop()
	}
	return log
}

// Recover returns middleware that turns a panic into an error and logs the panic with its
// stack. The error reaches the caller as [CodeInternal] without its text. A server already has
// Recover as its outermost middleware; add Recover inside your own middleware to make the
// error visible there. A nil logger logs nothing.
func Recover(log *zap.Logger) Middleware {
	log = orNop(log)
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) (response []byte, err error) {
			defer func() {
				if v := recover(); v != nil {
					text := panicText(v)
					response, err = nil, &panicError{text}
					log.Error("handler panicked", zap.String("method", req.Method),
						zap.String("correlation_id", req.CorrelationID),
						zap.String("panic", text), zap.ByteString("stack", debug.Stack()))
				}
			}()
			return next(ctx, req)
		}
	}
}

// Timeout returns middleware that ends the context of every call after d, unless the call's
// deadline is earlier. On a client this bounds the call. On a server the handler must heed its
// context: nothing can end a handler that does not, see [WithMaxHandlerTime].
func Timeout(d time.Duration) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, d)
			defer cancel()
			return next(ctx, req)
		}
	}
}

// AccessLog returns middleware that logs every finished call: at debug level when the call
// succeeded, at info level with the code when the call failed. A nil logger logs nothing. On a
// server the logged time includes outer middleware that passes context and request on unchanged.
func AccessLog(log *zap.Logger) Middleware {
	log = orNop(log)
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			begun := startOf(ctx, req)
			response, err := next(ctx, req)
			level := zap.DebugLevel
			if err != nil {
				level = zap.InfoLevel
			}
			if entry := log.Check(level, "call"); entry != nil {
				entry.Write(zap.String("method", req.Method), zap.String("correlation_id", req.CorrelationID),
					zap.Duration("took", time.Since(begun)), zap.Int("request_bytes", len(req.Body)),
					zap.Int("response_bytes", len(response)), zap.String("code", string(CodeOf(err))), zap.Error(err))
			}
			return response, err
		}
	}
}
