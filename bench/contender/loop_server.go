package contender

import (
	"context"
	"errors"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Serve implements native.
func (l loop) Serve(ctx context.Context, env Environment, h *Handler, ready func(string)) error {
	k, err := l.open(l.broker(env))
	if err != nil {
		return err
	}
	s := &loopServer{deadlines: l.deadlines, handler: h, conns: k, unconfirmed: make(chan unconfirmedResponse, prefetchOf(env))}
	requests, err := s.consume(env.Queue, prefetchOf(env))
	if err != nil {
		return errors.Join(err, k.close())
	}
	stop := context.AfterFunc(ctx, func() { _ = k.close() })
	defer stop()
	var acks sync.WaitGroup
	acks.Go(s.ackConfirmed)
	ready("")
	err = s.work(ctx, requests, env.Workers)
	close(s.unconfirmed)
	acks.Wait()
	if ctx.Err() != nil {
		return nil // the requested end
	}
	return errors.Join(err, errors.New("the requests ended"))
}

type loopServer struct {
	deadlines   bool
	handler     *Handler
	conns       *loopConns
	unconfirmed chan unconfirmedResponse
}

type unconfirmedResponse struct {
	confirm *amqp.DeferredConfirmation
	request amqp.Delivery
}

func (s *loopServer) consume(queue string, prefetch int) (<-chan amqp.Delivery, error) {
	if _, err := s.conns.sub.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		return nil, err
	}
	if err := s.conns.sub.Qos(prefetch, 0, false); err != nil {
		return nil, err
	}
	return s.conns.sub.Consume(queue, "", false, false, false, false, nil)
}

// work processes requests in the given number of goroutines, at least one, until the
// deliveries end.
func (s *loopServer) work(ctx context.Context, requests <-chan amqp.Delivery, workers int) error {
	faults := make(chan error, max(1, workers))
	for range cap(faults) {
		go func() { faults <- s.matchAll(ctx, requests) }() // awaited below
	}
	var all []error
	for range cap(faults) {
		all = append(all, <-faults)
	}
	return errors.Join(all...)
}

func (s *loopServer) matchAll(ctx context.Context, requests <-chan amqp.Delivery) error {
	for d := range requests {
		arrived := time.Now()
		body, err := s.handler.Answer(ctx, d.AppId, d.Body)
		if err != nil {
			return errors.Join(err, s.conns.close()) // which ends the other workers
		}
		response := amqp.Publishing{CorrelationId: d.CorrelationId, Body: body}
		if s.deadlines {
			response.Headers = amqp.Table{"rpc-queue-us": int64(0), "rpc-handler-us": time.Since(arrived).Microseconds()}
		}
		confirm, err := s.conns.pub.PublishWithDeferredConfirm("", d.ReplyTo, false, false, response)
		if err != nil {
			return err
		}
		if confirm != nil {
			s.unconfirmed <- unconfirmedResponse{confirm, d}
		} else if err := d.Ack(false); err != nil {
			return err
		}
	}
	return nil
}

// ackConfirmed acknowledges each request after the broker confirmed its response.
func (s *loopServer) ackConfirmed() {
	for u := range s.unconfirmed {
		if u.confirm.Wait() {
			_ = u.request.Ack(false) // the consumer ends with the connection
		}
	}
}
