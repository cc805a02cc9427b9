package amqpx

import (
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// deafen makes the broker answer nothing on any channel.
func (b *fakeBroker) deafen() {
	b.with(func(b *fakeBroker) {
		b.onCall = func(op, _ string) error {
			if op == "sync" {
				return errHang
			}
			return nil
		}
	})
}

func TestDeafBrokerIsGivenUp(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const heartbeat = 10 * time.Second
			b := newFakeBroker()
			s, err := openOn(t, b, shared)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			s.watch(func(amqp.Blocking) {})
			s.probe(heartbeat)
			pass(10 * heartbeat)
			if s.ended() {
				t.Fatalf("ended while the broker answers: %v", s.cause)
			}
			b.deafen()
			begun := time.Now()
			<-s.done
			if took := time.Since(begun); took < heartbeat || took > 2*heartbeat {
				t.Errorf("given up after %v", took)
			}
			wantIs(t, s.cause, errDeaf)
		})
	}
}

// A broker that blocks publishing reads nothing, so it need not answer: whether the
// alarm came before the question or after it.
func TestBrokerThatBlocksPublishingNeedNotAnswer(t *testing.T) {
	t.Parallel()
	for _, before := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			const heartbeat = 10 * time.Second
			b := newFakeBroker()
			s, err := openOn(t, b, true)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			s.watch(func(amqp.Blocking) {})
			b.deafen()
			s.gate.set(before)
			s.probe(heartbeat)
			pass(heartbeat)
			s.gate.set(true)
			pass(time.Hour)
			if s.ended() {
				t.Errorf("ended: %v", s.cause)
			}
		})
	}
}
