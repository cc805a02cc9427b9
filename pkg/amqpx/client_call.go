package amqpx

import (
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// stage is how far one attempt of a call has come. Each move is one
// compare-and-swap, so exactly one party settles an attempt, whoever comes first:
//
//	queued ──claim──▶ written ──ack──▶ confirmed
//	  │                 │ return       │ nack, loss │ the link was replaced, the
//	  │ caller gave up  ▼              ▼            ▼ queue is gone, nobody serves it
//	  └──▶ withdrawn   settled        lost        lost
type stage uint32

const (
	stageSettled   stage = iota // no attempt is under way, the last did not arrive; the zero value
	stageQueued                 // handed to the publisher, not written
	stageCanceled               // given up before it was written: it never runs
	stageWritten                // written, the broker's word is open
	stageConfirmed              // the broker has it; the answer is open
	stageLost                   // no attempt is under way, the last may have arrived
)

// event is what a waiting call learns.
type event struct {
	kind   eventKind
	result publishResult
}

type eventKind uint8

const (
	eventPublished eventKind = iota // the fate of its attempt
	eventAnswered                   // it has an answer
	eventExpired                    // its deadline has passed
	eventClosed                     // the client is closed
	eventCanceled                   // its context has ended
	eventAttempt                    // it is time for an attempt
	eventFull                       // it was nacked, and the queue is at its bound
)

// maxEvents is how many events a call can have that nobody has read: one of each kind.
const maxEvents = int(eventAttempt) + 1

// route is the way of a client's calls, which all of them share.
type route struct {
	queue      string                // the request queue
	check      func(*Response) error // of responses that would be results; nil: none
	replyTo    string                // only setup changes it, while no session publishes
	persistent bool
	timed      bool // attempts have a time limit
	// nackProves says that a nack proves that the request was not delivered: the queue is a
	// quorum queue, which rejects a message only before it is written to its log.
	nackProves bool
	user       brokerUser
	outbox     *outbox
	watch      *queueWatch
	queueGate  *queueGate
	batch      *batchTarget // nil when the batch lane is off
}

// call is one pending call. The goroutine inside Client.Call owns it and is the
// only one that starts attempts; the session's goroutines report through events.
type call struct {
	req      *Request
	route    *route
	deadline time.Time
	future   *Future // that is to settle; nil when a goroutine waits for the call

	stage      atomic.Uint32
	generation atomic.Uint64 // the session that wrote the last attempt
	sent       atomic.Int32  // how often it was written
	sentAt     atomic.Int64  // when the last attempt was written, in ns; only where attempts are timed
	returned   atomic.Bool   // the broker gave the last attempt back
	batched    atomic.Bool   // the last attempt travelled in a batch
	// events never blocks its senders: a call gets each kind at most once, but for an
	// attempt's fate, which is taken before the next attempt starts. A future that no
	// goroutine sees to has none.
	events chan event
	// suspected counts the channels that ended while an attempt was unconfirmed, and rejection
	// is why the broker does not take the request. The publisher writes them before it reports.
	suspected int
	rejection error
	resent    bool // of this attempt: an earlier one may have arrived

	// The pending table's lock guards these; the answer may be read after its event.
	entry            *pendingEntry
	answer           reply
	echoed           bool // the answer told which round it answers
	inDeadlines      bool // among those that have the client's own deadline
	prevDue, nextDue *call
	watcher          *ctxWatcher // of a future, while its context is watched
	watcherIndex     int

	// round counts the refusals of servers that the call was retried after. Requests
	// carry it and answers echo it, so that a second copy of an earlier refusal is
	// not taken for the answer to the retry.
	round int64

	responded bool        // a response was read
	response  *properties // of that
	body      []byte      // of that, if it was a result

	lastResult publishResult // of the attempt before
	uncertain  bool          // an earlier attempt may have arrived
	refusal    *Error        // the server's, when that ended the last attempt
	elsewhere  int           // how often a server refused it as unimplemented
	refusers   []string      // the servers that did and said who they are
	alone      bool          // it travels in no batch
	// unknownBefore is how many answers to unknown calls had come when it was made.
	unknownBefore uint64
	probes        uint64                      // the epoch of the gate in which it has the turn; 0: it has not
	wait          *backoff.ExponentialBackOff // between attempts; nil before the first wait
}

// newCall returns a call for a goroutine that waits.
func newCall(req *Request, r *route) *call {
	return &call{req: req, route: r, events: make(chan event, maxEvents)}
}

// notify hands an event to whoever waits for the call. It never waits.
func (k *call) notify(ev event) {
	if k.future != nil {
		k.future.onEvent(k, ev)
	} else {
		k.events <- ev
	}
}

// nextRound returns the call for the round after a server's refusal: the same request
// under the same id. It is another value, because the broker's word on the refused
// attempt may still be on its way and must not be taken for the next one's.
func (k *call) nextRound() *call {
	k.cancelSend() // answered before a re-send left
	n := newCall(k.req, k.route)
	n.deadline, n.future = k.deadline, k.future
	n.round, n.uncertain, n.wait, n.probes = k.round+1, k.uncertain, k.wait, k.probes
	n.unknownBefore = k.unknownBefore
	n.elsewhere, n.refusers, n.alone = k.elsewhere, k.refusers, k.elsewhere > 0
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

// transition makes one step and reports whether this party made it.
func (k *call) transition(from, to stage) bool {
	return k.stage.CompareAndSwap(uint32(from), uint32(to))
}

// send hands an attempt to the publisher. Without a link it waits in the outbox for
// the next one.
func (k *call) send() {
	k.resent = k.uncertain
	k.batched.Store(false)
	k.stage.Store(uint32(stageQueued))
	k.route.watch.want()
	k.route.outbox.put(k)
}

// cancelSend takes back an attempt that was not written, and reports whether it did.
func (k *call) cancelSend() bool {
	if !k.transition(stageQueued, stageCanceled) {
		return false
	}
	k.route.outbox.noteCanceled()
	return true
}

// canceled implements outgoing.
func (k *call) canceled() bool { return stage(k.stage.Load()) == stageCanceled }

// budget is the time that the call has left.
func (k *call) budget(now time.Time) time.Duration { return max(k.deadline.Sub(now), 0) }

// beginSend implements outgoing.
func (k *call) beginSend(generation uint64) bool {
	k.generation.Store(generation)
	if !k.transition(stageQueued, stageWritten) {
		return false
	}
	k.sent.Add(1)
	if k.route.timed {
		k.sentAt.Store(time.Now().UnixNano())
	}
	return true
}

// publishing implements outgoing. Every request is mandatory: without a queue the
// broker returns it, and the caller learns at once that nobody serves.
func (k *call) publishing() (key string, mandatory bool, msg amqp.Publishing) {
	k.batched.Store(false) // also of one that boarded a batch which no other call joined
	msg = encodeRequest(k.req, k.route.replyTo, k.budget(time.Now()), k.route.persistent)
	markAgain(&msg, k.resent, k.round)
	msg.UserId = k.route.user.get()
	return k.route.queue, true, msg
}

// onResult implements outgoing. A message that the broker gave back is settled by its
// confirm, which follows at once: settled by the return, its confirm could come when
// the next attempt is under way, and would be taken for that one's.
func (k *call) onResult(f publishResult) {
	if k.returned.Swap(false) {
		f = resultReturned
	}
	if f == resultConfirmed {
		k.transition(stageWritten, stageConfirmed)
		if k.route.queueGate.isShut.Load() && !k.batched.Load() {
			k.route.queueGate.open()
		}
		return
	}
	after := stageSettled
	if f == resultSuspect {
		k.suspected++
	}
	if f == resultLost || f == resultSuspect || f == resultNacked && !k.route.nackProves {
		after = stageLost
	}
	if k.transition(stageWritten, after) {
		if f == resultUnsent {
			k.sent.Add(-1)
		}
		k.notify(event{result: f})
	}
}

// reject implements rejectable: the call fails for good.
func (k *call) reject(cause error) {
	k.rejection = cause
	k.onResult(resultRejected)
}

// suspicion implements suspect.
func (k *call) suspicion() int { return k.suspected }

// sessionReplaced tells a confirmed call that a new session took over from the one
// that wrote it. answersLost says that the reply queue, and what was in it, is
// gone. An idempotent call is given back to its caller, who re-sends it: its request
// may be gone with the old link's broker, and nobody here can tell. Any other keeps
// waiting for its answer, unless that is gone.
func (k *call) sessionReplaced(generation uint64, answersLost bool) {
	if k.generation.Load() >= generation || !answersLost && !k.req.Idempotent {
		return
	}
	if k.transition(stageConfirmed, stageLost) {
		k.notify(event{result: resultLost})
	}
}

// outcome tells what is certain when the caller gives up now.
func (k *call) outcome() Outcome {
	unsent := k.cancelSend() || stage(k.stage.Load()) == stageSettled
	if unsent && !k.uncertain {
		return DidNotRun
	}
	return MayHaveRun
}

// newID returns a correlation id, a UUID of version 4 (RFC 9562 section 5.4). It is not
// to be guessed: who knows a call's key can have its answer. Safe for concurrent use.
func newID() string {
	s, _ := idSources.Get().(*idSource)
	id := s.next()
	idSources.Put(s)
	return id.String()
}

// idSources are sources of random bytes that nobody uses at the moment.
//
//nolint:gochecknoglobals // what is in it is the same for everybody.
var idSources = sync.Pool{New: func() any { return &idSource{used: idBytes} }}

// idBytes is how many random bytes are fetched at once: asking the system for each id
// takes longer than all the rest of making one.
const idBytes = 64 * len(uuid.UUID{})

// idSource makes ids for one goroutine at a time.
type idSource struct {
	used  int
	bytes [idBytes]byte
}

func (s *idSource) next() (id uuid.UUID) {
	if s.used == len(s.bytes) {
		_, _ = rand.Read(s.bytes[:]) // never returns an error
		s.used = 0
	}
	s.used += copy(id[:], s.bytes[s.used:])
	id[6] = id[6]&0x0f | 0x40 // version 4
	id[8] = id[8]&0x3f | 0x80 // variant of the RFC
	return id
}
