package contender

import (
	"context"
	"errors"
	"fmt"

	"rabbitmq-rpc/pkg/amqpx"
)

// overAMQPX measures this repository's library, pkg/amqpx.
type overAMQPX struct {
	batch, direct, persistent, quorum, idempotent bool
	secure
	telemetry
	surface surface // nil: calls with bytes
}

// surface is a way to register handlers and to make calls that the library offers above calls with
// bytes.
type surface interface {
	// settings describes the surface, as the beginning of a contender's settings.
	settings() string
	// register registers the methods of a server.
	register(s *amqpx.Server, h *Handler) error
	// caller returns a caller that makes its calls with the client.
	caller(c *amqpx.Client) Caller
}

func (c overAMQPX) Settings() string {
	text := "pkg/amqpx"
	if c.surface != nil {
		text = c.surface.settings()
	}
	if c.batch {
		text += ", batches"
	} else {
		text += ", every call a message"
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
	if c.idempotent {
		text += ", idempotent calls"
	}
	return text + c.secure.settings() + c.telemetry.settings() + fmt.Sprintf(", publisher confirms on both sides, a request acked after its response's confirm, deadline on every call, %d workers", amqpx.DefaultWorkers)
}

// Serve implements native: a server for each request queue.
func (c overAMQPX) Serve(ctx context.Context, env Environment, h *Handler, ready func(string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var servers []*amqpx.Server
	for i := range env.QueueNames() {
		s, err := c.server(env.at(i), h) //nolint:contextcheck // NewServer takes no context.
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	served := make(chan error, len(servers))
	for _, s := range servers {
		go func() { // ends with ctx; awaited below
			served <- s.Serve(ctx)
			cancel() // the others, if this server ended early
		}()
	}
	var faults []error
	for _, s := range servers {
		faults = append(faults, s.WaitReady(ctx))
	}
	if err := errors.Join(faults...); err != nil {
		cancel()
	} else {
		ready("")
	}
	for range servers {
		faults = append(faults, <-served)
	}
	return errors.Join(faults...)
}

// server returns a server for env's queue.
func (c overAMQPX) server(env Environment, h *Handler) (*amqpx.Server, error) {
	opts := []amqpx.ServerOption{amqpx.WithShards(max(env.Shards, 1)), amqpx.WithQueue(c.queue(env)), amqpx.WithBatch(c.mode()), amqpx.WithPersistent(c.persistent)}
	if env.Workers > 0 {
		opts = append(opts, amqpx.WithWorkers(env.Workers))
	}
	watch, opts := c.ofServer(opts)
	s, err := amqpx.NewServer(c.broker(env), opts...)
	if err != nil {
		return nil, err
	}
	watch(s)
	if c.surface != nil {
		return s, c.surface.register(s, h)
	}
	for _, method := range []string{MethodQuick, MethodSlow, MethodEcho, MethodHold, MethodUrgent} {
		err := s.Handle(method, func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			return h.Answer(ctx, req.Method, req.Body)
		})
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Dial implements native. Several clients connect at the same time.
func (c overAMQPX) Dial(ctx context.Context, env Environment) (Caller, error) {
	if c.surface != nil {
		return c.dialSurface(ctx, env)
	}
	var all amqpxClients
	for i := range max(env.Clients, len(env.QueueNames())) {
		//nolint:contextcheck // a client lives until Close, so it takes no context.
		client, err := c.client(env.ofClient(i))
		if err != nil {
			return nil, errors.Join(err, all.Close(ctx))
		}
		all = append(all, amqpxCaller{client})
	}
	for _, each := range all {
		if err := each.client.WaitReady(ctx); err != nil {
			return nil, errors.Join(err, all.Close(ctx))
		}
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return all, nil
}

// dialSurface returns the caller of the contender's surface, with one client.
func (c overAMQPX) dialSurface(ctx context.Context, env Environment) (Caller, error) {
	client, err := c.client(env) //nolint:contextcheck // a client lives until Close, so it takes no context.
	if err != nil {
		return nil, err
	}
	if err := client.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, client.Close(ctx))
	}
	return c.surface.caller(client), nil
}

// client returns a client of env's queue.
func (c overAMQPX) client(env Environment) (*amqpx.Client, error) {
	opts := []amqpx.ClientOption{amqpx.WithShards(max(env.Shards, 1)), amqpx.WithQueue(c.queue(env)), amqpx.WithBatch(c.mode()), amqpx.WithPersistent(c.persistent)}
	if c.direct {
		opts = append(opts, amqpx.WithReplyMode(amqpx.ReplyDirect))
	}
	if c.idempotent {
		opts = append(opts, amqpx.WithCallOptions(amqpx.Idempotent()))
	}
	if env.Priority > 0 {
		opts = append(opts, amqpx.WithMethod(MethodUrgent, amqpx.WithPriority(env.Priority)))
	}
	if env.InFlight > 0 {
		opts = append(opts, amqpx.WithMaxInFlight(env.InFlight))
	}
	watch, opts := c.ofClient(opts)
	client, err := amqpx.NewClient(c.broker(env), opts...)
	if err != nil {
		return nil, err
	}
	watch(client)
	return client, nil
}

func (c overAMQPX) mode() amqpx.BatchMode {
	if c.batch {
		return amqpx.BatchAuto
	}
	return amqpx.BatchOff
}

func (c overAMQPX) queue(env Environment) amqpx.Queue {
	q := amqpx.Queue{Name: env.Queue, Type: amqpx.QueueClassic, MaxPriority: env.MaxPriority}
	if c.quorum || env.Quorum {
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

// amqpxClients are several clients. It implements Many.
type amqpxClients []amqpxCaller

// Call implements caller, with the first client.
func (c amqpxClients) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	return c[0].Call(ctx, method, body)
}

// Nth implements many.
func (c amqpxClients) Nth(n int64) Caller { return c[n%int64(len(c))] }

// Close implements caller. The clients close at the same time.
func (c amqpxClients) Close(ctx context.Context) error {
	closed := make(chan error, len(c))
	for _, each := range c {
		go func() { closed <- each.Close(ctx) }() // ends with ctx; awaited below
	}
	var faults []error
	for range c {
		faults = append(faults, <-closed)
	}
	return errors.Join(faults...)
}
