package contender

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
)

// overWatermill measures watermill's request-reply over its AMQP publisher and subscriber. As
// documented, watermill declares and consumes a reply queue for every call; here all calls of
// a client share one reply queue.
type overWatermill struct{}

const (
	// watermillHandlers is the number of subscriptions of a server. A subscription processes
	// one message at a time.
	watermillHandlers = 64
	// watermillChannels is the size of a publisher's channel pool.
	watermillChannels = 16
	// watermillPrefetch is the prefetch of each subscription.
	watermillPrefetch = 128
)

func (overWatermill) Settings() string {
	return fmt.Sprintf("watermill components/requestreply over watermill-amqp: one reply queue for each client behind a Subscriber of our own, which hands replies out by operation id "+
		"(as documented it would declare a queue for every call), %d subscriptions in the server because each takes one message at a time, prefetch %d, pool of %d channels, bodies not wrapped in JSON; no publisher confirms, transient messages, "+
		"a request acked after its reply was written", watermillHandlers, watermillPrefetch, watermillChannels)
}

func (overWatermill) config(env Environment) wamqp.Config {
	c := wamqp.NewNonDurableQueueConfig(env.URL)
	c.Publish.ChannelPoolSize = watermillChannels
	c.Consume.Qos.PrefetchCount = watermillPrefetch
	return c
}

// Serve implements native.
func (c overWatermill) Serve(ctx context.Context, env Environment, h *Handler, ready func(string)) error {
	logger := watermill.NopLogger{}
	publisher, err := wamqp.NewPublisher(c.config(env), logger)
	if err != nil {
		return err
	}
	defer func() { _ = publisher.Close() }()
	subscriber, err := wamqp.NewSubscriber(c.config(env), logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: EndTimeout}, logger)
	if err != nil {
		return errors.Join(err, subscriber.Close())
	}
	backend, err := watermillBackend(publisher, nil)
	if err != nil {
		return errors.Join(err, subscriber.Close())
	}
	for i := range max(watermillHandlers, env.Workers) {
		processor, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
			GenerateSubscribeTopic: func(cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) { return env.Queue, nil },
			SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
				return subscriber, nil
			},
			Marshaler: watermillCommands{},
		})
		if err != nil {
			return errors.Join(err, subscriber.Close())
		}
		err = processor.AddHandlers(requestreply.NewCommandHandlerWithResult(fmt.Sprint(i), backend,
			func(ctx context.Context, c *watermillCommand) ([]byte, error) { return h.Answer(ctx, c.method, c.body) }))
		if err != nil {
			return errors.Join(err, subscriber.Close())
		}
	}
	go func() { // ends when the router runs, or with ctx
		select {
		case <-router.Running():
			ready("")
		case <-ctx.Done():
		}
	}()
	return router.Run(ctx)
}

// watermillBackend sends responses and, if replies is not nil, receives them.
func watermillBackend(publisher message.Publisher, replies message.Subscriber) (requestreply.Backend[[]byte], error) {
	return requestreply.NewPubSubBackend(requestreply.PubSubBackendConfig{
		Publisher: publisher,
		SubscriberConstructor: func(requestreply.PubSubBackendSubscribeParams) (message.Subscriber, error) {
			return replies, nil
		},
		GeneratePublishTopic: func(p requestreply.PubSubBackendPublishParams) (string, error) {
			return p.CommandMessage.Metadata.Get(watermillReplyTo), nil
		},
		GenerateSubscribeTopic: func(p requestreply.PubSubBackendSubscribeParams) (string, error) {
			return string(p.OperationID), nil
		},
		AckCommandErrors: true,
	}, watermillReplies{})
}

// Dial implements native.
func (c overWatermill) Dial(ctx context.Context, env Environment) (Caller, error) {
	logger := watermill.NopLogger{}
	publisher, err := wamqp.NewPublisher(c.config(env), logger)
	if err != nil {
		return nil, err
	}
	bus, err := cqrs.NewCommandBusWithConfig(publisher, cqrs.CommandBusConfig{
		GeneratePublishTopic: func(cqrs.CommandBusGeneratePublishTopicParams) (string, error) { return env.Queue, nil },
		Marshaler:            watermillCommands{},
	})
	if err != nil {
		return nil, errors.Join(err, publisher.Close())
	}
	config := c.config(env)
	config.Queue.Exclusive = true
	subscriber, err := wamqp.NewSubscriber(config, logger)
	if err != nil {
		return nil, errors.Join(err, publisher.Close())
	}
	w := &watermillCaller{bus: bus, replyTo: env.Queue + ".reply." + uuid.NewString(), publisher: publisher, subscriber: subscriber}
	w.shared, err = newSharedReplies(context.WithoutCancel(ctx), subscriber, w.replyTo)
	if err == nil {
		w.backend, err = watermillBackend(publisher, w.shared)
	}
	if err != nil {
		return nil, errors.Join(err, w.Close(ctx))
	}
	return w, nil
}

type watermillCaller struct {
	bus        *cqrs.CommandBus
	backend    requestreply.Backend[[]byte]
	replyTo    string
	shared     *sharedReplies
	publisher  *wamqp.Publisher
	subscriber *wamqp.Subscriber
}

// Call implements caller.
func (w *watermillCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply, err := requestreply.SendWithReply(ctx, w.bus, w.backend, &watermillCommand{method: method, body: body, replyTo: w.replyTo})
	if err != nil {
		return nil, err
	}
	return reply.HandlerResult, reply.Error
}

// Close implements caller.
func (w *watermillCaller) Close(context.Context) error {
	return errors.Join(w.subscriber.Close(), w.publisher.Close())
}
