package xsync

import "sync"

// IdleTracker counts work in progress and signals when there is none. Unlike a WaitGroup it
// allows work to be added while a goroutine waits. The zero value is ready to use.
type IdleTracker struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n reaches zero; nil until a goroutine waits
}

// Add counts n more pieces of work.
func (t *IdleTracker) Add(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n += n
}

// Done counts one piece of work less.
func (t *IdleTracker) Done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
	t.notifyIdle()
}

// WhenIdle returns a channel that is closed as soon as no work is in progress.
func (t *IdleTracker) WhenIdle() <-chan struct{} {
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
func (t *IdleTracker) notifyIdle() {
	if t.n == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// Count returns the number of pieces of work in progress.
func (t *IdleTracker) Count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}
