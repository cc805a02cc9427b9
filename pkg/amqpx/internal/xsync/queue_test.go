package xsync

import (
	"fmt"
	"slices"
	"strings"
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
			q.Put(0, len(want))
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
	if room := cap(q.plain.entries); room > 1024 {
		t.Errorf("room for %d items, of which 200 waited", room)
	}
}

// takeAll takes all waiting items.
func takeAll[T any](q *Queue[T]) (all []T) {
	for q.Len() > 0 {
		item, _ := q.Pop()
		all = append(all, item)
	}
	return all
}

// The item of the highest priority is next, and every third time the item that has waited longest.
func TestItemsAreTakenByPriority(t *testing.T) {
	t.Parallel()
	type put struct {
		priority uint8
		items    string
	}
	for name, c := range map[string]struct {
		puts []put
		want string
	}{
		"no priority":                    {[]put{{0, "abc"}}, "abc"},
		"a later item with a priority":   {[]put{{0, "abc"}, {5, "U"}}, "Uabc"},
		"several priorities":             {[]put{{1, "a"}, {9, "b"}}, "ba"},
		"one priority is in order":       {[]put{{7, "a"}, {7, "b"}, {7, "c"}, {7, "d"}}, "abcd"},
		"two to one":                     {[]put{{0, "abc"}, {5, "UVWXYZ"}}, "UVaWXbYZc"},
		"the oldest has the highest":     {[]put{{5, "UVWXYZ"}, {0, "abc"}}, "UVWXYZabc"},
		"the oldest has a priority":      {[]put{{1, "m"}, {5, "UVWXYZ"}, {0, "a"}}, "UVmWXYZa"},
		"three levels":                   {[]put{{0, "a"}, {1, "m"}, {5, "UVWXY"}}, "UVaWXmY"},
		"the highest possible":           {[]put{{254, "a"}, {255, "b"}, {0, "c"}}, "bac"},
		"a priority below those waiting": {[]put{{9, "a"}, {1, "b"}, {5, "c"}}, "acb"},
		"no items":                       {[]put{{5, ""}, {0, ""}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := NewQueue[string](1)
			for _, p := range c.puts {
				for _, item := range p.items {
					q.Put(p.priority, string(item))
				}
			}
			wantSame(t, "taken", strings.Join(takeAll(q), ""), c.want)
		})
	}
}

// While items with a priority keep arriving, at least every third item is one that waits.
func TestNoItemWaitsWithoutEnd(t *testing.T) {
	t.Parallel()
	q := NewQueue[string](1)
	q.Put(0, "plain")
	q.Put(1, "low")
	q.Put(9, "first")
	var taken []string
	for range 9 {
		q.Put(9, "high")
		item, _ := q.Pop()
		taken = append(taken, item)
	}
	wantSame(t, "taken", strings.Join(taken, " "), "first high plain high high low high high high")
}

// Before is what then happens, if no further items arrive.
func TestItemsBeforeAnItem(t *testing.T) {
	t.Parallel()
	for priority, want := range map[uint8]int{0: 14, 1: 9, 3: 6, 5: 6, 6: 0, 255: 0} {
		q := NewQueue[string](1)
		q.Put(0, slices.Repeat([]string{"plain"}, 8)...)
		q.Put(1, "low", "low")
		q.Put(5, slices.Repeat([]string{"high"}, 4)...)
		wantSame(t, fmt.Sprintf("estimate for priority %d", priority), q.Before(priority), want)
		q.Put(priority, "mine")
		wantSame(t, fmt.Sprintf("taken before priority %d", priority), slices.Index(takeAll(q), "mine"), want)
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
			q.Put(0, i)
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
	q.Put(0, make([]int, limit+1)...)
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
	q.Put(0, 1, 2)
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
		q.Put(0, item)
	}
	b.ReportAllocs()
	for b.Loop() {
		q.Put(0, item)
		q.Pop()
	}
}

// pass lets the bubble's virtual time advance by d.
func pass(d time.Duration) {
	<-time.NewTimer(d).C
	synctest.Wait()
}
