package amqpx

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
)

func TestJobsAreTakenInOrder(t *testing.T) {
	t.Parallel()
	q := newJobQueue()
	var taken, want []string
	next := 0
	put := func(n int) {
		for range n {
			q.put(&job{queue: fmt.Sprint(next)})
			want = append(want, fmt.Sprint(next))
			next++
		}
	}
	take := func(n int) {
		for range n {
			taken = append(taken, q.pop().queue)
		}
	}
	for range 200 { // the queue is never empty and has to make room at the front
		put(7)
		take(6)
	}
	wantSame(t, "waiting", q.len(), 200)
	take(200)
	wantSame(t, "order", fmt.Sprint(taken), fmt.Sprint(want))
	if room := cap(q.jobs); room > 1024 {
		t.Errorf("room for %d jobs, of which 200 waited", room)
	}
}

// A blocked worker delays no other job: a worker wakes the next before its job starts.
func TestBlockedWorkersHoldNothingUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newJobQueue()
		const workers = 8
		began, end := make(chan string, workers), make(chan struct{})
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				for j := q.pop(); j != nil; j = q.pop() {
					began <- j.queue
					<-end
				}
			})
		}
		settle()
		for i := range workers {
			q.put(&job{queue: fmt.Sprint(i)})
		}
		settle()
		wantSame(t, "jobs that began", len(began), workers)
		close(end)
		settle()
		q.close()
		all.Wait()
	})
}

func TestQueueTellsWhenItHasRoom(t *testing.T) {
	t.Parallel()
	q := newJobQueue()
	for range queueRoom + 1 {
		q.put(&job{})
	}
	wantSame(t, "room", q.hasRoom(), false)
	q.pop()
	wantSame(t, "tokens while it is full", len(q.room), 0)
	q.pop()
	<-q.room
	wantSame(t, "room again", q.hasRoom(), true)
}

func TestTrackerIsIdleAtOnceWithoutWork(t *testing.T) {
	t.Parallel()
	var tr idleTracker
	<-tr.whenIdle()
	wantSame(t, "count", tr.count(), 0)
}

func TestTrackerTellsAllWaitersWhenTheLastWorkIsDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tr idleTracker
		tr.add(1)
		tr.add(1)
		first, second := tr.whenIdle(), tr.whenIdle()
		tr.done()
		tr.add(1) // work may be added during a wait
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
	var tr idleTracker
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
