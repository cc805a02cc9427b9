// Package hook gives package amqpxtest four functions of package amqpx that are not exported: the
// option for a dialer of an internal type, the constructor of a client's errors, the request of a
// call, and the invocation of a handler for this request.
package hook

import (
	"context"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// WithDialer returns an amqpx.ConnectionOption that makes clients and servers open connections with a
// dialer. Package amqpx sets it.
//
//nolint:gochecknoglobals // set while package amqpx is initialised, and never changed.
var WithDialer func(transport.Dialer) any

// NewError returns an *amqpx.Error with these parts. Package amqpx sets it.
//
//nolint:gochecknoglobals // set while package amqpx is initialised, and never changed.
var NewError func(ErrorParts) any

// ErrorParts are the parts of an error. Code, Outcome and Progress have types of package amqpx, which
// this package cannot import.
type ErrorParts struct {
	Code       string
	Message    string
	Outcome    uint8
	Remote     bool
	RetryAfter time.Duration
	Causes     []error
	Progress   any // an *amqpx.Progress of the error's own; nil: the error is not one of a stream
}

// NewRequest returns the *amqpx.Request of a call, or of a one-way request, with the context ctx and the
// []amqpx.CallOption opts, as middleware of a client without options gets it. timeout is how long the
// call may take, 0 if only ctx says so, and mistake that of an invalid option. Package amqpx sets it.
//
//nolint:gochecknoglobals // set while package amqpx is initialised, and never changed.
var NewRequest func(ctx context.Context, method string, body []byte, opts any, oneWay bool) (req any, timeout time.Duration, mistake error)

// Invoke returns the context of a handler for a request of NewRequest, derived from ctx. end reports the
// end of the handler with its result: it sets the amqpx.CallInfo of the call, and tells whether a
// server would have responded with err, an *amqpx.Error or nil, rather than the client made it.
// Package amqpx sets it.
//
//nolint:gochecknoglobals // set while package amqpx is initialised, and never changed.
var Invoke func(ctx context.Context, req any) (handler context.Context, end func(body []byte, err error) (responded bool))
