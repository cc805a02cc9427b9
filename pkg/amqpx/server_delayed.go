package amqpx

import (
	"math/rand/v2"
	"sync"
	"time"
)

// growingPause returns the pause before try number tries+1: between half and the whole of a
// bound that doubles from first to most.
func growingPause(first, most time.Duration, tries int) time.Duration {
	bound := most
	if tries < 16 { // more doublings are beyond every bound
		bound = min(first<<tries, most)
	}
	return bound/2 + rand.N(bound/2+1) //nolint:gosec // spreads load, guards nothing.
}

// delayed publishes messages that the broker nacked again after a pause. The functions that
// it calls must not block. Its timers end with the server. Its zero value is ready to use.
// Safe for concurrent use.
type delayed struct {
	mu     sync.Mutex
	timers map[*time.Timer]func()
	closed bool
}

// after calls f after a pause, or at once by flush. After close it calls nothing.
func (d *delayed) after(pause time.Duration, f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	if d.timers == nil {
		d.timers = make(map[*time.Timer]func())
	}
	var timer *time.Timer
	timer = time.AfterFunc(pause, func() {
		d.mu.Lock()
		_, waits := d.timers[timer]
		delete(d.timers, timer)
		d.mu.Unlock()
		if waits {
			f()
		}
	})
	d.timers[timer] = f
}

// flush ends every pause.
func (d *delayed) flush() {
	for _, f := range d.stop(false) {
		f()
	}
}

// close stops every timer.
func (d *delayed) close() { d.stop(true) }

func (d *delayed) stop(closed bool) []func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = d.closed || closed
	var calls []func()
	for timer, f := range d.timers {
		timer.Stop()
		calls = append(calls, f)
	}
	clear(d.timers)
	return calls
}
