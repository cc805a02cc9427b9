package contender

import (
	"context"
	"errors"
	"fmt"

	"rabbitmq-rpc/pkg/amqpx"
)

// overAMQPX measures this repository's library, pkg/amqpx.
type overAMQPX struct {
	batch, direct, persistent, quorum bool
	secure
	telemetry
}

func (c overAMQPX) Settings() string {
	text := "pkg/amqpx, every call a message"
	if c.batch {
		text = "pkg/amqpx, batch lane"
	}
	if c.direct {
		text += ", direct reply-to"
	} else {
		text += ", durable reply queue"
	}
	switch {
	case c.quorum:
		text += ", quorum queue"
	case c.persistent:
		text += ", persistent messages"
	default:
		text += ", transient messages"
	}
	return text + c.secure.settings() + c.telemetry.settings() + fmt.Sprintf(", publisher confirms on both sides, a request acked after its response's confirm, deadline on every call, %d workers", amqpx.DefaultWorkers)
}

// Serve implements native.
func (c overAMQPX) Serve(ctx context.Context, env Environment, h *Handler, ready func(string)) error {
	opts := []amqpx.ServerOption{amqpx.WithQueue(c.queue(env)), amqpx.WithBatch(c.mode()), amqpx.WithPersistent(c.persistent)}
	if env.Workers > 0 {
		opts = append(opts, amqpx.WithWorkers(env.Workers))
	}
	watch, opts := c.ofServer(opts)
	s, err := amqpx.NewServer(c.broker(env), opts...)
	if err != nil {
		return err
	}
	watch(s)
	for _, method := range []string{MethodQuick, MethodSlow, MethodEcho, MethodHold} {
		err := s.Handle(method, func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			return h.Answer(ctx, req.Method, req.Body)
		})
		if err != nil {
			return err
		}
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }() // ends with ctx; awaited below
	if err := s.WaitReady(ctx); err != nil {
		return errors.Join(err, <-served)
	}
	ready("")
	return <-served
}

// Dial implements native.
func (c overAMQPX) Dial(ctx context.Context, env Environment) (Caller, error) {
	opts := []amqpx.ClientOption{amqpx.WithQueue(c.queue(env)), amqpx.WithBatch(c.mode()), amqpx.WithPersistent(c.persistent)}
	if c.direct {
		opts = append(opts, amqpx.WithReplyMode(amqpx.ReplyDirect))
	}
	if env.InFlight > 0 {
		opts = append(opts, amqpx.WithMaxInFlight(env.InFlight))
	}
	watch, opts := c.ofClient(opts)
	//nolint:contextcheck // a client lives until Close, so it takes no context.
	client, err := amqpx.NewClient(c.broker(env), opts...)
	if err != nil {
		return nil, err
	}
	watch(client)
	if err := client.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, client.Close(ctx))
	}
	return amqpxCaller{client}, nil
}

func (c overAMQPX) mode() amqpx.BatchMode {
	if c.batch {
		return amqpx.BatchAuto
	}
	return amqpx.BatchOff
}

func (c overAMQPX) queue(env Environment) amqpx.Queue {
	q := amqpx.Queue{Name: env.Queue, Type: amqpx.QueueClassic}
	if c.quorum {
		q.Type = amqpx.QueueQuorum
	}
	return q
}

type amqpxCaller struct{ client *amqpx.Client }

// Call implements caller.
func (c amqpxCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	return c.client.Call(ctx, method, body)
}

// Start implements starter.
func (c amqpxCaller) Start(ctx context.Context, method string, body []byte) Started {
	return c.client.Go(ctx, method, body)
}

// Close implements caller.
func (c amqpxCaller) Close(ctx context.Context) error { return c.client.Close(ctx) }
