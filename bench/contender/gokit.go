package contender

import (
	"context"
	"errors"
	"fmt"
	"sync"

	gokit "github.com/go-kit/kit/transport/amqp"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// goKit measures the AMQP transport of github.com/go-kit/kit. The transport's default
// Deliverer opens a consumer for every call and never cancels the consumer. From the second
// call on a queue, responses therefore go to consumers that are no longer read. The Deliverer
// here consumes the reply queue once.
type goKit struct{}

func (goKit) Settings() string {
	return fmt.Sprintf("go-kit/kit transport/amqp: one Publisher with a Deliverer of our own, which consumes one exclusive reply queue once and hands answers out by correlation id, "+
		"because the default one loses answers; ids set by a RequestFunc; no publisher confirms, a request acked after its response was written, one connection each side, prefetch %d, Subscriber inline in the consuming goroutine, transient messages", loopPrefetch)
}

// goKitCall is the request type for go-kit's endpoints.
type goKitCall struct {
	method string
	body   []byte
}

// Serve implements native.
func (goKit) Serve(ctx context.Context, env Environment, h *Handler, ready func(string)) error {
	k, err := loop{}.open(env.URL)
	if err != nil {
		return err
	}
	requests, err := (&loopServer{conns: k}).consume(env.Queue, prefetchOf(env))
	if err != nil {
		return errors.Join(err, k.close())
	}
	stop := context.AfterFunc(ctx, func() { _ = k.close() })
	defer stop()
	serve := gokit.NewSubscriber(
		func(ctx context.Context, request any) (any, error) {
			c, ok := request.(goKitCall)
			if !ok {
				return nil, fmt.Errorf("request of type %T", request)
			}
			return h.Answer(ctx, c.method, c.body)
		},
		func(_ context.Context, d *amqp.Delivery) (any, error) { return goKitCall{d.AppId, d.Body}, nil },
		encodeGoKit,
		gokit.SubscriberErrorEncoder(gokit.ReplyErrorEncoder),
	).ServeDelivery(k.pub)
	var workers sync.WaitGroup
	for range max(1, env.Workers) {
		workers.Go(func() { // ends with the connection
			for d := range requests {
				serve(&d)
				_ = d.Ack(false)
			}
		})
	}
	ready("")
	workers.Wait()
	if ctx.Err() != nil {
		return nil // the requested end
	}
	return errors.New("the requests ended")
}

// encodeGoKit writes a request or a response into a message.
func encodeGoKit(_ context.Context, p *amqp.Publishing, value any) error {
	switch v := value.(type) {
	case goKitCall:
		p.AppId, p.Body = v.method, v.body
	case []byte:
		p.Body = v
	default:
		return fmt.Errorf("value of type %T", value)
	}
	return nil
}

// Dial implements native.
func (goKit) Dial(ctx context.Context, env Environment) (Caller, error) {
	under, err := loop{}.Dial(ctx, env)
	if err != nil {
		return nil, err
	}
	c, ok := under.(*loopCaller)
	if !ok {
		return nil, fmt.Errorf("caller of type %T", under)
	}
	p := gokit.NewPublisher(c.conns.pub, &amqp.Queue{Name: c.replyTo}, encodeGoKit,
		func(_ context.Context, d *amqp.Delivery) (any, error) { return d.Body, nil },
		gokit.PublisherBefore(gokit.SetPublishKey(env.Queue), func(ctx context.Context, p *amqp.Publishing, _ *amqp.Delivery) context.Context {
			p.CorrelationId = uuid.NewString()
			return ctx
		}),
		gokit.PublisherTimeout(callTimeout),
		gokit.PublisherDeliverer(func(ctx context.Context, _ gokit.Publisher, p *amqp.Publishing) (*amqp.Delivery, error) {
			body, err := c.roundTrip(ctx, *p)
			return &amqp.Delivery{Body: body}, err
		}))
	return goKitCaller{endpoint: p.Endpoint(), loopCaller: c}, nil
}

type goKitCaller struct {
	endpoint func(ctx context.Context, request any) (any, error)
	*loopCaller
}

// Call implements caller.
func (c goKitCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	response, err := c.endpoint(ctx, goKitCall{method, body})
	if err != nil {
		return nil, err
	}
	text, ok := response.([]byte)
	if !ok {
		return nil, fmt.Errorf("response of type %T", response)
	}
	return text, nil
}
