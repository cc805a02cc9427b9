package loadgen

import (
	"syscall"
	"time"
)

// NewPacer returns a pacer that is exact to some ten microseconds.
func NewPacer() Pacer {
	return Pacer{fine: 2 * time.Millisecond, nap: func(d time.Duration) {
		ts := syscall.NsecToTimespec(d.Nanoseconds())
		_ = syscall.Nanosleep(&ts, nil) // a signal may end the nap early, which is harmless
	}}
}
