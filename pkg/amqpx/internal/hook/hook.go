// Package hook gives package amqpxtest what package amqpx does not export: an option whose type is
// internal, so that an exported option would show users a type that they cannot name, and errors
// that only a client makes.
package hook

import (
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// WithDialer returns an amqpx.Option that makes clients and servers open connections with a
// dialer. Package amqpx sets it.
//
//nolint:gochecknoglobals // set while package amqpx is initialised, and never changed.
var WithDialer func(transport.Dialer) any

// NewError returns an *amqpx.Error with these parts. Package amqpx sets it.
//
//nolint:gochecknoglobals // set while package amqpx is initialised, and never changed.
var NewError func(ErrorParts) any

// ErrorParts are the parts of an error. Code and Outcome have types of package amqpx, which this
// package cannot import.
type ErrorParts struct {
	Code       string
	Message    string
	Outcome    uint8
	Remote     bool
	RetryAfter time.Duration
	Causes     []error
}
