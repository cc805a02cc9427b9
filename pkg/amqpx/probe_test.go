package amqpx

import (
	"strings"
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

// RabbitMQ does not read from a connection while a queue without a majority takes nothing:
// the connection for publishing is slow then, not dead, as its heartbeats show. One on which
// nothing comes is dead, and so is one that never answers.
func TestPublishingConnectionThatIsSlow(t *testing.T) {
	t.Parallel()
	const heartbeat = 10 * time.Second
	for name, c := range map[string]struct {
		mute  bool          // no heartbeats come
		after time.Duration // the broker answers again; 0: never
		lasts time.Duration // the session, from then on; 0: it does not end
	}{
		"and answers later": {after: 80 * time.Second},
		"and mute":          {mute: true, lasts: 2 * heartbeat},
		"for ever":          {lasts: 95 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newFakeBroker()
				s := mustOpen(t, b)
				s.watch(func(amqp.Blocking) {})
				reads := make(chan struct{})
				b.onCall = func(op, link string) error {
					if op == "sync" && strings.HasSuffix(link, "publish") {
						select {
						case <-reads:
						case <-s.done:
							return errCut
						}
					}
					return nil
				}
				b.mute.Store(c.mute)
				s.probe(heartbeat)
				begun := time.Now()
				if c.after > 0 {
					pass(c.after)
					close(reads)
					pass(time.Hour)
					if s.ended() {
						t.Fatalf("ended: %v", s.cause)
					}
					return
				}
				<-s.done
				wantIs(t, s.cause, errDeaf)
				if took := time.Since(begun); took < heartbeat || took > c.lasts {
					t.Errorf("given up after %v, want at most %v", took, c.lasts)
				}
			})
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
