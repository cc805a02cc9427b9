package amqpx

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

func TestWatcherSeesTheNewestAndNeverBlocks(t *testing.T) {
	t.Parallel()
	var board statusBoard
	updates, stop := board.watch()
	defer stop()
	for i := range 1000 {
		board.update(func(s *Status) { s.Generation = uint64(i) })
	}
	wantSame(t, "newest", (<-updates).Generation, 999)
	wantSame(t, "left", len(updates), 0)
}

func TestWatcherAtOnceReceivesTheStatus(t *testing.T) {
	t.Parallel()
	var board statusBoard
	board.update(func(s *Status) { s.State = StateReady })
	updates, stop := board.watch()
	wantSame(t, "state", (<-updates).State, StateReady)
	stop()
	board.update(func(s *Status) { s.State = StateBlocked })
	wantSame(t, "updates after stop", len(updates), 0)
	stop()
}

func TestWatchersFromManyGoroutinesSeeTheEnd(t *testing.T) {
	t.Parallel()
	var board statusBoard
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			updates, stop := board.watch()
			defer stop()
			var last uint64
			for st := range updates {
				if st.Generation < last {
					t.Errorf("generation %d after %d", st.Generation, last)
				}
				if last = st.Generation; st.State == StateClosed {
					return
				}
			}
		})
	}
	for i := range 500 {
		board.update(func(s *Status) { s.Generation = uint64(i) })
	}
	board.update(func(s *Status) { s.State = StateClosed })
	wg.Wait()
}

func TestClosedIsFinal(t *testing.T) {
	t.Parallel()
	var board statusBoard
	board.update(func(s *Status) { s.State = StateClosed })
	board.update(func(s *Status) { s.State = StateReady })
	wantSame(t, "state", board.get().State, StateClosed)
}

func TestAfterDrainingOnlyClosedFollows(t *testing.T) {
	t.Parallel()
	var board statusBoard
	for _, s := range []State{StateDraining, StateConnecting, StateReady, StateBlocked, StateReconnecting} {
		board.update(func(st *Status) { st.State = s })
		wantSame(t, "state", board.get().State, StateDraining)
	}
	board.update(func(st *Status) { st.State = StateClosed })
	wantSame(t, "state", board.get().State, StateClosed)
}

func TestSinceIsWhenTheStateWasEntered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var board statusBoard
		board.update(func(s *Status) { s.State = StateReady })
		entered := time.Now()
		pass(time.Second)
		board.update(func(s *Status) { s.Generation = 2 })
		wantSame(t, "since", board.get().Since, entered)
		board.update(func(s *Status) { s.State = StateBlocked })
		wantSame(t, "since", board.get().Since, entered.Add(time.Second))
	})
}

func TestBlockedTimeAddsUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var board statusBoard
		enter := func(state State) { board.update(func(s *Status) { s.State = state }) }
		for range 2 {
			enter(StateReady)
			pass(time.Minute)
			enter(StateBlocked)
			pass(time.Second)
		}
		wantSame(t, "blocked", board.blockedFor(), 2*time.Second)
		enter(StateReconnecting)
		pass(time.Minute)
		wantSame(t, "blocked", board.blockedFor(), 2*time.Second)
	})
}

func TestStatusShowsTheAlarm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, c.WaitReady)
		b.With(func(b *brokertest.Broker) { b.Links[0].Published = true })
		b.SetAlarm("low on memory")
		settle()
		st := c.Status()
		wantSame(t, "state", st.State, StateBlocked)
		wantSame(t, "reason", st.Reason, "low on memory")
		if err := c.WaitReady(within(t, time.Second)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ready while blocked: %v", err)
		}
		b.SetAlarm("")
		settle()
		st = c.Status()
		wantSame(t, "state", st.State, StateReady)
		wantSame(t, "reason", st.Reason, "")
		b.Kick(nil)
		ready(t, c.WaitReady)
	})
}

func TestStatusAfterALoss(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, c.WaitReady)
		wantSame(t, "broker", c.Status().Broker, "broker.test:5672")
		b.With(func(b *brokertest.Broker) { b.OnDial = refusing(1<<30, brokertest.ErrCut) })
		b.Kick(&amqp.Error{Code: amqp.ConnectionForced, Reason: "shutdown"})
		settle()
		st := c.Status()
		wantSame(t, "state", st.State, StateReconnecting)
		wantTexts(t, st.Err, "the broker closed the connection", "shutdown")
		wantSame(t, "generation", st.Generation, 1)
		b.With(func(b *brokertest.Broker) { b.OnDial = nil })
		ready(t, c.WaitReady)
		st = c.Status()
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
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, c.WaitReady)
		release := make(chan struct{})
		c.sup.Current().Run(func() { <-release })
		b.Kick(&amqp.Error{Code: amqp.ConnectionForced, Reason: "shutdown"})
		settle()
		wantSame(t, "state", c.Status().State, StateReconnecting)
		wantTexts(t, c.Status().Err, "shutdown")
		close(release)
		ready(t, c.WaitReady)
	})
}

// The broker may block publishing while the session is being set up.
func TestStatusOfAConnectionThatIsBlockedWhileItIsSetUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnCall = func(op, _ string) error {
			if op == "consume" {
				b.With(func(b *brokertest.Broker) { b.Links[0].Published = true })
				b.SetAlarm("low on memory")
				pass(time.Millisecond)
			}
			return nil
		}
		c := startClient(t, b)
		pass(10 * time.Millisecond)
		wantSame(t, "state", c.Status().State, StateBlocked)
		wantSame(t, "reason", c.Status().Reason, "low on memory")
		b.SetAlarm("")
		settle()
		wantSame(t, "state", c.Status().State, StateReady)
		wantSame(t, "reason", c.Status().Reason, "")
	})
}

// The ends of the certificates are those of the last connection.
func TestStatusShowsTheEndsOfCertificates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		broker, own := time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		b.With(func(b *brokertest.Broker) { b.BrokerCertificateEnd, b.OwnCertificateEnd = broker, own })
		c := startClient(t, b)
		ready(t, c.WaitReady)
		wantSame(t, "broker's", c.Status().BrokerCertificateEnd, broker)
		wantSame(t, "own", c.Status().OwnCertificateEnd, own)
		renewed := broker.Add(time.Hour)
		b.With(func(b *brokertest.Broker) { b.BrokerCertificateEnd = renewed })
		wantSame(t, "before the next connection", c.Status().BrokerCertificateEnd, broker)
		b.Kick(brokertest.BrokenSocket())
		pass(10 * time.Second)
		wantSame(t, "after it", c.Status().BrokerCertificateEnd, renewed)
	})
}
