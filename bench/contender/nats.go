package contender

import (
	"context"
	"errors"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// overNATS measures core NATS request-reply: no persistence, at most once.
type overNATS struct{}

func (overNATS) Settings() string {
	return "NATS core request-reply, no JetStream: nats-server embedded in a process of its own, nats.go with its multiplexed reply inbox, queue subscription, handler inline in its callback unless workers are set, " +
		"one connection each side; at most once, nothing is confirmed or kept"
}

const (
	natsMethod = "Method"
	// natsBuffer is the limit of pending messages of a subscription; the limit in bytes is
	// off. The client's default drops messages beyond 64 MiB.
	natsBuffer = 1 << 20
)

// Broker implements brokered.
func (overNATS) Broker(ctx context.Context, ready func(string)) error {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, MaxPayload: 8 << 20, MaxPending: 1 << 30})
	if err != nil {
		return err
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(EndTimeout) {
		return errors.New("the NATS server does not come up")
	}
	ready(s.ClientURL())
	<-ctx.Done()
	return nil
}

// Serve implements native.
func (overNATS) Serve(ctx context.Context, env Environment, h *Handler, ready func(string)) error {
	conn, err := nats.Connect(env.Endpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	faults := make(chan error, 1)
	respond := func(m *nats.Msg) {
		body, err := h.Answer(ctx, m.Header.Get(natsMethod), m.Data)
		if err = errors.Join(err, m.Respond(body)); err != nil {
			select {
			case faults <- err:
			default: // the first error is enough
			}
		}
	}
	take := respond
	if env.Workers > 0 {
		jobs := make(chan *nats.Msg)
		var workers sync.WaitGroup
		defer workers.Wait()
		for range env.Workers {
			workers.Go(func() { natsWork(ctx, jobs, respond) }) // ends when ctx does
		}
		take = func(m *nats.Msg) {
			select {
			case jobs <- m:
			case <-ctx.Done():
			}
		}
	}
	sub, err := conn.QueueSubscribe(env.Queue, "servers", take)
	if err != nil {
		return err
	}
	if err := errors.Join(sub.SetPendingLimits(natsBuffer, -1), conn.Flush()); err != nil {
		return err
	}
	ready("")
	select {
	case <-ctx.Done():
		return nil
	case err := <-faults:
		return err
	}
}

func natsWork(ctx context.Context, jobs <-chan *nats.Msg, respond func(*nats.Msg)) {
	for {
		select {
		case m := <-jobs:
			respond(m)
		case <-ctx.Done():
			return
		}
	}
}

// Dial implements native.
func (overNATS) Dial(_ context.Context, env Environment) (Caller, error) {
	conn, err := nats.Connect(env.Endpoint)
	if err != nil {
		return nil, err
	}
	return natsCaller{conn, env.Queue}, nil
}

type natsCaller struct {
	conn    *nats.Conn
	subject string
}

// Call implements caller.
func (c natsCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := c.conn.RequestMsgWithContext(ctx, &nats.Msg{Subject: c.subject, Data: body, Header: nats.Header{natsMethod: {method}}})
	if err != nil {
		return nil, err
	}
	return response.Data, nil
}

// Close implements caller.
func (c natsCaller) Close(context.Context) error {
	c.conn.Close()
	return nil
}
