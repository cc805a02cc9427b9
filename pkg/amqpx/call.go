package amqpx

import (
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	amqp "github.com/rabbitmq/amqp091-go"
)

// stage is how far one attempt of a call has come. Each move is one
// compare-and-swap, so exactly one party settles an attempt, whoever comes first:
//
//	queued ──claim──▶ written ──ack──▶ confirmed
//	  │                 │ nack, return, loss  │ the link was replaced
//	  │ caller gave up  ▼                     ▼
//	  └──▶ withdrawn   settled             settled
type stage uint32

const (
	stageSettled   stage = iota // no attempt is under way; the zero value
	stageQueued                 // handed to the publisher, not written
	stageWithdrawn              // given up before it was written: it never runs
	stageWritten                // written, the broker's word is open
	stageConfirmed              // the broker has it; the answer is open
)

// event is what a waiting call learns: an answer, or its attempt's fate.
type event struct {
	answer *amqp.Delivery
	fate   fate
}

// call is one pending call. The goroutine inside Client.Call owns it and is the
// only one that starts attempts; the session's goroutines report through events.
type call struct {
	req *Request
	key string // the request queue

	stage      atomic.Uint32
	generation atomic.Uint64 // the session that wrote the last attempt
	sent       atomic.Int32  // how often it was written
	returned   atomic.Bool   // the broker gave the last attempt back
	// events never blocks its senders: a call gets at most one answer, and an
	// attempt at most one fate, which is taken before the next attempt starts.
	events chan event
	msg    amqp.Publishing

	answered bool // guarded by the pending table's lock
	// round counts the refusals of servers that the call was retried after. Requests
	// carry it and answers echo it, so that a second copy of an earlier refusal is
	// not taken for the answer to the retry.
	round int64

	lastFate  fate                        // of the attempt before
	uncertain bool                        // an earlier attempt may have arrived
	noQueue   bool                        // an earlier attempt found none
	refusal   *Error                      // the server's, when that ended the last attempt
	wait      *backoff.ExponentialBackOff // between attempts; nil before the first wait
}

func newCall(req *Request, queue string) *call {
	return &call{req: req, key: queue, events: make(chan event, 2)}
}

// next returns the call for the round after a server's refusal: the same request
// under the same id. It is another value, because the broker's word on the refused
// attempt may still be on its way and must not be taken for the next one's.
func (k *call) next() *call {
	k.move(stageQueued, stageWithdrawn) // answered before a re-send left
	n := newCall(k.req, k.key)
	n.round, n.uncertain, n.noQueue, n.wait = k.round+1, k.uncertain, k.noQueue, k.wait
	n.sent.Store(k.sent.Load())
	return n
}

// nextWait returns how long to wait before the next attempt.
func (k *call) nextWait() time.Duration {
	if k.wait == nil {
		k.wait = newBackoff(resendMin, resendMax)
	}
	return max(k.wait.NextBackOff(), time.Millisecond)
}

// move makes one step and reports whether this party made it.
func (k *call) move(from, to stage) bool {
	return k.stage.CompareAndSwap(uint32(from), uint32(to))
}

// claim implements outgoing.
func (k *call) claim(generation uint64) bool {
	k.generation.Store(generation)
	if !k.move(stageQueued, stageWritten) {
		return false
	}
	k.sent.Add(1)
	return true
}

// envelope implements outgoing. Every request is mandatory: without a queue the
// broker returns it, and the caller learns at once that nobody serves.
func (k *call) envelope() (key string, mandatory bool, msg amqp.Publishing) {
	return k.key, true, k.msg
}

// settle implements outgoing. A message that the broker gave back is settled by its
// confirm, which follows at once: settled by the return, its confirm could come when
// the next attempt is under way, and would be taken for that one's.
func (k *call) settle(f fate) {
	if k.returned.Swap(false) {
		f = fateUnroutable
	}
	if f == fateConfirmed {
		k.move(stageWritten, stageConfirmed)
		return
	}
	if k.move(stageWritten, stageSettled) {
		if f == fateUnsent {
			k.sent.Add(-1)
		}
		k.events <- event{fate: f}
	}
}

// linkReplaced tells a confirmed call that a new session took over from the one
// that wrote it. answersLost says that the reply queue, and what was in it, is
// gone. An idempotent call is given back to its caller, who re-sends it: its request
// may be gone with the old link's broker, and nobody here can tell. Any other keeps
// waiting for its answer, unless that is gone.
func (k *call) linkReplaced(generation uint64, answersLost bool) {
	if k.generation.Load() >= generation || !answersLost && !k.req.Idempotent {
		return
	}
	if k.move(stageConfirmed, stageSettled) {
		k.events <- event{fate: fateLost}
	}
}

// outcome tells what is certain when the caller gives up now.
func (k *call) outcome() Outcome {
	withdrawn := k.move(stageQueued, stageWithdrawn) || stage(k.stage.Load()) == stageSettled
	if withdrawn && !k.uncertain {
		return DidNotRun
	}
	return MayHaveRun
}
