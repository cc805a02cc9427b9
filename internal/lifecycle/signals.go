// Package lifecycle turns signals into contexts and errors into exit codes.
package lifecycle

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Signals returns two contexts that the process's signals end. The first SIGTERM
// or SIGINT ends drain: take no new work, finish what has begun. The second ends
// force: stop now. After that the signals have their usual effect again, so a
// third one kills a process that hangs. The end of parent ends both.
//
// stop releases everything; both contexts are over when it returns. Call it once.
func Signals(parent context.Context) (drain, force context.Context, stop func()) {
	received := make(chan os.Signal, 2)
	signal.Notify(received, syscall.SIGTERM, syscall.SIGINT)
	return watch(parent, received, func() { signal.Stop(received) })
}

// watch does the work of Signals for any source of signals. release is called
// once, after the second signal or when the watching ends.
func watch(parent context.Context, received <-chan os.Signal, release func()) (drain, force context.Context, stop func()) {
	force, cancelForce := context.WithCancel(parent)
	drain, cancelDrain := context.WithCancel(force)
	done := make(chan struct{})
	// Ends with the second signal or when stop, or the parent, ends force.
	go func() {
		defer close(done)
		defer release()
		for _, cancel := range []func(){cancelDrain, cancelForce} {
			select {
			case <-received:
				cancel()
			case <-force.Done():
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
