package main

import (
	"context"
	"errors"

	"rabbitmq-rpc/pkg/amqpx"
)

// registry is the part of [amqpx.Server] that takes functions.
type registry interface {
	Handle(method string, h amqpx.Handler, opts ...amqpx.HandleOption) error
}

// register adds every function that this server serves.
func register(r registry) error {
	return errors.Join(
		r.Handle("a", answer("a")),
		r.Handle("b", answer("b")),
	)
}

// answer returns a function that answers text whatever its argument. It is pure,
// so running it twice does no harm.
func answer(text string) amqpx.Handler {
	return func(context.Context, *amqpx.Request) ([]byte, error) {
		return []byte(text), nil
	}
}
