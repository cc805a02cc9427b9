package amqpx

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// The broker has taken the acknowledgement of a refused request and will not redeliver the
// request, but the barrier fails and the server cannot know. The caller still gets the refusal.
func TestRefusalWhoseAcknowledgementIsOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		var once atomic.Bool
		r.broker.With(func(b *brokertest.Broker) {
			b.OnCall = func(op, _ string) error {
				if op == "sync" && once.CompareAndSwap(false, true) {
					return amqp.ErrClosed
				}
				return nil
			}
		})
		got := <-goCall(r.client, within(t, time.Hour), "no such method", nil)
		wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
		wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun) // a redelivery might have run
		if got.took > time.Minute {
			t.Errorf("took %v", got.took)
		}
	})
}
