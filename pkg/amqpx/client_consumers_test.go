package amqpx

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestConsumersOfTheRequestQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBroker()
		client := startClient(t, b)
		ready(t, client.WaitReady)
		count := func() int {
			t.Helper()
			n, err := client.Consumers(within(t, time.Minute))
			if err != nil {
				t.Error(err)
			}
			return n
		}
		wantSame(t, "consumers of no queue", count(), 0)
		startScript(t, b, func(int, amqp.Delivery, func(amqp.Publishing)) {})
		wantSame(t, "consumers beside a program that answers nothing", count(), 1)
		ours := startServer(t, b, handlers{"m": echo})
		ready(t, ours.WaitReady)
		wantSame(t, "consumers beside ours", count(), 2)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := client.Consumers(gone)
		wantSame(t, "code", CodeOf(err), CodeCanceled)
	})
}
