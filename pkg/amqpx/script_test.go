package amqpx

import (
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// script is a server's reaction to its n-th request, counted from 1. The function send
// publishes a response, at once or later.
type script func(n int, d amqp.Delivery, send func(amqp.Publishing))

// startScript serves the request queue with a script until the test ends. The queue is
// declared with a server's arguments.
func startScript(t *testing.T, b *brokertest.Broker, s script) {
	t.Helper()
	l, err := b.Dial(t.Context(), testURL, "script")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Cut)
	ch, err := l.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDeclare(DefaultQueue, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	requests, err := ch.Consume(DefaultQueue, "script", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the connection
		n := 0
		for d := range requests {
			n++
			s(n, d, func(response amqp.Publishing) { _, _ = ch.PublishTo("", d.ReplyTo, false, response) })
		}
	}()
}

// refuses answers every request with a refusal and a hint when to retry.
func refuses(hint time.Duration) script {
	return func(_ int, d amqp.Delivery, send func(amqp.Publishing)) { send(refusalTo(d, hint)) }
}

// runs answers with the request's body.
func runs(_ int, d amqp.Delivery, send func(amqp.Publishing)) { send(resultTo(d)) }

// each runs one script for each request, in order, and the last for all further requests.
func each(scripts ...script) script {
	return func(n int, d amqp.Delivery, send func(amqp.Publishing)) {
		scripts[min(n, len(scripts))-1](n, d, send)
	}
}

// after runs a script after the duration d.
func after(d time.Duration, s script) script {
	return func(n int, request amqp.Delivery, send func(amqp.Publishing)) {
		time.AfterFunc(d, func() { s(n, request, send) })
	}
}

func silent(int, amqp.Delivery, func(amqp.Publishing)) {}

// refusalTo returns the response of an overloaded server of this package.
func refusalTo(d amqp.Delivery, hint time.Duration) amqp.Publishing {
	e := refusal(CodeResourceExhausted, "busy")
	e.retryAfter = hint
	return errorTo(d, e)
}

func resultTo(d amqp.Delivery) amqp.Publishing {
	return responseTo(&d, wire.Response{Body: d.Body})
}

// errorTo returns the response of a server of this package that answers with an error.
func errorTo(d amqp.Delivery, e *Error) amqp.Publishing {
	return responseTo(&d, wire.Response{Failure: failureOf(e)})
}

func responseTo(d *amqp.Delivery, r wire.Response) amqp.Publishing {
	return r.Publishing(&decoded(d).Request, false)
}

// decoded returns a request as a server decodes it.
func decoded(d *amqp.Delivery) *incoming {
	in := &incoming{}
	_ = in.Decode(d, "")
	return in
}
