package xsync

import (
	"slices"
	"sync"
)

// Queue is a queue of work for several workers, by priority, and first in, first out among items of
// one priority. Every third item is the item that has waited longest, whatever its priority, so that
// no item waits without end. A worker which takes an item wakes another worker if more items wait. So
// slow work occupies as many workers as there are, and fast work runs on a worker which is already
// awake. Safe for concurrent use.
type Queue[T any] struct {
	// Room receives a token when fewer items wait than the limit of NewQueue, after more did.
	Room chan struct{}

	limit int

	mu      sync.Mutex
	work    sync.Cond
	plain   fifo[T]    // the items of priority 0
	urgent  []level[T] // the other items, the highest priority first; no level is empty
	waiting int        // items of all priorities
	put     uint64     // number of items put
	favored int        // items taken in a row because of their priority
	idle    int        // workers that wait for an item
	called  bool       // a worker was woken and does not run yet
	closed  bool
}

// maxFavored is how many items are taken by priority before the item that has waited longest. The
// quorum queues of RabbitMQ 4.0 have the same ratio, two to one
// (https://www.rabbitmq.com/docs/4.0/quorum-queues#priorities).
const maxFavored = 2

// level holds the items of one priority above 0.
type level[T any] struct {
	priority uint8
	items    fifo[T]
}

// fifo holds items in the order of their arrival.
type fifo[T any] struct {
	entries []entry[T] // the waiting items begin at index first
	first   int
}

// entry is a waiting item.
type entry[T any] struct {
	item   T
	number uint64 // in the order of arrival among items of all priorities
}

func (f *fifo[T]) length() int { return len(f.entries) - f.first }

// oldest returns the number of the first item. The fifo must not be empty.
func (f *fifo[T]) oldest() uint64 { return f.entries[f.first].number }

// put appends items, which get the numbers from number.
func (f *fifo[T]) put(items []T, number uint64) {
	if len(f.entries)+len(items) > cap(f.entries) && f.first > len(f.entries)/2 { // move the items instead of growing the slice
		left := copy(f.entries, f.entries[f.first:])
		clear(f.entries[left:])
		f.entries, f.first = f.entries[:left], 0
	}
	for i, item := range items {
		f.entries = append(f.entries, entry[T]{item, number + uint64(i)})
	}
}

// take removes the first item.
func (f *fifo[T]) take() (item T) {
	item = f.entries[f.first].item
	f.entries[f.first] = entry[T]{}
	if f.first++; f.first == len(f.entries) {
		f.entries, f.first = f.entries[:0], 0
	}
	return item
}

// NewQueue returns a queue that has room while fewer than limit items wait.
func NewQueue[T any](limit int) *Queue[T] {
	q := &Queue[T]{Room: make(chan struct{}, 1), limit: limit}
	q.work.L = &q.mu
	return q
}

// Put appends items of a priority, without other items of this priority between them. Put never blocks
// and ignores the limit.
func (q *Queue[T]) Put(priority uint8, items ...T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	to := &q.plain
	if priority > 0 && len(items) > 0 {
		to = q.level(priority)
	}
	to.put(items, q.put)
	q.put += uint64(len(items))
	q.waiting += len(items)
	q.wake()
}

// level returns the items of a priority above 0. The caller holds mu, and puts an item.
func (q *Queue[T]) level(priority uint8) *fifo[T] {
	i := 0
	for i < len(q.urgent) && q.urgent[i].priority > priority {
		i++
	}
	if i == len(q.urgent) || q.urgent[i].priority < priority {
		q.urgent = slices.Insert(q.urgent, i, level[T]{priority: priority})
	}
	return &q.urgent[i].items
}

// wake wakes an idle worker if an item waits and no worker is waking up. The caller holds mu.
func (q *Queue[T]) wake() {
	if q.idle > 0 && !q.called && q.waiting > 0 {
		q.called = true
		q.work.Signal()
	}
}

// Pop waits for the next item. ok is false if the queue is closed.
func (q *Queue[T]) Pop() (item T, ok bool) {
	q.mu.Lock()
	for q.waiting == 0 && !q.closed {
		q.idle++
		q.work.Wait()
		q.idle--
		q.called = false
	}
	if q.closed {
		q.mu.Unlock()
		return item, false
	}
	if len(q.urgent) == 0 {
		item, q.favored = q.plain.take(), 0
	} else {
		item = q.takeFavored()
	}
	q.waiting--
	q.wake()
	few := q.waiting < q.limit
	q.mu.Unlock()
	if few && len(q.Room) == 0 {
		select {
		case q.Room <- struct{}{}:
		default:
		}
	}
	return item, true
}

// takeFavored removes the next item while items with a priority wait: the first of the highest
// priority or, in its turn, the item that has waited longest. The caller holds mu.
func (q *Queue[T]) takeFavored() (item T) {
	next, oldest := 0, q.urgent[0].items.oldest() // the level of the next item; -1: plain
	if q.favored == maxFavored {
		if q.plain.length() > 0 && q.plain.oldest() < oldest {
			next, oldest = -1, q.plain.oldest()
		}
		for i := 1; i < len(q.urgent); i++ {
			if number := q.urgent[i].items.oldest(); number < oldest {
				next, oldest = i, number
			}
		}
		q.favored = 0
	} else if q.plain.length() > 0 || len(q.urgent) > 1 {
		q.favored++
	}
	if next < 0 {
		return q.plain.take()
	}
	from := &q.urgent[next].items
	if item = from.take(); from.length() == 0 {
		q.urgent = slices.Delete(q.urgent, next, next+1)
	}
	return item
}

// HasRoom reports whether fewer items wait than the limit. If not, Room receives a token
// later.
func (q *Queue[T]) HasRoom() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting < q.limit
}

// Len returns the number of waiting items.
func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting
}

// Before estimates how many of the waiting items are taken before an item of a priority that is put
// now.
func (q *Queue[T]) Before(priority uint8) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if priority == 0 {
		return q.waiting
	}
	first := 0 // items of the same or a higher priority
	for i := range q.urgent {
		if q.urgent[i].priority >= priority {
			first += q.urgent[i].items.length()
		}
	}
	return first + min(q.waiting-first, first/maxFavored)
}

// Close ends the workers: Pop returns false from now on. Waiting items stay in the queue.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.work.Broadcast()
}
