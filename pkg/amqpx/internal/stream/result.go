package stream

import (
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Reason is why a stream ended.
type Reason uint8

// The reasons for the end of a stream.
const (
	ReasonEnd         Reason = iota // the server ended the stream
	ReasonReset                     // the peer reset the stream
	ReasonAbandoned                 // this side abandoned the stream, with Result.Cause
	ReasonPeerGone                  // the connection of the peer has ended
	ReasonSilent                    // the peer does not answer
	ReasonLinkLost                  // the connection of this side has ended
	ReasonUnpublished               // the broker did not take a message to the peer
	ReasonUnroutable                // no queue took the opening
	ReasonUnserved                  // no server took the opening
	ReasonUnavailable               // the queue of openings does not take messages, or has lost them
	ReasonCredit                    // the peer sent more than its credit
	ReasonGap                       // items are missing
	ReasonMalformed                 // a message of the peer cannot be read
	ReasonClosed                    // the table is closed
)

// Progress is how far a stream came.
type Progress struct {
	// Sent is the number of items that this side has published, Taken how many of them the
	// application of the peer has taken, as far as known, Received the number of items that the
	// application of this side has taken.
	Sent, Taken, Received uint64
}

// Result is the end of a stream.
type Result struct {
	Reason Reason
	// End is the end, or the reset of the peer; nil for other reasons.
	End *wire.End
	// Cause is the cause of ReasonAbandoned, ReasonLinkLost and ReasonUnpublished; may be nil.
	Cause error
	// Counted is true if the stream was counted as open, Written if its opening was written, Accepted
	// if a server has accepted the stream.
	Counted, Written, Accepted bool
	Progress                   Progress
}

// Options are the settings of a stream.
type Options struct {
	// WindowItems and WindowBytes are the limits of the window.
	WindowItems, WindowBytes int
	// Deadline is the deadline of a stream of a client; zero: there is none.
	Deadline time.Time
	// Patient makes a stream of a client wait for a server if no queue takes its opening.
	Patient bool
	// Headers, ContentType and ContentEncoding are those of the opening.
	Headers                      []wire.StreamHeader
	ContentType, ContentEncoding string
	// OnEnd is called, once, when the stream has ended; may be nil.
	OnEnd func(s *Stream)
	// Meta belongs to the user of the package.
	Meta any
}

// signal wakes every goroutine that waits for a change.
type signal struct{ changed chan struct{} }

// wait returns a channel that is closed with the next change. The caller holds mu.
func (g *signal) wait() <-chan struct{} {
	if g.changed == nil {
		g.changed = make(chan struct{})
	}
	return g.changed
}

// notify reports a change. The caller holds mu.
func (g *signal) notify() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}
