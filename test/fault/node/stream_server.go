package main

import (
	"context"
	"errors"
	"os"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/items"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

// registerStreams adds the methods of the suite for streams.
func (n *node) registerStreams(server *amqpx.Server) error {
	return errors.Join(
		server.HandleStream(ledger.Source, n.recordedStream(source)),
		server.HandleStream(ledger.OnceSource, n.recordedStream(source), amqpx.AtMostOnce()),
		server.HandleStream(ledger.FailSource, n.recordedStream(failSource)),
		server.HandleStream(ledger.Sink, n.recordedStream(sink)),
		server.HandleStream(ledger.Mirror, n.recordedStream(mirror)),
	)
}

// recordedStream records the start and the end of a handler of streams.
func (n *node) recordedStream(h func(ctx context.Context, s *amqpx.ServerStream, p *plan, f *ledger.Flow) error) amqpx.StreamHandler {
	return func(ctx context.Context, s *amqpx.ServerStream) error {
		req := s.Request()
		p, err := parsePlan(req.Header[planHeader])
		if err != nil {
			return err
		}
		e := ledger.Entry{Kind: ledger.StreamRun, ID: p.id, Method: req.Method, Redelivered: req.Redelivered, PID: os.Getpid()}
		n.record(e)
		e.Kind, e.Code, e.Flow = ledger.StreamDone, ledger.OK, new(ledger.Flow)
		if err = h(ctx, s, &p, e.Flow); err != nil {
			e.Code, e.Text = string(amqpx.CodeOf(err)), err.Error()
			told(e.Flow, amqpx.ProgressOf(err))
		}
		n.record(e)
		return err
	}
}

func source(ctx context.Context, s *amqpx.ServerStream, p *plan, f *ledger.Flow) (err error) {
	if f.Offered, err = p.send(items.Down, ctx.Done(), s.Send); err == nil && f.Offered < p.items {
		err = context.Cause(ctx)
	}
	return err
}

func failSource(ctx context.Context, s *amqpx.ServerStream, p *plan, f *ledger.Flow) error {
	if err := source(ctx, s, p, f); err != nil {
		return err
	}
	return amqpx.Errorf(ledger.FailCode, "%s", p.id)
}

// sink takes items until their end.
func sink(_ context.Context, s *amqpx.ServerStream, p *plan, f *ledger.Flow) error {
	if err := take(s, p, f, func(int) error { return nil }); err != nil {
		return err
	}
	f.Offered = 1
	return s.Send(items.Item(p.id, items.Down, 0, 0))
}

// mirror sends an item for each that it takes.
func mirror(_ context.Context, s *amqpx.ServerStream, p *plan, f *ledger.Flow) error {
	return take(s, p, f, func(number int) error {
		err := s.Send(items.Item(p.id, items.Down, number, p.size))
		if err == nil {
			f.Offered++
		}
		return err
	})
}

// take calls each for every item that arrives, until their end.
func take(s *amqpx.ServerStream, p *plan, f *ledger.Flow, each func(number int) error) error {
	got := items.NewSequence(p.id, items.Up)
	defer func() { f.Received, f.Wrong = got.Count, got.Wrong }()
	for item, err := range s.All() {
		if err != nil {
			return err
		}
		if err := each(got.Add(item)); err != nil {
			return err
		}
	}
	f.Whole = true
	return nil
}
