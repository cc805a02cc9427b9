package contender

import (
	"context"
	"errors"
	"strconv"
	"sync"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// Dial implements native.
func (l loop) Dial(_ context.Context, env Environment) (Caller, error) {
	k, err := l.open(l.broker(env))
	if err != nil {
		return nil, err
	}
	c := &loopCaller{deadlines: l.deadlines, conns: k, queue: env.Queue, replyTo: directReplyTo, waiting: make(map[string]chan []byte), ended: make(chan struct{})}
	if !l.direct {
		q, err := k.sub.QueueDeclare("", false, false, true, false, nil)
		if err != nil {
			return nil, errors.Join(err, k.close())
		}
		c.replyTo = q.Name
	}
	responses, err := k.sub.Consume(c.replyTo, "", true, !l.direct, false, false, nil)
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	go c.read(responses) // ends with the connection
	return c, nil
}

type loopCaller struct {
	deadlines bool
	conns     *loopConns
	queue     string
	replyTo   string
	ended     chan struct{} // closed when no more responses arrive

	mu      sync.Mutex
	waiting map[string]chan []byte
}

// read passes each response to the waiting call.
func (c *loopCaller) read(responses <-chan amqp.Delivery) {
	defer close(c.ended)
	for d := range responses {
		c.mu.Lock()
		response, ok := c.waiting[d.CorrelationId]
		delete(c.waiting, d.CorrelationId)
		c.mu.Unlock()
		if ok {
			response <- d.Body
		}
	}
}

// Call implements caller.
func (c *loopCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	request := amqp.Publishing{AppId: method, ReplyTo: c.replyTo, CorrelationId: uuid.NewString(), Body: body}
	if c.deadlines {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
		budget := callTimeout.Milliseconds()
		request.Expiration = strconv.FormatInt(budget, 10)
		request.Headers = amqp.Table{"rpc-timeout-ms": budget}
	}
	return c.roundTrip(ctx, request)
}

// roundTrip sends a request and waits for the response.
func (c *loopCaller) roundTrip(ctx context.Context, request amqp.Publishing) ([]byte, error) {
	response := make(chan []byte, 1)
	c.mu.Lock()
	c.waiting[request.CorrelationId] = response
	c.mu.Unlock()
	confirm, err := c.conns.pub.PublishWithDeferredConfirm("", c.queue, true, false, request)
	if err != nil {
		return nil, err
	}
	if confirm != nil {
		ok, err := confirm.WaitContext(ctx)
		if err != nil || !ok {
			return nil, errors.Join(err, errors.New("not confirmed"))
		}
	}
	select {
	case body := <-response:
		return body, nil
	case <-c.ended:
		return nil, errors.New("the responses ended")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close implements caller.
func (c *loopCaller) Close(context.Context) error { return c.conns.close() }
