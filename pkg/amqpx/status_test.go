package amqpx

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
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
