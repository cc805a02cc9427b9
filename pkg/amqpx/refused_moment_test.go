package amqpx

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// A refusal starts another round of a call. Close, or a cancellation, may come at the same
// moment and must not be lost with the previous round.

func TestCloseWhileCallsAreRefused(t *testing.T) {
	t.Parallel()
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New()
			startScript(t, b, after(10*time.Millisecond, refuses(0)))
			c := startClient(t, b, WithRetryBudget(1, 1_000_000))
			ready(t, c.WaitReady)
			ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // only Close ends the calls
			defer cancel()
			var calls []<-chan result
			for range 200 {
				calls = append(calls, goCall(c, ctx, "m", []byte("x"), Idempotent()))
			}
			pass(10*time.Millisecond - 1)
			xsync.Sleep(ctx, 1)
			if err := c.Close(within(t, time.Minute)); err != nil {
				t.Errorf("Close: %v", err)
			}
			pass(time.Hour)
			for _, call := range calls {
				if len(call) == 0 {
					t.Fatal("an hour after Close a call has not settled")
				}
			}
		})
	}
}

func TestFuturesCancelledWhileTheyAreRefused(t *testing.T) {
	t.Parallel()
	const calls = 500
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		startScript(t, b, func(n int, d amqp.Delivery, send func(amqp.Publishing)) {
			if n <= calls {
				after(10*time.Millisecond, refuses(0))(n, d, send)
			}
		})
		c := startClient(t, b, WithRetryBudget(1, 1_000_000))
		ready(t, c.WaitReady)
		var futures []*Future
		var cancels []func()
		for range calls {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			cancels = append(cancels, cancel)
			futures = append(futures, c.Go(ctx, "m", []byte("x"), Idempotent()))
		}
		xsync.Sleep(t.Context(), 10*time.Millisecond)
		for _, cancel := range cancels {
			cancel()
		}
		pass(time.Hour)
		for _, f := range futures {
			select {
			case <-f.Done():
			default:
				t.Fatal("an hour after its context ended a future has not settled")
			}
		}
	})
}
