package amqpx

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

func TestSupervisorShowsTheAlarm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.run(t)
		ready(t, w.board.waitReady)
		w.broker.With(func(b *brokertest.Broker) { b.Links[0].Published = true })
		w.broker.SetAlarm("low on memory")
		settle()
		st := w.board.get()
		wantSame(t, "state", st.State, StateBlocked)
		wantSame(t, "reason", st.Reason, "low on memory")
		if err := w.board.waitReady(within(t, time.Second)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ready while blocked: %v", err)
		}
		w.broker.SetAlarm("")
		settle()
		st = w.board.get()
		wantSame(t, "state", st.State, StateReady)
		wantSame(t, "reason", st.Reason, "")
		w.broker.Kick(nil)
		ready(t, w.board.waitReady)
	})
}

func TestStatusAfterALoss(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.run(t)
		ready(t, w.board.waitReady)
		wantSame(t, "broker", w.board.get().Broker, "broker.test:5672")
		w.broker.With(func(b *brokertest.Broker) { b.OnDial = refusing(1<<30, brokertest.ErrCut) })
		w.broker.Kick(&amqp.Error{Code: amqp.ConnectionForced, Reason: "shutdown"})
		settle()
		st := w.board.get()
		wantSame(t, "state", st.State, StateReconnecting)
		wantTexts(t, st.Err, "the broker closed the connection", "shutdown")
		wantSame(t, "generation", st.Generation, 1)
		w.broker.With(func(b *brokertest.Broker) { b.OnDial = nil })
		ready(t, w.board.waitReady)
		st = w.board.get()
		wantSame(t, "generation", st.Generation, 2)
		if st.Err != nil {
			t.Errorf("error %v while ready", st.Err)
		}
	})
}

// A lost connection does not count as ready, however long the session takes to end.
func TestStatusWhileALostSessionEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.run(t)
		ready(t, w.board.waitReady)
		release := make(chan struct{})
		w.Current().Run(func() { <-release })
		w.broker.Kick(&amqp.Error{Code: amqp.ConnectionForced, Reason: "shutdown"})
		settle()
		wantSame(t, "state", w.board.get().State, StateReconnecting)
		wantTexts(t, w.board.get().Err, "shutdown")
		close(release)
		ready(t, w.board.waitReady)
	})
}

// The broker may block publishing while the session is being set up.
func TestStatusOfALinkThatIsBlockedWhileItIsSetUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.onSetup = func(*transport.Session) error {
			w.broker.With(func(b *brokertest.Broker) { b.Links[0].Published = true })
			w.broker.SetAlarm("low on memory")
			pass(time.Millisecond)
			return nil
		}
		w.run(t)
		pass(10 * time.Millisecond)
		wantSame(t, "state", w.board.get().State, StateBlocked)
		wantSame(t, "reason", w.board.get().Reason, "low on memory")
		w.broker.SetAlarm("")
		settle()
		wantSame(t, "state", w.board.get().State, StateReady)
		wantSame(t, "reason", w.board.get().Reason, "")
	})
}
