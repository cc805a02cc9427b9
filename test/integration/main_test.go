//go:build integration

// Package integration tests the library against a real broker.
package integration

import (
	"context"
	"fmt"
	"os"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

func TestMain(m *testing.M) {
	if os.Getenv(envMortalQueue) == "" {
		rig.Main(m)
		return
	}
	if err := serveUntilKilled(context.Background()); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// echo responds with the request body.
func echo(_ context.Context, req *amqpx.Request) ([]byte, error) { return req.Body, nil }

// letter responds like this project's server: with the method's name.
func letter(_ context.Context, req *amqpx.Request) ([]byte, error) { return []byte(req.Method), nil }

// held is a handler that reports its start and returns only when it is released, regardless of
// its context.
type held struct {
	entered chan *amqpx.Request
	release chan struct{}
	server  *rig.Server // the handler's server, for tests that read its counts
}

func hold() *held {
	return &held{entered: make(chan *amqpx.Request, 1024), release: make(chan struct{})}
}

func (h *held) handle(_ context.Context, req *amqpx.Request) ([]byte, error) {
	h.entered <- req
	<-h.release
	return req.Body, nil
}

// outcome is the result of a call made by begin.
type outcome struct {
	response []byte
	err      error
}

// begin makes a call in a goroutine.
func begin(ctx context.Context, c *amqpx.Client, method string, body []byte, opts ...amqpx.CallOption) <-chan outcome {
	settled := make(chan outcome, 1)
	go func() { // ends with the call, at its deadline at the latest
		response, err := c.Call(ctx, method, body, opts...)
		settled <- outcome{response, err}
	}()
	return settled
}
