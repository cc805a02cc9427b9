package xsync

import (
	"sync"
	"time"
)

// Delayed calls functions after a pause, to publish nacked messages again. The functions must
// not block. The zero value is ready to use. Safe for concurrent use.
type Delayed struct {
	mu     sync.Mutex
	timers map[*time.Timer]func()
	closed bool
}

// After calls f after a pause, or when Flush is called. After Close it does nothing.
func (d *Delayed) After(pause time.Duration, f func()) {
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

// Flush calls all waiting functions at once.
func (d *Delayed) Flush() {
	for _, f := range d.stop(false) {
		f()
	}
}

// Close stops all timers.
func (d *Delayed) Close() { d.stop(true) }

func (d *Delayed) stop(closed bool) []func() {
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

// StoppedTimer returns a timer that is not running, for a later Reset.
func StoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}
