package amqpx

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The broker took the acknowledgement of a refused request, so that does not come again,
// and the link is lost before the server knows: the caller still gets its refusal.
func TestRefusalWhoseAcknowledgementIsOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		var once atomic.Bool
		r.broker.with(func(b *fakeBroker) {
			b.onCall = func(op, _ string) error {
				if op == "sync" && once.CompareAndSwap(false, true) {
					return amqp.ErrClosed
				}
				return nil
			}
		})
		got := <-goCall(r.client, within(t, time.Hour), "no such method", nil)
		wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
		wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun) // had it come again, it might have
		if got.took > time.Minute {
			t.Errorf("took %v", got.took)
		}
	})
}
