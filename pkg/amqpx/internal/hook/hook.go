// Package hook gives package amqpxtest three functions of package amqpx that are not exported: the
// option for a dialer of an internal type, the constructor of a client's errors, and the request
// of a call.
package hook

import (
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

// NewRequest returns the *amqpx.Request of a call with the []amqpx.CallOption opts, as middleware
// of a client without options gets it, the time of CallTimeout, 0 if there is none, and the mistake
// of an invalid option. Package amqpx sets it.
//
//nolint:gochecknoglobals // set while package amqpx is initialised, and never changed.
var NewRequest func(method string, body []byte, opts any) (req any, timeout time.Duration, mistake error)
