package main

import (
	"context"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/internal/loadgen"
	"rabbitmq-rpc/pkg/amqpx"
)

// fake is a client whose calls return the results of the function response.
type fake struct {
	response func(ctx context.Context, n int64) ([]byte, error)
	stats    amqpx.ClientStats
	closeErr error

	calls  atomic.Int64
	closed atomic.Bool
}

func (f *fake) Call(ctx context.Context, method string, body []byte, _ ...amqpx.CallOption) ([]byte, error) {
	if method != "b" || string(body) != "request" {
		return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "called %q with %q", method, body)
	}
	return f.response(ctx, f.calls.Add(1))
}

func (f *fake) Ping(context.Context) (time.Duration, error) { return time.Millisecond, nil }
func (f *fake) Consumers(context.Context) (int, error)      { return 1, nil }

// Status returns the status of a client that has connected.
func (f *fake) Status() amqpx.Status {
	return amqpx.Status{State: amqpx.StateReady, Generation: 1}
}

func (f *fake) Watch(context.Context) <-chan amqpx.Status {
	updates := make(chan amqpx.Status, 1)
	updates <- f.Status()
	return updates
}

func (f *fake) Stats() amqpx.ClientStats          { return f.stats }
func (f *fake) WaitReady(context.Context) error   { return nil }
func (f *fake) Close(context.Context) error       { f.closed.Store(true); return f.closeErr }
func good(context.Context, int64) ([]byte, error) { return []byte("b"), nil }

func plan(calls, concurrency int) *Config {
	return &Config{
		Method: "b", Body: "request", Expect: "b", Calls: calls, Concurrency: concurrency, Timeout: time.Second,
	}
}

// silent is a progress without output.
type silent struct{}

func (silent) Every() time.Duration    { return 0 }
func (silent) Tick(*loadgen.Results)   {}
func (silent) Step(*loadgen.Results)   {}
func (silent) Finish(*loadgen.Results) {}
