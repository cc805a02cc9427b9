// Package amqpxtest is a test kit for programs that use package amqpx. A [Broker] is RabbitMQ in
// memory: clients and servers of one test call each other over it, with queues, confirms,
// returns, expiration and dead-lettering as on a real broker. It disconnects, restarts and blocks
// on demand. A conformance suite runs the same cases on it and on RabbitMQ 3 and 4.
//
// The broker uses no network, and its locks are held only for a moment, so tests can run under
// testing/synctest, where minutes of waiting take no time.
package amqpxtest

import (
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/hook"
)

// URL is a URL for clients and servers that use a [Broker]. Any other valid URL does as well: its
// host is not contacted, and its password is not checked.
const URL = "amqp://broker.test/"

// Broker is RabbitMQ in memory, made by [NewBroker]. Its methods may be called by several
// goroutines at once.
type Broker struct {
	memory *brokertest.Broker
}

// NewBroker returns a broker without queues.
func NewBroker() *Broker { return &Broker{memory: brokertest.New()} }

// Option makes a client, a server or a connection connect to this broker instead of the broker at its URL:
//
//	broker := amqpxtest.NewBroker()
//	server, err := amqpx.NewServer(amqpxtest.URL, broker.Option())
//	client, err := amqpx.NewClient(amqpxtest.URL, broker.Option())
func (b *Broker) Option() amqpx.ConnectionOption {
	o, _ := hook.WithDialer(b.memory).(amqpx.ConnectionOption)
	return o
}

// Disconnect ends every connection without a reason, as a failed network does. Messages in
// queues stay. Clients and servers connect again by themselves.
func (b *Broker) Disconnect() { b.memory.Kick(nil) }

// Restart ends every connection and loses what RabbitMQ loses in a restart: queues that are not
// durable and, outside quorum queues, messages that are not persistent.
func (b *Broker) Restart() { b.memory.Restart() }

// Block stops the broker from taking messages, as RabbitMQ does while memory or disk space is
// short. RabbitMQ gives the reason "low on memory" or "low on disk". Clients and servers that
// have published something are told the reason. Block lasts until [Broker.Unblock].
func (b *Broker) Block(reason string) {
	if reason == "" {
		reason = "low on memory"
	}
	b.memory.SetAlarm(reason)
}

// Unblock ends [Broker.Block]. The broker takes the messages that have arrived meanwhile.
func (b *Broker) Unblock() { b.memory.SetAlarm("") }

// Ready counts the messages in a queue that no consumer has received yet; 0 if there is no such
// queue.
func (b *Broker) Ready(queue string) int { return b.memory.Ready(queue) }
