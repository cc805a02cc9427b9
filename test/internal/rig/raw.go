package rig

import (
	"errors"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Dial opens a new connection without the library under test.
func Dial(t testing.TB, url string) *amqp.Connection {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil && !errors.Is(err, amqp.ErrClosed) {
			t.Logf("close a raw connection: %v", err)
		}
	})
	return conn
}

// Raw returns a channel to the broker without the library under test.
func (r *Rig) Raw() *amqp.Channel {
	r.t.Helper()
	ch, err := r.raw().Channel()
	if err != nil {
		r.t.Fatalf("open a channel: %v", err)
	}
	return ch
}

// Declare declares the request queue before any server does.
func (r *Rig) Declare(durable bool, args amqp.Table) {
	r.t.Helper()
	if _, err := r.Raw().QueueDeclare(r.Queue.Name, durable, false, false, false, args); err != nil {
		r.t.Fatalf("declare the request queue: %v", err)
	}
}

// Inspect returns the number of ready messages in the request queue, and the number of its
// consumers. These figures are exact, unlike the management API's, but exclude unacknowledged
// messages.
func (r *Rig) Inspect() amqp.Queue {
	r.t.Helper()
	ch := r.Raw()
	q, err := ch.QueueDeclarePassive(r.Queue.Name, !r.Queue.Transient, false, false, false, nil)
	if err != nil {
		r.t.Fatalf("inspect the request queue: %v", err)
	}
	if err := ch.Close(); err != nil {
		r.t.Fatalf("inspect the request queue: %v", err)
	}
	return q
}

// Inbox is an exclusive queue for responses, used without the library.
type Inbox struct {
	t testing.TB
	// Name is the queue's name, for reply_to.
	Name string
	// Responses receives the responses.
	Responses <-chan amqp.Delivery
	// Repeated counts the repeated responses of a call, see ResponsesTo.
	Repeated int
}

// Inbox declares a queue for responses and consumes it.
func (r *Rig) Inbox() *Inbox {
	r.t.Helper()
	ch := r.Raw()
	q, err := ch.QueueDeclare("", false, false, true, false, nil)
	if err != nil {
		r.t.Fatalf("declare a reply queue: %v", err)
	}
	responses, err := ch.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		r.t.Fatalf("consume a reply queue: %v", err)
	}
	return &Inbox{t: r.t, Name: q.Name, Responses: responses}
}

// Next returns the next response.
func (b *Inbox) Next() amqp.Delivery {
	b.t.Helper()
	return Recv(b.t, b.Responses, "a response")
}

// Publish sends a message to a queue and waits for the broker's confirm. A server that is ready
// may still be declaring the queues beside the request queue, so a returned message is sent again.
func (r *Rig) Publish(queue string, msg amqp.Publishing) {
	r.t.Helper()
	ch := r.Raw()
	defer func() { _ = ch.Close() }()
	returns := ch.NotifyReturn(make(chan amqp.Return, 1))
	if err := ch.Confirm(false); err != nil {
		r.t.Fatalf("confirm mode: %v", err)
	}
	Eventually(r.t, "the message is in "+queue, func() bool {
		r.t.Helper()
		word, err := ch.PublishWithDeferredConfirm("", queue, true, false, msg)
		if err != nil {
			r.t.Fatalf("publish: %v", err)
		}
		Recv(r.t, word.Done(), "the confirm of a message")
		if !word.Acked() {
			r.t.Fatalf("the broker did not take the message to %q", queue)
		}
		select {
		case <-returns: // it comes before the confirm
			return false
		default:
			return true
		}
	})
}

// Request sends a raw request to the rig's queue.
func (r *Rig) Request(msg amqp.Publishing) {
	r.t.Helper()
	r.Publish(r.Queue.Name, msg)
}
