package main

import (
	"context"
	"errors"

	"rabbitmq-rpc/pkg/amqpx"
)

// registry is the part of [amqpx.Server] for registering functions.
type registry interface {
	Handle(method string, h amqpx.Handler, opts ...amqpx.HandleOption) error
}

// register registers every function of this server.
func register(r registry) error {
	return errors.Join(
		r.Handle("a", answer("a")),
		r.Handle("b", answer("b")),
	)
}

// answer returns a handler with the fixed result text. The handler is pure, so running it
// twice does no harm.
func answer(text string) amqpx.Handler {
	return func(context.Context, *amqpx.Request) ([]byte, error) {
		return []byte(text), nil
	}
}
