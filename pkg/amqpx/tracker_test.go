package amqpx

import (
	"sync"
	"testing"
	"testing/synctest"
)

func TestTrackerIsIdleAtOnceWithoutWork(t *testing.T) {
	t.Parallel()
	var tr tracker
	<-tr.whenIdle()
	wantSame(t, "count", tr.count(), 0)
}

func TestTrackerTellsAllWaitersWhenTheLastWorkIsDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tr tracker
		tr.add(1)
		tr.add(1)
		first, second := tr.whenIdle(), tr.whenIdle()
		tr.done()
		tr.add(1) // work may be added while somebody waits
		tr.done()
		select {
		case <-first:
			t.Fatal("idle with work under way")
		default:
		}
		wantSame(t, "count", tr.count(), 1)
		tr.done()
		<-first
		<-second
		tr.add(1)
		select {
		case <-tr.whenIdle():
			t.Error("idle again with new work")
		default:
		}
	})
}

func TestTrackerFromManyGoroutines(t *testing.T) {
	t.Parallel()
	var tr tracker
	tr.add(1)
	idle := tr.whenIdle()
	var wg sync.WaitGroup
	for range 100 {
		tr.add(1)
		wg.Go(tr.done)
	}
	wg.Wait()
	tr.done()
	<-idle
}
