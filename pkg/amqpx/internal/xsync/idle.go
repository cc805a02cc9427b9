package xsync

import "sync"

// IdleTracker counts work in progress and signals when there is none. Unlike a WaitGroup it
// allows work to be added while a goroutine waits. The zero value is ready to use.
type IdleTracker struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n reaches zero; nil until a goroutine waits
	call []func()      // called when n reaches zero
}

// Add counts n more pieces of work.
func (t *IdleTracker) Add(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n += n
}

// Done counts one piece of work less. After the last piece it calls the functions of
// CallWhenIdle.
func (t *IdleTracker) Done() {
	for _, f := range t.done() {
		f()
	}
}

// done counts one piece of work less and returns the functions that are to be called.
func (t *IdleTracker) done() (call []func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
	t.notifyIdle()
	if t.n == 0 {
		call, t.call = t.call, nil
	}
	return call
}

// CallWhenIdle registers a function, which the next call of Done that leaves no work in
// progress calls, once. If no work is in progress, it only returns false.
func (t *IdleTracker) CallWhenIdle(f func()) (registered bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == 0 {
		return false
	}
	t.call = append(t.call, f)
	return true
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
