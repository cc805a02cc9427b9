package xsync

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestItemsAreTakenInOrder(t *testing.T) {
	t.Parallel()
	q := NewQueue[int](1)
	var taken, want []int
	put := func(n int) {
		for range n {
			q.Put(len(want))
			want = append(want, len(want))
		}
	}
	take := func(n int) {
		for range n {
			item, _ := q.Pop()
			taken = append(taken, item)
		}
	}
	for range 200 { // the queue is never empty and has to make room at the front
		put(7)
		take(6)
	}
	wantSame(t, "waiting", q.Len(), 200)
	take(200)
	if !slices.Equal(taken, want) {
		t.Errorf("taken in the order %v", taken)
	}
	if room := cap(q.items); room > 1024 {
		t.Errorf("room for %d items, of which 200 waited", room)
	}
}

// A blocked worker delays no other item: a worker wakes the next before its work starts.
func TestBlockedWorkersDelayNoOtherItem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue[int](1)
		const workers = 8
		began, end := make(chan int, workers), make(chan struct{})
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				for item, ok := q.Pop(); ok; item, ok = q.Pop() {
					began <- item
					<-end
				}
			})
		}
		synctest.Wait()
		for i := range workers {
			q.Put(i)
		}
		synctest.Wait()
		wantSame(t, "items that workers began", len(began), workers)
		close(end)
		synctest.Wait()
		q.Close()
		all.Wait()
	})
}

func TestQueueTellsWhenItHasRoom(t *testing.T) {
	t.Parallel()
	const limit = 64
	q := NewQueue[int](limit)
	q.Put(make([]int, limit+1)...)
	wantSame(t, "room", q.HasRoom(), false)
	q.Pop()
	wantSame(t, "tokens while the queue is full", len(q.Room), 0)
	q.Pop()
	<-q.Room
	wantSame(t, "room again", q.HasRoom(), true)
}

func TestClosedQueueReturnsNoWaitingItem(t *testing.T) {
	t.Parallel()
	q := NewQueue[int](1)
	q.Put(1, 2)
	q.Close()
	_, ok := q.Pop()
	wantSame(t, "an item", ok, false)
	wantSame(t, "waiting", q.Len(), 2)
}

func TestTrackerIsIdleAtOnceWithoutWork(t *testing.T) {
	t.Parallel()
	var tr IdleTracker
	<-tr.WhenIdle()
	wantSame(t, "count", tr.Count(), 0)
}

func TestTrackerTellsAllWaitersWhenTheLastWorkIsDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tr IdleTracker
		tr.Add(1)
		tr.Add(1)
		first, second := tr.WhenIdle(), tr.WhenIdle()
		tr.Done()
		tr.Add(1) // work may be added during a wait
		tr.Done()
		select {
		case <-first:
			t.Fatal("idle with work under way")
		default:
		}
		wantSame(t, "count", tr.Count(), 1)
		tr.Done()
		<-first
		<-second
		tr.Add(1)
		select {
		case <-tr.WhenIdle():
			t.Error("idle again with new work")
		default:
		}
	})
}

func TestTrackerFromManyGoroutines(t *testing.T) {
	t.Parallel()
	var tr IdleTracker
	tr.Add(1)
	idle := tr.WhenIdle()
	var wg sync.WaitGroup
	for range 100 {
		tr.Add(1)
		wg.Go(tr.Done)
	}
	wg.Wait()
	tr.Done()
	<-idle
}

func wantSame[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func BenchmarkQueue(b *testing.B) {
	q := NewQueue[*int](64)
	item := new(int)
	for range 64 { // waiting items
		q.Put(item)
	}
	b.ReportAllocs()
	for b.Loop() {
		q.Put(item)
		q.Pop()
	}
}

// pass lets the bubble's virtual time advance by d.
func pass(d time.Duration) {
	<-time.NewTimer(d).C
	synctest.Wait()
}
