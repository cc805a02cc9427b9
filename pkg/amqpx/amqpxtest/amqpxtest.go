// Package amqpxtest is a test kit for programs that use package amqpx. A [Broker] is RabbitMQ in
// memory: clients and servers of one test call each other over it, with queues, confirms,
// returns, expiration and dead-lettering as on a real broker. A conformance suite runs the same cases
// on it and on RabbitMQ 3 and 4.
//
// Faults come on demand: of single messages by [Broker.FailRequests] and [Broker.FailResponses], of
// all connections by [Broker.Disconnect], [Broker.Restart] and [Broker.Stop], of publishing by
// [Broker.Block]. Each says what a caller then sees.
//
// Code that calls depends on [amqpx.Caller], and code that sends one-way requests on [amqpx.Sender]. Their
// tests may have a function in place of a client: a [Caller]. [Error] makes errors with every outcome.
//
// The broker uses no network, and its locks are held only for a moment, so tests can run under
// testing/synctest, where minutes of waiting take no time.
package amqpxtest

import (
	"context"
	"net"
	"os"
	"syscall"

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
	// The lock of memory guards the faults, which are in order, by the name of the queue.
	requests, responses, openings, frames map[string][]Fault

	away bool // guarded by the lock of memory
}

// NewBroker returns a broker without queues.
func NewBroker() *Broker {
	b := &Broker{
		memory: brokertest.New(), requests: make(map[string][]Fault), responses: make(map[string][]Fault),
		openings: make(map[string][]Fault), frames: make(map[string][]Fault),
	}
	b.memory.Forget = true // a test may make millions of calls
	b.memory.Plan = b.plan
	b.memory.OnDial = b.onDial
	return b
}

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
//
// A call whose request has arrived goes on, and its response comes after the client has connected
// again. RabbitMQ delivers a request again that a server has not answered: the same server does not
// run it twice, another server does, unless the method is [amqpx.AtMostOnce]. With
// [amqpx.ReplyDirect] responses are lost with the client's connection: the call ends with
// [amqpx.CodeUnavailable], [amqpx.MayHaveRun] and [amqpx.ErrOutcomeUnknown]. A call that begins
// meanwhile waits for the connection.
func (b *Broker) Disconnect() { b.memory.Kick(nil) }

// Stop ends every connection, as [Broker.Restart] does, and refuses new ones until [Broker.Start].
// Calls that begin meanwhile wait, and end at their deadlines with [amqpx.CodeDeadlineExceeded],
// [amqpx.DidNotRun] and [amqpx.ErrNotConnected].
func (b *Broker) Stop() {
	b.memory.With(func(*brokertest.Broker) { b.away = true })
	b.memory.Restart()
}

// Start ends [Broker.Stop]. Clients and servers connect again within the backoff
// ([amqpx.WithBackoff]).
func (b *Broker) Start() { b.memory.With(func(*brokertest.Broker) { b.away = false }) }

// errRefused is the error of a dial while the broker is stopped.
var errRefused error = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

// onDial refuses connections while the broker is stopped.
func (b *Broker) onDial(context.Context, string, string) (err error) {
	b.memory.With(func(*brokertest.Broker) {
		if b.away {
			err = errRefused
		}
	})
	return err
}

// Restart ends every connection and loses what RabbitMQ loses in a restart: queues that are not
// durable and, outside quorum queues, messages that are not persistent.
func (b *Broker) Restart() { b.memory.Restart() }

// Block stops the broker from taking messages, as RabbitMQ does while memory or disk space is
// short. RabbitMQ gives the reason "low on memory" or "low on disk". Clients and servers that
// have published get the reason. Block lasts until [Broker.Unblock].
//
// Calls wait meanwhile, and end at their deadlines with [amqpx.CodeDeadlineExceeded] and
// [amqpx.ErrBlocked]. The outcome is [amqpx.DidNotRun], and [amqpx.MayHaveRun] for the call whose
// request is the first of its client: RabbitMQ reads one message before the client is notified.
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
