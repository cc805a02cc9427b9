// Package hook gives package amqpxtest the one option of package amqpx that is not exported. Its
// type is internal, so an exported option would show users a type that they cannot name.
package hook

import "rabbitmq-rpc/pkg/amqpx/internal/transport"

// WithDialer returns an amqpx.ConnectionOption that makes clients and servers open connections with a
// dialer. Package amqpx sets it.
//
//nolint:gochecknoglobals // set while package amqpx is initialised, and never changed.
var WithDialer func(transport.Dialer) any
