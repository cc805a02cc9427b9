package main

import (
	"syscall"
	"time"
)

// newPace returns a pace that is exact to some ten microseconds.
func newPace() pace {
	return pace{fine: 2 * time.Millisecond, nap: func(d time.Duration) {
		ts := syscall.NsecToTimespec(d.Nanoseconds())
		_ = syscall.Nanosleep(&ts, nil) // a signal may end the nap early, which is harmless
	}}
}
