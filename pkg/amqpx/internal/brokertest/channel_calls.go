package brokertest

import (
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// The synchronous calls of Channel.

// consumerBuffer stands for the unbounded queue of deliveries of a real connection.
const consumerBuffer = 1 << 14

// Confirm implements channel.
func (c *Channel) Confirm(bool) error {
	return c.do("confirm", "", func() *amqp.Error { c.confirming = true; return nil })
}

// Barrier implements channel: it returns after the client has read all earlier events.
func (c *Channel) Barrier() error {
	answered := make(chan struct{})
	err := c.do("sync", c.link.Name, func() *amqp.Error {
		c.link.post(func() { close(answered) })
		return nil
	})
	if err == nil {
		select {
		case <-answered:
		case <-c.link.gone:
			return amqp.ErrClosed
		}
	}
	return err
}

// Qos implements channel.
func (c *Channel) Qos(prefetch, _ int, _ bool) error {
	return c.do("qos", "", func() *amqp.Error { c.prefetch = prefetch; return nil })
}

// Consume implements channel.
func (c *Channel) Consume(queue, tag string, autoAck, _, _, _ bool, args amqp.Table) (<-chan amqp.Delivery, error) {
	consumer := &Consumer{ch: c, tag: tag, autoAck: autoAck, prefetch: c.prefetch, out: make(chan amqp.Delivery, consumerBuffer)}
	consumer.priority, _ = args["x-priority"].(int32)
	err := c.do("consume", queue, func() *amqp.Error {
		if queue != wire.DirectReplyTo {
			var refused *amqp.Error
			if consumer.queue, refused = c.queue(queue); refused != nil {
				return refused
			}
			consumer.queue.Consumers = append(consumer.queue.Consumers, consumer)
		}
		c.consumers[tag] = consumer
		if consumer.queue != nil {
			c.link.broker.Dispatch(consumer.queue)
		}
		return nil
	})
	return consumer.out, err
}

// Cancel implements channel. Earlier deliveries still reach the consumer.
func (c *Channel) Cancel(tag string, _ bool) error {
	return c.do("cancel", tag, func() *amqp.Error {
		consumer := c.consumers[tag]
		if consumer == nil {
			return nil
		}
		c.link.broker.removeConsumer(consumer)
		delete(c.consumers, tag)
		c.link.post(func() { close(consumer.out) })
		return nil
	})
}

// removeConsumer removes a consumer from its queue. The caller holds mu.
func (b *Broker) removeConsumer(consumer *Consumer) {
	if q := consumer.queue; q != nil {
		q.Consumers = slices.DeleteFunc(q.Consumers, func(o *Consumer) bool { return o == consumer })
		b.startExpiry(q)
	}
}

// QueueDeclare implements channel.
func (c *Channel) QueueDeclare(name string, durable, autoDelete, exclusive, _ bool, args amqp.Table) (amqp.Queue, error) {
	if name == "" {
		name = "amq.gen-" + rand.Text()
	}
	return amqp.Queue{Name: name}, c.do("declare", name, func() *amqp.Error {
		b := c.link.broker
		if _, refused := c.queue(name); refused != nil && refused.Code == amqp.ResourceLocked {
			return refused
		}
		q, refused := b.declare(name, durable, autoDelete, args)
		if q != nil && exclusive {
			q.owner = c.link
		}
		return refused
	})
}

// queue returns a queue, or the broker's exception for a queue that does not exist or is
// exclusive to another connection. The caller holds mu.
func (c *Channel) queue(name string) (*Queue, *amqp.Error) {
	q := c.link.broker.Queues[name]
	switch {
	case q == nil:
		return nil, Missing(name)
	case q.owner != nil && q.owner != c.link:
		return nil, &amqp.Error{Code: amqp.ResourceLocked, Server: true, Reason: fmt.Sprintf(
			"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '%s' in vhost '/'", name)}
	default:
		return q, nil
	}
}

// ExchangeDeclare implements channel.
func (c *Channel) ExchangeDeclare(name, kind string, _, _, _, _ bool, _ amqp.Table) error {
	return c.do("declare exchange", name, func() *amqp.Error {
		b := c.link.broker
		other, exists := amqp.ExchangeFanout, b.Fanouts[name] != nil
		if kind == amqp.ExchangeFanout {
			other, exists = amqp.ExchangeDirect, b.Directs[name] != nil
		}
		switch {
		case exists:
			return &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: fmt.Sprintf(
				"PRECONDITION_FAILED - inequivalent arg 'type' for exchange '%s' in vhost '/': received '%s' but current is '%s'", name, kind, other)}
		case kind == amqp.ExchangeFanout:
			b.Fanouts[name] = append(make([]string, 0), b.Fanouts[name]...)
		case b.Directs[name] == nil:
			b.Directs[name] = make(Bindings)
		}
		return nil
	})
}

// ExchangeDeclarePassive implements channel.
func (c *Channel) ExchangeDeclarePassive(name, _ string, _, _, _, _ bool, _ amqp.Table) error {
	return c.do("look for exchange", name, func() *amqp.Error { return c.link.broker.findExchange(name) })
}

// QueueBind implements channel.
func (c *Channel) QueueBind(queue, key, exchange string, _ bool, _ amqp.Table) error {
	return c.do("bind", queue, func() *amqp.Error {
		b := c.link.broker
		if _, refused := c.queue(queue); refused != nil {
			return refused
		}
		if bound := b.Directs[exchange]; bound != nil {
			if !slices.Contains(bound[key], queue) {
				bound[key] = append(bound[key], queue)
			}
			return nil
		}
		if b.Fanouts[exchange] == nil {
			return noExchange(exchange)
		}
		b.Fanouts[exchange] = append(b.Fanouts[exchange], queue)
		return nil
	})
}

// findExchange returns the broker's exception for an exchange that does not exist, or nil. The
// caller holds mu.
func (b *Broker) findExchange(name string) *amqp.Error {
	if b.Fanouts[name] == nil && b.Directs[name] == nil {
		return noExchange(name)
	}
	return nil
}

// noExchange returns the exception for an exchange that does not exist.
func noExchange(name string) *amqp.Error {
	return &amqp.Error{Code: amqp.NotFound, Server: true, Reason: fmt.Sprintf("NOT_FOUND - no exchange '%s' in vhost '/'", name)}
}

// PublishFanout implements channel.
func (c *Channel) PublishFanout(exchange string, msg amqp.Publishing) error {
	return c.do("publish", exchange, func() *amqp.Error {
		b := c.link.broker
		if refused := b.checkUser(msg.UserId); refused != nil || exchange == "" {
			return refused
		}
		if refused := b.findExchange(exchange); refused != nil {
			return refused
		}
		routed := false
		if b.Directs[exchange] == nil {
			b.Sent = append(b.Sent, Sent{Key: exchange, Mandatory: true, Msg: msg, At: time.Now()})
		}
		for _, queue := range append(slices.Clone(b.Fanouts[exchange]), b.Directs[exchange][""]...) {
			if q := b.Queues[queue]; q != nil {
				routed = true
				b.enqueue(q, &Message{Msg: msg, exchange: exchange})
			}
		}
		if !routed {
			c.postReturn("", msg)
		}
		return nil
	})
}

// checkUser returns the broker's exception for a user_id of another user, or nil. The caller
// holds mu.
func (b *Broker) checkUser(user string) *amqp.Error {
	if user == "" || user == b.User {
		return nil
	}
	return &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: fmt.Sprintf(
		"PRECONDITION_FAILED - user_id property set to '%s' but authenticated user was '%s'", user, b.User)}
}

// QueueDeclarePassive implements channel.
func (c *Channel) QueueDeclarePassive(name string, _, _, _, _ bool, _ amqp.Table) (amqp.Queue, error) {
	found := amqp.Queue{Name: name}
	err := c.do("declare passive", name, func() *amqp.Error {
		q, refused := c.queue(name)
		if refused != nil {
			return refused
		}
		found.Consumers, found.Messages = len(q.Consumers), len(q.Messages)
		return nil
	})
	return found, err
}

// QueueDelete implements channel.
func (c *Channel) QueueDelete(name string, _, _, _ bool) (int, error) {
	return 0, c.do("delete", name, func() *amqp.Error {
		q, refused := c.queue(name)
		if q != nil {
			c.link.broker.Remove(q)
		} else if refused.Code == amqp.ResourceLocked {
			return refused
		}
		return nil
	})
}

// do makes one synchronous call. An exception closes the channel, as in AMQP.
func (c *Channel) do(op, name string, f func() *amqp.Error) error {
	if err := c.link.call(op, name); err != nil {
		return err
	}
	c.link.broker.mu.Lock()
	defer c.link.broker.mu.Unlock()
	if c.over() {
		return amqp.ErrClosed
	}
	if refused := f(); refused != nil {
		c.Except(refused)
		return refused
	}
	return nil
}
