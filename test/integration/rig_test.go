//go:build integration

package integration

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/test/internal/rig"
)

// TestMessageOfTheRigWaitsForItsQueue: a message that the rig sends to a queue which a server has not
// declared yet is not lost.
func TestMessageOfTheRigWaitsForItsQueue(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	proxy := r.Proxy()
	sender, sent := rig.Beyond(t, proxy.URL()), make(chan struct{})
	go func() { // ends when the message is in the queue, or with the rig's patience
		defer close(sent)
		sender.Publish(r.Queue.Name, amqp.Publishing{AppId: "b"})
	}()
	rig.Recv(t, proxy.Heard(rig.Return), "the broker to return the message")
	r.Declare(true, nil)
	rig.Recv(t, sent, "the message to be sent")
	if n := r.Inspect().Messages; n != 1 {
		t.Errorf("%d messages in the queue, want 1", n)
	}
}
