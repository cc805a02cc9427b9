package main

import (
	"context"
	"errors"

	"rabbitmq-rpc/pkg/amqpx"
)

// overAMQPX is this repository's library with its defaults.
type overAMQPX struct{ direct bool }

func (c overAMQPX) settings() string {
	if c.direct {
		return "pkg/amqpx, direct reply-to, otherwise its defaults"
	}
	return "pkg/amqpx with its defaults: durable reply queue, publisher confirms on both sides, a request acked after its answer's confirm, deadline on every call"
}

// serve implements contender.
func (c overAMQPX) serve(ctx context.Context, env environment, ready func()) error {
	s, err := amqpx.NewServer(env.URL, amqpx.WithQueue(requestQueue(env)))
	if err != nil {
		return err
	}
	err = s.Handle(method, func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		if string(req.Body) != requestBody {
			return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "body %q", req.Body)
		}
		return []byte(answerBody), nil
	})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }() // ends when ctx does; awaited below
	if err := s.WaitReady(ctx); err != nil {
		return errors.Join(err, <-served)
	}
	ready()
	return <-served
}

// dial implements contender.
func (c overAMQPX) dial(ctx context.Context, env environment) (caller, error) {
	mode := amqpx.ReplyQueue
	if c.direct {
		mode = amqpx.ReplyDirect
	}
	//nolint:contextcheck // a client lives until Close, so it takes no context.
	client, err := amqpx.NewClient(env.URL, amqpx.WithQueue(requestQueue(env)), amqpx.WithReplyMode(mode))
	if err != nil {
		return nil, err
	}
	if err := client.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, client.Close(ctx))
	}
	return amqpxCaller{client}, nil
}

func requestQueue(env environment) amqpx.Queue {
	return amqpx.Queue{Name: env.Queue, Type: amqpx.QueueClassic, Durable: true}
}

type amqpxCaller struct{ client *amqpx.Client }

// call implements caller.
func (c amqpxCaller) call(ctx context.Context) ([]byte, error) {
	return c.client.Call(ctx, method, []byte(requestBody))
}

// close implements caller.
func (c amqpxCaller) close(ctx context.Context) error { return c.client.Close(ctx) }
