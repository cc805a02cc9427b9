// Package lifecycle turns signals into contexts and errors into exit codes.
package lifecycle

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// repeatWindow is the time after the first signal in which further signals count as the same
// signal. GNU timeout signals its child and then the child's process group; a terminal signals
// a whole process group, and make, npm and sudo relay the signals that they receive.
const repeatWindow = time.Second

// Signals returns two contexts that end with the process's signals. The first SIGTERM, SIGINT
// or SIGHUP ends drain: take no new work, and finish the work in progress. A further signal,
// at least a second later, ends force: stop now. After that, signals have their default effect
// again, so a third signal kills a process that hangs. The end of parent ends both contexts. A
// SIGHUP that the process was started to ignore, as by nohup, stays ignored.
//
// SIGPIPE is ignored from now on: a write to a pipe without a reader fails with EPIPE, on
// standard output and standard error too, where Go ends a process by default.
//
// stop releases all resources; both contexts are over when stop returns. Call stop once.
func Signals(parent context.Context) (drain, force context.Context, stop func()) {
	signal.Ignore(syscall.SIGPIPE)
	received := make(chan os.Signal, 2)
	signals := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	signal.Notify(received, signals...)
	return watch(parent, received, func() { signal.Stop(received) })
}

// watch implements Signals for any source of signals. release is called once, after the second
// signal or when watch ends.
func watch(parent context.Context, received <-chan os.Signal, release func()) (drain, force context.Context, stop func()) {
	force, cancelForce := context.WithCancel(parent)
	drain, cancelDrain := context.WithCancel(force)
	done := make(chan struct{})
	// Ends with the second signal, or when stop or the parent ends force.
	go func() {
		defer close(done)
		defer release()
		var first time.Time // arrival of the first signal
		for {
			select {
			case <-force.Done():
				return
			case <-received:
			}
			switch {
			case first.IsZero():
				first = time.Now()
				cancelDrain()
			case time.Since(first) >= repeatWindow:
				cancelForce()
				return
			}
		}
	}()
	return drain, force, func() {
		cancelForce()
		cancelDrain()
		<-done
	}
}
