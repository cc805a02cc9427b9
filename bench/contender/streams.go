package contender

import (
	"context"
	"fmt"

	"rabbitmq-rpc/pkg/amqpx"
)

// A call of the contenders of items is a stream of this many items, each of this size.
const (
	itemsOfCall = 10_000
	itemSize    = 100
)

// itemsSettings describes the call.
const itemsSettings = "a call is a stream of 10,000 items of 100 bytes"

func newItem() []byte { return make([]byte, itemSize) }

// itemCount counts the items of a stream.
type itemCount struct{ n int }

func (c *itemCount) add(item []byte) error {
	c.n++
	if len(item) != itemSize {
		return fmt.Errorf("item %d has %d bytes, want %d", c.n, len(item), itemSize)
	}
	return nil
}

func (c *itemCount) check() error {
	if c.n != itemsOfCall {
		return fmt.Errorf("stream of %d items, want %d", c.n, itemsOfCall)
	}
	return nil
}

// items is the surface of streams with many answers to one request.
type items struct{}

func (items) settings() string { return "pkg/amqpx, " + itemsSettings }

func (items) register(s *amqpx.Server, _ *Handler) error {
	return s.HandleStream(MethodQuick, func(_ context.Context, stream *amqpx.ServerStream) error {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		item := newItem()
		for range itemsOfCall {
			if err := stream.Send(item); err != nil {
				return err
			}
		}
		return nil
	})
}

func (items) caller(c *amqpx.Client) Caller { return itemsCaller{c} }

type itemsCaller struct{ client *amqpx.Client }

// Call implements caller.
func (c itemsCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	count := itemCount{}
	for item, err := range c.client.Stream(ctx, method, body) {
		if err == nil {
			err = count.add(item)
		}
		if err != nil {
			return nil, err
		}
	}
	return []byte(ResponseBody), count.check()
}

// Close implements caller.
func (c itemsCaller) Close(ctx context.Context) error { return c.client.Close(ctx) }

// pingPong is the surface of streams on which each item is answered by one. A call is an item each
// way on an idle stream; streams stay open between calls.
type pingPong struct{}

func (pingPong) settings() string { return "pkg/amqpx, a call is an item each way on an open stream" }

func (pingPong) register(s *amqpx.Server, h *Handler) error {
	return s.HandleStream(MethodQuick, func(ctx context.Context, stream *amqpx.ServerStream) error {
		for item, err := range stream.All() {
			if err != nil {
				return err
			}
			answer, err := h.Answer(ctx, MethodQuick, item)
			if err != nil {
				return err
			}
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
		return nil
	}, amqpx.MaxStreams(maxPingPong))
}

// maxPingPong is the largest number of callers.
const maxPingPong = 2048

func (pingPong) caller(c *amqpx.Client) Caller {
	return &pingPongCaller{client: c, idle: make(chan *amqpx.ClientStream, maxPingPong)}
}

type pingPongCaller struct {
	client *amqpx.Client
	idle   chan *amqpx.ClientStream
}

// Call implements caller. A stream outlives the call that opens it, and its context.
func (c *pingPongCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	var stream *amqpx.ClientStream
	select {
	case stream = <-c.idle:
	default:
		var err error
		if stream, err = c.client.Open(context.WithoutCancel(ctx), method); err != nil {
			return nil, err
		}
	}
	if err := stream.Send(body); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	c.idle <- stream
	return answer, nil
}

// Close implements caller.
func (c *pingPongCaller) Close(ctx context.Context) error {
	for {
		select {
		case stream := <-c.idle:
			stream.Close()
		default:
			return c.client.Close(ctx)
		}
	}
}
