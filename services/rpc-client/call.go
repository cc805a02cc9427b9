package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
)

// modeCall is the RPC_MODE for a single call.
const modeCall = "call"

// caller is the part of [amqpx.Client] for a single call.
type caller interface {
	Call(ctx context.Context, method string, body []byte, opts ...amqpx.CallOption) ([]byte, error)
}

// call connects, makes one call, writes the body of its response to stdout and closes the client.
func call(drain, force context.Context, settings *Config, stdout io.Writer, logger *zap.Logger) error {
	c, err := amqpx.NewClient(settings.AMQP.URL.Reveal(), settings.options(logger)...) //nolint:contextcheck // it lives until Close
	if err != nil {
		return lifecycle.ConfigError(err)
	}
	return errors.Join(callOnce(drain, c, settings, stdout), closeBy(force, c))
}

// callOnce makes one call and writes the body of its response to stdout, byte for byte. Its error
// contains the code and the outcome of the call.
func callOnce(ctx context.Context, c caller, settings *Config, stdout io.Writer) error {
	body, err := c.Call(ctx, settings.Method, []byte(settings.Body))
	if err != nil {
		return fmt.Errorf("%w (%v)", err, amqpx.OutcomeOf(err))
	}
	_, err = stdout.Write(body)
	return err
}
