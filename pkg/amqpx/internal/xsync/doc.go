// Package xsync has the concurrent helpers of package amqpx: the queue of the workers, a
// counter that tells when no work is in progress, a context without a timer until one is
// needed, and the waits and timers between attempts. It imports no other package of this project.
package xsync
