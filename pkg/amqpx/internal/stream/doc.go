// Package stream is the state machine of streams: order, credit, half-close, end and reset of
// each stream, and the turns, the clock and the liveness of each pair of peers. docs/protocol.md
// specifies what travels.
//
// A [Table] has the streams of a client or a server, and outlives connections. A [Link] has the
// streams of one session of it. The package does no I/O: it hands a [Message] to a function of
// its user, and decides about the content only when the message is about to be written.
package stream
