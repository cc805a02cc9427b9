// Package brokertest_test holds the conformance suite: the cases that the broker in memory and
// RabbitMQ must answer alike.
package brokertest_test

import (
	"crypto/rand"
	"errors"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// patience bounds the wait for an event of a broker.
const patience = 10 * time.Second

// fixture is a connection with a channel in confirm mode and a queue of its own.
type fixture struct {
	*testing.T
	dialer transport.Dialer
	url    string
	conn   transport.Conn
	ch     transport.Channel
	queue  string
}

// conform runs every case of the suite on the broker that the dialer connects to.
func conform(t *testing.T, dialer transport.Dialer, url string) {
	t.Helper()
	for name, run := range map[string]func(*fixture){
		"declaration with other properties": otherProperties,
		"declaration with other arguments":  otherArguments,
		"passive declaration of no queue":   passiveMissing,
		"confirm":                           confirmed,
		"return comes before the confirm":   returnedFirst,
		"acknowledgement":                   acknowledged,
		"order after requeue":               requeued,
		"reject without requeue":            rejected,
		"prefetch":                          prefetched,
		"end of a channel requeues":         channelEnds,
		"exclusive queue":                   exclusive,
		"deletion cancels the consumer":     deleted,
		"unknown delivery tag":              unknownTag,
		"full queue":                        full,
		"expiration":                        expires,
		"direct reply-to":                   directReply,
		"exchange that does not exist":      noExchange,
		"fanout exchange":                   fanout,
		"direct exchange":                   direct,
		"exchange of another type":          otherExchange,
		"publish to no exchange":            publishToNoExchange,
		"consumer of no queue":              consumeMissing,
		"binding of no queue":               bindMissing,
		"exclusive queue of another":        exclusiveElsewhere,
		"text of a refused declaration":     refusalTexts,
		"expiry of an unused queue":         unused,
		"dead letter of a rejection":        deadRejected,
		"dead letter of an expiration":      deadExpired,
		"dead letter of a queue's TTL":      deadTTL,
		"dead letter of a shorter TTL":      deadShorterTTL,
		"dead letter to an exchange":        deadToExchange,
		"dead letters are counted":          deadCounted,
		"dead letter of two queues":         deadTwice,
		"dead letters do not circle":        deadCycle,
		"expiration at the head only":       expiresAtHead,
		"priorities":                        priorities,
		"order of priorities after requeue": prioritiesRequeued,
		"queue without priorities":          noPriorities,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fixture{T: t, dialer: dialer, url: url, queue: "conformance." + rand.Text()}
			f.conn = f.dial()
			f.ch = f.channel(f.conn)
			f.must(f.ch.Confirm(false))
			f.declare(f.queue, nil)
			run(f)
		})
	}
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) dial() transport.Conn {
	f.Helper()
	conn, err := f.dialer.Dial(f.Context(), f.url, "conformance")
	f.must(err)
	f.Cleanup(conn.Close)
	return conn
}

func (f *fixture) channel(conn transport.Conn) transport.Channel {
	f.Helper()
	ch, err := conn.Channel()
	f.must(err)
	return ch
}

// declare declares a durable queue, which is deleted at the end of the test.
func (f *fixture) declare(name string, args amqp.Table) {
	f.Helper()
	_, err := f.ch.QueueDeclare(name, true, false, false, false, args)
	f.must(err)
	f.Cleanup(func() {
		_, err := f.channel(f.conn).QueueDelete(name, false, false, false)
		f.must(err)
	})
}

// publish publishes a message with the body and waits for its confirm.
func (f *fixture) publish(key string, msg amqp.Publishing) {
	f.Helper()
	confirm, err := f.ch.PublishTo("", key, false, msg)
	f.must(err)
	receive(f, confirm.Done())
	if !confirm.Acked() {
		f.Error("the message was not confirmed")
	}
}

func (f *fixture) consume(ch transport.Channel, queue string) <-chan amqp.Delivery {
	f.Helper()
	deliveries, err := ch.Consume(queue, rand.Text(), false, false, false, false, nil)
	f.must(err)
	return deliveries
}

// receive returns the next value of a channel, or the zero value of a channel that is closed.
func receive[T any](f *fixture, from <-chan T) T {
	f.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		f.Fatal("no event came")
		return *new(T)
	}
}

// wantDelivery receives a delivery and compares its body and its redelivered flag.
func (f *fixture) wantDelivery(from <-chan amqp.Delivery, body string, redelivered bool) amqp.Delivery {
	f.Helper()
	d := receive(f, from)
	if string(d.Body) != body || d.Redelivered != redelivered {
		f.Errorf("delivery %q, redelivered %v; want %q, %v", d.Body, d.Redelivered, body, redelivered)
	}
	return d
}

// wantReady compares the number of messages in the queue that are not delivered.
func (f *fixture) wantReady(want int) {
	f.Helper()
	q, err := f.channel(f.conn).QueueDeclarePassive(f.queue, true, false, false, false, nil)
	f.must(err)
	if q.Messages != want {
		f.Errorf("%d messages in the queue, want %d", q.Messages, want)
	}
}

// wantException checks that err is an exception with the code and that the channel has ended.
func (f *fixture) wantException(ch transport.Channel, err error, code int) {
	f.Helper()
	refused, ok := errors.AsType[*amqp.Error](err)
	if !ok || refused.Code != code || !refused.Server {
		f.Errorf("error %v, want exception %d", err, code)
	}
	if _, err := ch.QueueDeclarePassive(f.queue, true, false, false, false, nil); err == nil {
		f.Error("the channel is open after the exception")
	}
}

func text(body string) amqp.Publishing { return amqp.Publishing{Body: []byte(body)} }
