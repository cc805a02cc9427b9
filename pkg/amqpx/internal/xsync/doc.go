// Package xsync has the concurrent helpers of package amqpx: the queue of the workers, a
// counter that tells when no work is in progress, a context without a timer until one is
// needed, the waits and timers between attempts, and keys that are remembered for a while. It
// imports no other package of this project.
package xsync
