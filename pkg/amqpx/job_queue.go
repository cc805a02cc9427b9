package amqpx

import (
	"sync"
)

// jobQueue holds the jobs that wait for a worker, first come, first served. A worker
// that takes a job wakes one other if there is more to do, so that handlers which take
// long get as many workers as there are, and those which take no time are all run by one
// that is awake already. Safe for concurrent use.
type jobQueue struct {
	// room has a token when few jobs wait again.
	room chan struct{}

	mu     sync.Mutex
	work   sync.Cond
	jobs   []*job // from first on
	first  int
	idle   int  // workers that wait for a job
	called bool // one of them was woken and has not come yet
	closed bool
}

// queueRoom is how many jobs may wait before no further batch is unpacked.
const queueRoom = batchCalls

func newJobQueue() *jobQueue {
	q := &jobQueue{room: make(chan struct{}, 1)}
	q.work.L = &q.mu
	return q
}

// put adds jobs, with no others between them. It never waits.
func (q *jobQueue) put(jobs ...*job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.jobs)+len(jobs) > cap(q.jobs) && q.first > len(q.jobs)/2 { // rather than to grow
		left := copy(q.jobs, q.jobs[q.first:])
		clear(q.jobs[left:])
		q.jobs, q.first = q.jobs[:left], 0
	}
	q.jobs = append(q.jobs, jobs...)
	q.wake()
}

// wake calls a worker if that has a use. The caller holds mu.
func (q *jobQueue) wake() {
	if q.idle > 0 && !q.called && q.first < len(q.jobs) {
		q.called = true
		q.work.Signal()
	}
}

// pop waits for a job; nil means that there will be none.
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

// hasRoom reports whether another batch may be unpacked; if not, room gets a token when
// it may.
func (q *jobQueue) hasRoom() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.length() < queueRoom
}

// len returns how many jobs wait.
func (q *jobQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.length()
}

func (q *jobQueue) length() int { return len(q.jobs) - q.first }

// close sends the workers home.
func (q *jobQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.work.Broadcast()
}

// idleTracker counts work under way and tells when there is none. Unlike a WaitGroup
// it allows work to be added while somebody waits. Its zero value is ready.
type idleTracker struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n reaches zero; nil while nobody waits
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

// whenIdle returns a channel that is closed once nothing is under way.
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

// notifyIdle closes the waiters' channel when it is time. The caller holds mu.
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
