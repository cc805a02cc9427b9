package amqpx

import "sync"

// tracker counts work under way and tells when there is none. Unlike a WaitGroup
// it allows work to be added while somebody waits. Its zero value is ready.
type tracker struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n reaches zero; nil while nobody waits
}

func (t *tracker) add(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n += n
}

func (t *tracker) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
	t.tell()
}

// whenIdle returns a channel that is closed once nothing is under way.
func (t *tracker) whenIdle() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.tell()
	return idle
}

// tell closes the waiters' channel when it is time. The caller holds mu.
func (t *tracker) tell() {
	if t.n == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

func (t *tracker) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}
