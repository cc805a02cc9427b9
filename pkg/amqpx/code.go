package amqpx

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
	// CodeInvalidArgument: the request itself is wrong, whatever the server's state.
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
