//go:build integration

package brokertest_test

import (
	"errors"
	"os"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

func TestRabbitMQConforms(t *testing.T) {
	t.Parallel()
	url := os.Getenv("AMQPX_TEST_AMQP_URL")
	if url == "" {
		t.Fatal("AMQPX_TEST_AMQP_URL is not set")
	}
	conform(t, transport.NetDialer{Heartbeat: 10 * time.Second, WriteTimeout: 10 * time.Second}, url)
}

// TestExceptionWithinALargeMessage: an exception that arrives while the frames of a message are
// written ends the channel and not the connection. RabbitMQ ends a connection on which a method
// of the channel, such as the close-ok of the exception, comes between the frames of a message.
func TestExceptionWithinALargeMessage(t *testing.T) {
	t.Parallel()
	dialer := transport.NetDialer{Heartbeat: 10 * time.Second, WriteTimeout: 10 * time.Second}
	conn, err := dialer.Dial(t.Context(), os.Getenv("AMQPX_TEST_AMQP_URL"), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := make([]byte, 8<<20)
	for range 20 {
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if err := ch.Confirm(false); err != nil {
			t.Fatal(err)
		}
		ended := ch.NotifyClose(make(chan *amqp.Error, 1))
		if err := ch.PublishFanout("amqpx-missing-exchange", amqp.Publishing{}); err != nil {
			t.Fatal(err)
		}
		for err == nil { // until the channel has ended
			_, err = ch.PublishTo("", "amqpx-missing-queue", false, amqp.Publishing{Body: body})
		}
		if !errors.Is(err, amqp.ErrClosed) {
			t.Fatalf("publish: %v", err)
		}
		if reason := <-ended; reason == nil || reason.Code != amqp.NotFound {
			t.Fatalf("the channel ended with %v", reason)
		}
	}
	select {
	case reason := <-conn.Closed():
		t.Fatalf("the connection ended with %v", reason)
	default:
	}
}
