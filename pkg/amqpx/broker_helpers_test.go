package amqpx

import (
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// onBroker makes clients and servers use a broker in memory, without batches and without a
// control plane unless a later option turns them on. Servers acknowledge at once.
func onBroker(b *brokertest.Broker) Option { return brokerOption{b} }

type brokerOption struct{ broker *brokertest.Broker }

func (o brokerOption) applyClient(c *clientConfig) {
	c.dialer, c.batch, c.control = o.broker, BatchOff, false
}

func (o brokerOption) applyServer(c *serverConfig) {
	c.dialer, c.batch, c.control, c.ackPause = o.broker, BatchOff, false, 0
}

// putRequest puts a message into the request queue.
func putRequest(b *brokertest.Broker, msg amqp.Publishing) { b.PutIn(DefaultQueue, msg) }

// takeResponses removes and returns the responses to raw requests.
func takeResponses(b *brokertest.Broker) []amqp.Publishing {
	var all []amqp.Publishing
	b.With(func(b *brokertest.Broker) {
		for _, m := range b.Queues[rawQueue].Messages {
			all = append(all, m.Msg)
		}
		b.Queues[rawQueue].Messages = nil
	})
	return all
}
