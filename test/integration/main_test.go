//go:build integration

// Package integration tests the library against a real broker.
package integration

import (
	"context"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// echo answers its argument.
func echo(_ context.Context, req *amqpx.Request) ([]byte, error) { return req.Body, nil }

// letter answers what the server of this project answers: its own name.
func letter(_ context.Context, req *amqpx.Request) ([]byte, error) { return []byte(req.Method), nil }

// held is a handler that says when it was entered and answers when it is told to,
// whatever becomes of its context.
type held struct {
	entered chan *amqpx.Request
	release chan struct{}
	server  *rig.Server // that runs it, where a test asks for its counts
}

func hold() *held {
	return &held{entered: make(chan *amqpx.Request, 1024), release: make(chan struct{})}
}

func (h *held) handle(_ context.Context, req *amqpx.Request) ([]byte, error) {
	h.entered <- req
	<-h.release
	return req.Body, nil
}

// outcome is what a call that runs beside the test ends in.
type outcome struct {
	answer []byte
	err    error
}

// begin makes a call beside the test.
func begin(ctx context.Context, c *amqpx.Client, method string, body []byte, opts ...amqpx.CallOption) <-chan outcome {
	settled := make(chan outcome, 1)
	go func() { // ends with the call, at its deadline at the latest
		answer, err := c.Call(ctx, method, body, opts...)
		settled <- outcome{answer, err}
	}()
	return settled
}
