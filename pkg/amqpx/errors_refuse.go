package amqpx

import (
	"fmt"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Refuse returns the error with which middleware of a server refuses a call before the handler
// has started, for example because of a limit:
//
//	return nil, amqpx.Refuse(amqpx.CodeResourceExhausted, "tenant %q is over its limit", t).WithRetryAfter(time.Second)
//
// The caller gets the code with [DidNotRun], unless the request was delivered or sent before. A
// client retries a refusal with [CodeResourceExhausted] or [CodeUnavailable] within the call's
// deadline and the retry budget ([WithRetryBudget]), not before the time of [Error.WithRetryAfter];
// any other code reaches the caller at once. The server counts the call as refused, and stores no
// response for its idempotency key.
//
// A handler may return the error as well if it has done nothing. If the handler has returned
// anything else for the same request, or is still running, the error is an error of a call that
// ran, like one of [Errorf]: middleware cannot take the execution back.
//
// The caller of a one-way request learns nothing, and the request is lost.
func Refuse(code Code, format string, args ...any) *Error {
	e := Errorf(code, format, args...)
	e.outcome, e.refused = DidNotRun, true
	return e
}

// WithRetryAfter returns a copy of the error with a hint how long to wait before calling again;
// zero or less means no hint. The hint reaches the caller, rounded up to milliseconds, and its
// client heeds it if it retries the call ([Refuse]).
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	if e == nil {
		return nil
	}
	own := *e
	own.retryAfter = min(max(d, 0), wire.MaxBudget)
	return &own
}

// Hide returns an error for the caller of a handler whose own call to another service failed with
// err. A handler that returns err itself passes on code, text and details of the other service:
// the end user reads "unauthenticated: token of service orders has expired". The returned error
// has no text or detail of err, and only these codes: [CodeCanceled] and [CodeDeadlineExceeded]
// stay; [CodeUnavailable], [CodeResourceExhausted] and [CodeAborted] become [CodeUnavailable] with
// the hint of [Error.RetryAfter], because trying again may help; any other code, and an error
// without a code, becomes [CodeInternal]. The server logs err with the response, and on the server
// [errors.Is] and [errors.As] find err. Hide(nil) is nil.
func Hide(err error) error {
	if err == nil {
		return nil
	}
	e := &Error{outcome: Ran, hidden: err, causes: []error{err}}
	switch e.code = CodeOf(err); e.code {
	case CodeCanceled:
		e.message = "the call was canceled"
	case CodeDeadlineExceeded:
		e.message = "the call's time ran out"
	case CodeUnavailable, CodeResourceExhausted, CodeAborted:
		e.code, e.message, e.retryAfter = CodeUnavailable, "a service that this call needs is not available", codedError(err).RetryAfter()
	default:
		e.code, e.message = CodeInternal, "internal error"
	}
	return e
}

// hiddenError returns the error behind e for the log of the server; nil if e hides none.
func (e *Error) hiddenError() error {
	if e.hidden == nil {
		return nil
	}
	return fmt.Errorf("hidden from the caller: %w", e.hidden)
}
