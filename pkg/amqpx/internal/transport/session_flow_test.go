package transport

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestGateSetTwice(t *testing.T) {
	t.Parallel()
	g := newFlow()
	g.set(amqp.Blocking{})
	g.set(amqp.Blocking{Active: true})
	first := g.Unblocked()
	g.set(amqp.Blocking{Active: true})
	if g.Unblocked() != first {
		t.Error("who waits would miss the opening")
	}
	g.set(amqp.Blocking{})
	g.set(amqp.Blocking{})
	<-first
}
