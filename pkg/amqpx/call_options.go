package amqpx

import (
	"maps"
	"time"
)

// CallOption configures one call.
type CallOption func(*callConfig)

type callConfig struct {
	idempotent     bool
	idempotencyKey string
	waitForServer  bool
	header         map[string]any
	info           *CallInfo

	contentType, contentEncoding string
}

// sentWith is what a request keeps of its options.
type sentWith struct {
	info          *CallInfo
	waitForServer bool
	ours          bool // nobody but the client itself sees the request
}

// CallInfo tells how a call went. Pass one with [WithCallInfo]; it is filled in
// when the call returns and must not be read before.
type CallInfo struct {
	// Attempts counts how often the request was sent: 1 unless it was re-sent, 0
	// when it never left.
	Attempts int
	// Queue is how long the request waited inside the server for a worker; zero
	// when the server did not say.
	Queue time.Duration
	// Handler is how long the handler ran; zero when the server did not say.
	Handler time.Duration
	// CorrelationID identified the call, as in a server's log.
	CorrelationID string
	// Response is the response that settled the call; nil when none arrived.
	Response *Response
}

// Idempotent declares that running the call twice does no harm. Only such a call
// is re-sent, under the same idempotency key, when the link is lost at a moment
// that leaves its outcome open. [WithMethod] declares it for every call of a method.
func Idempotent() CallOption { return func(c *callConfig) { c.idempotent = true } }

// WithIdempotencyKey sets the key (the message_id property, at most 255 bytes) that
// every re-send carries; the default is the call's correlation id. It declares the
// call idempotent.
//
// Within a minute by default ([WithReplay]), the same server runs requests with one method
// and key of one user of the broker ([Request.User]; [WithDedupScope] tells other
// identities) once, and gives all of them the response of that run. A key names one
// request: with another body it fails with [CodeFailedPrecondition] and [DidNotRun]. Only
// final results are kept, so a call that failed with a code such as [CodeUnavailable] runs
// again. Two servers on one queue know nothing of each other's requests: what must not
// happen twice needs the key in a database that they share. Whoever has the same user can
// get the response of a key that it knows.
func WithIdempotencyKey(key string) CallOption {
	return func(c *callConfig) { c.idempotencyKey, c.idempotent = key, true }
}

// WaitForServer makes a call that finds no request queue wait, with backoff and
// until its deadline, for a server to declare one. The default is to fail at once
// with [ErrUnroutable].
func WaitForServer() CallOption { return func(c *callConfig) { c.waitForServer = true } }

// WithHeader adds application headers. Names that begin with "rpc-", and "CC" and "BCC",
// by which a broker routes, are reserved and make the call fail with [CodeInvalidArgument].
// So does a value that cannot be sent: a pointer, a struct other than [time.Time], a function,
// a channel, a complex number, a whole number above 2^63 - 1, and a [time.Duration],
// which would have no unit there. Texts, numbers, true and false, and bytes of any named type,
// slices, arrays, and maps with text as keys are sent, at most 16 levels deep; a time.Time in
// whole seconds. All headers together may take 64 KiB.
func WithHeader(header map[string]any) CallOption {
	return func(c *callConfig) {
		merged := maps.Clone(c.header)
		if merged == nil {
			merged = make(map[string]any, len(header))
		}
		maps.Copy(merged, header)
		c.header = merged
	}
}

// WithContentType sets the content type and the content encoding of the request's body, such
// as "application/json" and "gzip"; "" is none, the default. Each is at most 255 bytes long.
// Servers of this package hand them to the handler and read no body themselves.
func WithContentType(contentType, contentEncoding string) CallOption {
	return func(c *callConfig) { c.contentType, c.contentEncoding = contentType, contentEncoding }
}

// WithCallInfo has info filled in when the call returns. It asks the server for the
// times, which takes headers in request and answer: they cost calls that travel alone an
// eighth of their throughput.
func WithCallInfo(info *CallInfo) CallOption { return func(c *callConfig) { c.info = info } }
