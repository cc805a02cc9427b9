package amqpx

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Sentinels, matched with [errors.Is]. Every error of a call is an [*Error], which wraps at
// most one sentinel beside its cause.
var (
	// ErrUnroutable is returned when no request queue exists to route the call to.
	ErrUnroutable = errors.New("no queue to route the request to")
	// ErrRefused is returned when the broker nacked the request (basic.nack) and the queue
	// may be at a bound whose overflow policy is reject-publish. A nack alone does not prove
	// that the request was not delivered, so the outcome is [MayHaveRun].
	ErrRefused = errors.New("the broker refused the request")
	// ErrQueueUnavailable is returned when the request queue takes no messages and is not at a
	// bound: the node is down, or the queue moves or has no majority.
	ErrQueueUnavailable = errors.New("the queue does not take messages")
	// ErrNoServer is returned when the broker confirmed the request and no server has consumed
	// the queue since. A server that starts before the request expires runs the request.
	ErrNoServer = errors.New("no server consumes the queue")
	// ErrTooManyCalls is returned at once when the calls in flight, or the bytes of their
	// bodies, have reached the client's limit. The call was not sent.
	ErrTooManyCalls = errors.New("too many calls in flight")
	// ErrOutcomeUnknown is returned when the connection was lost at a moment that leaves open
	// whether the request reached a server.
	ErrOutcomeUnknown = errors.New("the connection was lost before the outcome was known")
	// ErrNotConnected is returned when a call ended while no connection to a broker was ready:
	// a broker could not be reached, or refused a step of the set-up. The text has the fault
	// of each broker.
	ErrNotConnected = errors.New("no connection to a broker is ready")
	// ErrBlocked is returned when a call ended while the broker blocked publishing
	// (https://www.rabbitmq.com/docs/connection-blocked).
	ErrBlocked = errors.New("the broker blocks publishing")
	// ErrTooLarge is returned when a request or a response exceeds the size limit.
	ErrTooLarge = wire.ErrTooLarge
	// ErrClosed is returned by calls that are pending when Close is called, and by later
	// calls.
	ErrClosed = errors.New("client closed")
	// ErrDrainTimeout is returned by Serve when handlers were still running at the drain's
	// time limit; their contexts were canceled.
	ErrDrainTimeout = errors.New("drain timed out")
)

// Error is the error type of all calls. Handlers return an Error made by [Errorf] to choose
// the code and the message for the caller. Both are sent to the caller, so neither may hold a
// secret. An Error is immutable and safe for concurrent use. The methods of a nil *Error do
// not panic; returned as an error, a nil *Error has no code, and the caller receives
// [CodeInternal].
type Error struct {
	code       Code
	message    string
	outcome    Outcome
	remote     bool
	retryAfter time.Duration
	server     string // the server that refused the call as unimplemented; "" if not known
	causes     []error
	details    []wire.Detail
	leftOut    error     // why details were left out; nil if none was
	refused    bool      // made by Refuse
	hidden     error     // the error of which Hide made this one
	progress   *Progress // of a stream; nil otherwise
}

// Errorf returns an error for a handler to return: its code and its formatted text travel to
// the caller. Errors formatted with %w stay matchable on the server, in its middleware and
// log; only their text is sent. A code outside the closed set reaches the caller as
// [CodeUnknown].
//
// A function that passes the result on should declare its own result as error, not as *Error:
// a nil *Error stored in an error is an error that is not nil
// (https://go.dev/doc/faq#nil_error), so the call fails with [CodeInternal].
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{code: code, message: err.Error(), outcome: Ran, causes: []error{err}}
}

// Error returns the code, the message and, for errors made by this process, whether the call
// may have run.
func (e *Error) Error() string {
	if e == nil {
		return "a nil *amqpx.Error, which has no code"
	}
	var b strings.Builder
	b.WriteString(string(e.code))
	if e.message != "" {
		b.WriteString(": ")
		b.WriteString(e.message)
	}
	if !e.remote && e.outcome != Ran {
		b.WriteString(" (")
		b.WriteString(e.outcome.String())
		b.WriteString(")")
	}
	return b.String()
}

// Unwrap gives [errors.Is] and [errors.As] the sentinel and the cause.
func (e *Error) Unwrap() []error {
	if e == nil {
		return nil
	}
	return e.causes
}

// Code returns the error's code; of a nil *Error it is [CodeUnknown].
func (e *Error) Code() Code {
	if e == nil {
		return CodeUnknown
	}
	return e.code
}

// Message returns the text without the code.
func (e *Error) Message() string {
	if e == nil {
		return ""
	}
	return e.message
}

// Outcome tells whether the server may have run the call.
func (e *Error) Outcome() Outcome {
	if e == nil {
		return MayHaveRun
	}
	return e.outcome
}

// Remote reports whether a server sent the error; otherwise this process made the error.
func (e *Error) Remote() bool { return e != nil && e.remote }

// RetryAfter returns a hint how long to wait before calling again, from the server or, with
// [CodeResourceExhausted], from the client. Zero means no hint.
func (e *Error) RetryAfter() time.Duration {
	if e == nil {
		return 0
	}
	return e.retryAfter
}

// CodeOf returns err's code: the code of the first non-nil [*Error] in err's chain, else the
// code of a context error, else [CodeUnknown]. It returns "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return "" // before any allocation: every call comes here
	}
	coded := codedError(err)
	switch {
	case coded != nil:
		return coded.code
	case errors.Is(err, context.DeadlineExceeded):
		return CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		return CodeCanceled
	default:
		return CodeUnknown
	}
}

// OutcomeOf returns err's outcome, [MayHaveRun] for an error of another type and
// [Ran] for nil.
func OutcomeOf(err error) Outcome {
	if err == nil {
		return Ran
	}
	return codedError(err).Outcome()
}

// codedError returns the first non-nil *Error in err's chain, or nil. [errors.As] would stop
// at a nil *Error.
func codedError(err error) *Error {
	if coded, ok := errors.AsType[*Error](err); !ok || coded != nil {
		return coded
	}
	switch wrapper := err.(type) { //nolint:errorlint // this is the walk along the chain.
	case interface{ Unwrap() error }:
		return codedError(wrapper.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range wrapper.Unwrap() {
			if coded := codedError(inner); coded != nil {
				return coded
			}
		}
	}
	return nil
}

// localError returns an error made by this process.
func localError(code Code, outcome Outcome, sentinel error, detail string, causes ...error) *Error {
	e := &Error{code: code, outcome: outcome, message: detail, causes: causes}
	if sentinel != nil {
		e.causes = append([]error{sentinel}, causes...)
		e.message = sentinel.Error()
		if detail != "" {
			e.message += ": " + detail
		}
	}
	return e
}

// refusal returns the coded error with which a server refuses a request without running it.
func refusal(code Code, format string, args ...any) *Error {
	e := Errorf(code, format, args...)
	e.outcome = DidNotRun
	return e
}

// formatRefusal returns the refusal of a request which the codec could not decode, or nil if err
// is nil.
func formatRefusal(err error) *Error {
	if err == nil {
		return nil
	}
	return refusal(CodeInvalidArgument, "%w", err)
}

// forget removes what is not sent and must not stay in memory.
func (e *Error) forget() { e.causes, e.hidden, e.leftOut, e.progress = nil, nil, nil, nil }

// failureOf returns the error as it travels in a response, without its causes.
func failureOf(e *Error) *wire.Failure {
	return &wire.Failure{
		Code: string(e.code), Message: e.message, Ran: ranOf(e.outcome), RetryAfter: e.retryAfter, Server: e.server,
		Details: e.details,
	}
}

// errorOf returns the error of a call with this failure in its response.
func errorOf(f *wire.Failure) *Error {
	e := &Error{
		code: Code(f.Code), message: f.Message, outcome: outcomeOf(f.Ran), remote: !f.TooLarge,
		retryAfter: f.RetryAfter, server: f.Server, details: f.Details,
	}
	if !e.code.Valid() {
		e.code = CodeUnknown
	}
	switch {
	case f.TooLarge:
		e.causes = []error{ErrTooLarge}
	case e.code == CodeDeadlineExceeded: // the caller need not know whose clock ran out first
		e.causes = []error{context.DeadlineExceeded}
	}
	return e
}

// ranOf returns the outcome as it travels in a response.
func ranOf(o Outcome) wire.Ran {
	switch o {
	case DidNotRun:
		return wire.RanNo
	case Ran:
		return wire.RanYes
	default:
		return wire.RanUnknown
	}
}

// outcomeOf is the inverse of ranOf.
func outcomeOf(ran wire.Ran) Outcome {
	switch ran {
	case wire.RanNo:
		return DidNotRun
	case wire.RanYes:
		return Ran
	default:
		return MayHaveRun
	}
}

// contextError turns the end of a call's context into a coded error, which still matches the
// context's own error.
func contextError(cause error, outcome Outcome, sentinel error, detail string) *Error {
	code := CodeCanceled
	if errors.Is(cause, context.DeadlineExceeded) {
		code = CodeDeadlineExceeded
	}
	return localError(code, outcome, sentinel, detail, cause)
}

// Code classifies a failed call. The set is closed. The texts travel in the rpc-code header
// and are the names used by gRPC and Connect
// (https://connectrpc.com/docs/protocol#error-codes).
type Code string

// The codes, each with the meaning a caller may rely on.
const (
	// CodeCanceled: the caller canceled the call.
	CodeCanceled Code = "canceled"
	// CodeUnknown: a peer sent a code outside this set.
	CodeUnknown Code = "unknown"
	// CodeInvalidArgument: the request is wrong in any state of the server.
	CodeInvalidArgument Code = "invalid_argument"
	// CodeDeadlineExceeded: the call's time ran out.
	CodeDeadlineExceeded Code = "deadline_exceeded"
	// CodeNotFound: something named by the request does not exist.
	CodeNotFound Code = "not_found"
	// CodeAlreadyExists: something the request would create exists.
	CodeAlreadyExists Code = "already_exists"
	// CodePermissionDenied: the caller may not do this.
	CodePermissionDenied Code = "permission_denied"
	// CodeResourceExhausted: a bound was reached; trying later may work.
	CodeResourceExhausted Code = "resource_exhausted"
	// CodeFailedPrecondition: the system is not in the state the call needs.
	CodeFailedPrecondition Code = "failed_precondition"
	// CodeAborted: a conflict ended the work; the whole operation may be tried again.
	CodeAborted Code = "aborted"
	// CodeOutOfRange: the request reaches past the end of the data.
	CodeOutOfRange Code = "out_of_range"
	// CodeUnimplemented: the server that received the request does not have the method. The
	// client has tried the other servers: none of them had the method, or no try reached a
	// server with the method.
	CodeUnimplemented Code = "unimplemented"
	// CodeInternal: the handler failed without choosing a code, or panicked.
	CodeInternal Code = "internal"
	// CodeUnavailable: the service could not be reached; trying again may work.
	CodeUnavailable Code = "unavailable"
	// CodeDataLoss: data was lost or damaged for good.
	CodeDataLoss Code = "data_loss"
	// CodeUnauthenticated: the caller did not prove its identity.
	CodeUnauthenticated Code = "unauthenticated"
)

// String returns the code's text as it travels on the wire.
func (c Code) String() string { return string(c) }

// Valid reports whether c belongs to the closed set.
func (c Code) Valid() bool {
	switch c {
	case CodeCanceled, CodeUnknown, CodeInvalidArgument, CodeDeadlineExceeded,
		CodeNotFound, CodeAlreadyExists, CodePermissionDenied, CodeResourceExhausted,
		CodeFailedPrecondition, CodeAborted, CodeOutOfRange, CodeUnimplemented,
		CodeInternal, CodeUnavailable, CodeDataLoss, CodeUnauthenticated:
		return true
	default:
		return false
	}
}

// HTTPStatus returns the status of HTTP for the code, as google.rpc.Code defines it
// (https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto): 499 for
// [CodeCanceled], which has no name in net/http, 500 for a code outside the closed set, and 200 for
// "", the code of no error.
func (c Code) HTTPStatus() int {
	switch c {
	case "":
		return 200
	case CodeCanceled:
		return 499
	case CodeInvalidArgument, CodeFailedPrecondition, CodeOutOfRange:
		return 400
	case CodeUnauthenticated:
		return 401
	case CodePermissionDenied:
		return 403
	case CodeNotFound:
		return 404
	case CodeAlreadyExists, CodeAborted:
		return 409
	case CodeResourceExhausted:
		return 429
	case CodeUnimplemented:
		return 501
	case CodeUnavailable:
		return 503
	case CodeDeadlineExceeded:
		return 504
	default:
		return 500
	}
}

// Outcome states whether a server may have run a failed call. It decides whether calling again
// is safe.
type Outcome uint8

const (
	// MayHaveRun is the zero value and the default: the request left this process, and nothing
	// proves whether a server ran the call.
	MayHaveRun Outcome = iota
	// DidNotRun is a guarantee: no handler was started for the call, and none will be.
	DidNotRun
	// Ran means that a handler ran and reported its result.
	Ran
)

// String returns "may have run", "did not run" or "ran".
func (o Outcome) String() string {
	switch o {
	case DidNotRun:
		return "did not run"
	case Ran:
		return "ran"
	default:
		return "may have run"
	}
}
