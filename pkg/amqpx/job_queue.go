package amqpx

import (
	"sync"
)

// jobQueue is the first-in, first-out queue of the jobs for the workers. A worker which takes
// a job wakes another worker if more jobs wait. So slow handlers occupy as many workers as
// there are, and fast handlers run on a worker which is already awake. Safe for concurrent
// use.
type jobQueue struct {
	// room receives a token when few jobs wait again.
	room chan struct{}

	mu     sync.Mutex
	work   sync.Cond
	jobs   []*job // the waiting jobs begin at index first
	first  int
	idle   int  // workers that wait for a job
	called bool // a worker was woken and does not run yet
	closed bool
}

// queueRoom is the number of waiting jobs from which no further batch is unpacked.
const queueRoom = batchCalls

func newJobQueue() *jobQueue {
	q := &jobQueue{room: make(chan struct{}, 1)}
	q.work.L = &q.mu
	return q
}

// put appends jobs, with no other jobs between them. It never blocks.
func (q *jobQueue) put(jobs ...*job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.jobs)+len(jobs) > cap(q.jobs) && q.first > len(q.jobs)/2 { // move the jobs instead of growing the slice
		left := copy(q.jobs, q.jobs[q.first:])
		clear(q.jobs[left:])
		q.jobs, q.first = q.jobs[:left], 0
	}
	q.jobs = append(q.jobs, jobs...)
	q.wake()
}

// wake wakes an idle worker if a job waits and no worker is waking up. The caller holds mu.
func (q *jobQueue) wake() {
	if q.idle > 0 && !q.called && q.first < len(q.jobs) {
		q.called = true
		q.work.Signal()
	}
}

// pop waits for the next job; nil means: the queue is closed.
func (q *jobQueue) pop() *job {
	q.mu.Lock()
	for q.first == len(q.jobs) && !q.closed {
		q.idle++
		q.work.Wait()
		q.idle--
		q.called = false
	}
	if q.closed {
		q.mu.Unlock()
		return nil
	}
	j := q.jobs[q.first]
	q.jobs[q.first] = nil
	if q.first++; q.first == len(q.jobs) {
		q.jobs, q.first = q.jobs[:0], 0
	}
	q.wake()
	few := q.length() < queueRoom
	q.mu.Unlock()
	if few && len(q.room) == 0 {
		select {
		case q.room <- struct{}{}:
		default:
		}
	}
	return j
}

// hasRoom reports whether another batch may be unpacked. If not, room receives a token later.
func (q *jobQueue) hasRoom() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.length() < queueRoom
}

// len returns the number of waiting jobs.
func (q *jobQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.length()
}

func (q *jobQueue) length() int { return len(q.jobs) - q.first }

// close ends the workers: pop returns nil from now on.
func (q *jobQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.work.Broadcast()
}

// idleTracker counts work in progress and signals when there is none. Unlike a WaitGroup it
// allows work to be added while a goroutine waits. The zero value is ready to use.
type idleTracker struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n reaches zero; nil until a goroutine waits
}

func (t *idleTracker) add(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n += n
}

func (t *idleTracker) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
	t.notifyIdle()
}

// whenIdle returns a channel that is closed as soon as no work is in progress.
func (t *idleTracker) whenIdle() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.notifyIdle()
	return idle
}

// notifyIdle closes the channel of the waiting goroutines if n is zero. The caller holds mu.
func (t *idleTracker) notifyIdle() {
	if t.n == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

func (t *idleTracker) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}
