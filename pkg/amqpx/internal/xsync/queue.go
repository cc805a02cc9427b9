package xsync

import "sync"

// Queue is a first-in, first-out queue of work for several workers. A worker which takes an
// item wakes another worker if more items wait. So slow work occupies as many workers as there
// are, and fast work runs on a worker which is already awake. Safe for concurrent use.
type Queue[T any] struct {
	// Room receives a token when fewer items wait than the limit of NewQueue, after more did.
	Room chan struct{}

	limit int

	mu     sync.Mutex
	work   sync.Cond
	items  []T // the waiting items begin at index first
	first  int
	idle   int  // workers that wait for an item
	called bool // a worker was woken and does not run yet
	closed bool
}

// NewQueue returns a queue that has room while fewer than limit items wait.
func NewQueue[T any](limit int) *Queue[T] {
	q := &Queue[T]{Room: make(chan struct{}, 1), limit: limit}
	q.work.L = &q.mu
	return q
}

// Put appends items, with no other items between them. It never blocks, and it does not heed
// the limit.
func (q *Queue[T]) Put(items ...T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items)+len(items) > cap(q.items) && q.first > len(q.items)/2 { // move the items instead of growing the slice
		left := copy(q.items, q.items[q.first:])
		clear(q.items[left:])
		q.items, q.first = q.items[:left], 0
	}
	q.items = append(q.items, items...)
	q.wake()
}

// wake wakes an idle worker if an item waits and no worker is waking up. The caller holds mu.
func (q *Queue[T]) wake() {
	if q.idle > 0 && !q.called && q.first < len(q.items) {
		q.called = true
		q.work.Signal()
	}
}

// Pop waits for the next item. ok is false if the queue is closed.
func (q *Queue[T]) Pop() (item T, ok bool) {
	q.mu.Lock()
	for q.first == len(q.items) && !q.closed {
		q.idle++
		q.work.Wait()
		q.idle--
		q.called = false
	}
	if q.closed {
		q.mu.Unlock()
		return item, false
	}
	var none T
	item, q.items[q.first] = q.items[q.first], none
	if q.first++; q.first == len(q.items) {
		q.items, q.first = q.items[:0], 0
	}
	q.wake()
	few := q.length() < q.limit
	q.mu.Unlock()
	if few && len(q.Room) == 0 {
		select {
		case q.Room <- struct{}{}:
		default:
		}
	}
	return item, true
}

// HasRoom reports whether fewer items wait than the limit. If not, Room receives a token
// later.
func (q *Queue[T]) HasRoom() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.length() < q.limit
}

// Len returns the number of waiting items.
func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.length()
}

func (q *Queue[T]) length() int { return len(q.items) - q.first }

// Close ends the workers: Pop returns false from now on. Waiting items stay in the queue.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.work.Broadcast()
}
