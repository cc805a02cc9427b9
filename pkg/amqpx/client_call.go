package amqpx

import (
	"crypto/rand"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// stage is the progress of an attempt of a call. Each transition is a single compare-and-swap,
// so exactly one goroutine ends an attempt:
//
//	queued    → written    the publisher begins to send the request
//	queued    → canceled   the caller cancels the call
//	written   → confirmed  confirm
//	written   → settled    return, not sent, rejected, or a nack by a quorum queue
//	written   → lost       any other nack, or loss of the connection
//	confirmed → lost       the connection was replaced, the queue is gone, or has no consumer
type stage uint32

const (
	stageSettled   stage = iota // no attempt is under way, the last did not arrive; the zero value
	stageQueued                 // handed to the publisher, not written
	stageCanceled               // canceled before the write: it never runs
	stageWritten                // written, not confirmed yet
	stageConfirmed              // confirmed; the response is outstanding
	stageLost                   // no attempt is under way, the last may have arrived
)

// event is a notification to a waiting call.
type event struct {
	kind   eventKind
	result publish.Result
}

type eventKind uint8

const (
	eventPublished eventKind = iota // the publish result of the attempt
	eventAnswered                   // a response has arrived
	eventExpired                    // the deadline has passed
	eventClosed                     // the client is closed
	eventCanceled                   // the context has ended
	eventAttempt                    // the next attempt is due
	eventFull                       // the request was nacked, and the queue is at its bound
)

// maxEvents bounds a call's unread events: one event of each kind up to eventAttempt.
const maxEvents = int(eventAttempt) + 1

// route has the settings and the state shared by all calls of a client.
type route struct {
	queue      string                // the request queue
	check      func(*Response) error // checks successful responses; nil: no check
	replyTo    string                // only setup changes it, while no session publishes
	persistent bool
	timed      bool // attempts have a time limit
	// nackProves means that a nacked request was certainly not delivered: the queue is a
	// quorum queue, which rejects a message only before writing the message to its log.
	nackProves bool
	user       brokerUser
	outbox     *publish.Outbox
	watch      *queueWatch
	queueGate  *queueGate
	batch      *batchTarget // nil without batches
}

// call is a pending call. The goroutine inside Client.Call owns the call, and no other
// goroutine starts attempts; the session's goroutines report through events.
type call struct {
	// req is the request in the form to send, made once when the call begins. A retry after a
	// refusal is a new round of the call, with the next number in req.Retry: requests carry
	// the number and responses echo it, so that a second copy of an earlier refusal is not
	// mistaken for the response to the retry. req.Resent belongs to the current attempt.
	req           wire.Request
	route         *route
	deadline      time.Time
	future        *Future   // of Client.Go; nil when a goroutine waits for the call
	info          *CallInfo // set when the call ends; nil if the caller does not want it
	waitForServer bool

	stage      atomic.Uint32
	generation atomic.Uint64 // the session that wrote the last attempt
	sent       atomic.Int32  // number of written attempts
	sentAt     atomic.Int64  // time of the last write, in ns; only with route.timed
	returned   atomic.Bool   // the broker returned the last attempt
	batched    atomic.Bool   // the last attempt was sent in a batch
	// events never blocks its senders: a call gets each kind at most once, except for the
	// publish result of an attempt, which is read before the next attempt starts. It is nil
	// for a future without a goroutine.
	events chan event
	// suspected counts the channels that ended while an attempt was unconfirmed. rejection is
	// the broker's reason for rejecting the request. The publisher sets both before reporting.
	suspected int
	rejection error

	// The pending table's lock guards the fields up to watcherIndex; answer may be read after
	// eventAnswered.
	entry            *pendingEntry
	answer           wire.Response
	inDeadlines      bool // in the list of calls with the client's default deadline
	prevDue, nextDue *call
	watcher          *ctxWatcher // watcher of a future's context
	watcherIndex     int

	responded bool // a response was read: answer does not change any more

	lastResult publish.Result // publish result of the last attempt
	uncertain  bool           // an earlier attempt may have arrived
	refusal    *Error         // the server's refusal, if it ended the last attempt
	elsewhere  int            // number of refusals as unimplemented
	refusers   []string       // known ids of the servers that refused as unimplemented
	alone      bool           // not to be sent in a batch
	// unknownBefore is the count of responses to unknown calls when the call started.
	unknownBefore uint64
	probes        uint64         // epoch of the queue gate in which the call may probe; 0: it may not
	wait          *xsync.Backoff // between attempts; nil before the first wait
}

// newCall returns a call for a waiting goroutine.
func newCall(req *wire.Request, r *route) *call {
	return &call{req: *req, route: r, events: make(chan event, maxEvents)}
}

// setRequest sets the request of the call, with headers of AMQP's types, or returns the reason
// why the request cannot be sent. Headers visible to middleware are copied, because middleware
// may change them again.
func (k *call) setRequest(req *Request, maxBody int) error {
	header, err := wire.EncodeHeader(req.Header)
	if err != nil {
		return err
	}
	if !req.sent.ours {
		header = maps.Clone(header)
	}
	k.info, k.waitForServer = req.sent.info, req.sent.waitForServer
	k.req = wire.Request{
		Method: req.Method, Body: req.Body, Header: header,
		ContentType: req.ContentType, ContentEncoding: req.ContentEncoding,
		ID: req.CorrelationID, Key: req.IdempotencyKey, Idempotent: req.Idempotent,
		WantsTimes: k.info != nil,
	}
	return k.req.Check(maxBody)
}

// notify delivers an event to the call's future or waiting goroutine. It never blocks.
func (k *call) notify(ev event) {
	if k.future != nil {
		k.future.onEvent(k, ev)
	} else {
		k.events <- ev
	}
}

// nextRound returns the call for the round after a server's refusal: the same request under
// the same id. The call is a new value, because the publish result of the refused attempt may
// still arrive and must not be mistaken for the result of the next attempt.
func (k *call) nextRound() *call {
	k.cancelSend() // the response came before a re-send was written
	n := newCall(&k.req, k.route)
	n.req.Retry++
	n.deadline, n.future, n.info, n.waitForServer = k.deadline, k.future, k.info, k.waitForServer
	n.uncertain, n.wait, n.probes = k.uncertain, k.wait, k.probes
	n.unknownBefore = k.unknownBefore
	n.elsewhere, n.refusers, n.alone = k.elsewhere, k.refusers, k.elsewhere > 0
	n.sent.Store(k.sent.Load())
	return n
}

// nextWait returns the wait before the next attempt.
func (k *call) nextWait() time.Duration {
	if k.wait == nil {
		k.wait = xsync.NewBackoff(resendMin, resendMax)
	}
	return max(k.wait.NextBackOff(), time.Millisecond)
}

// transition changes the stage from one value to another and reports success.
func (k *call) transition(from, to stage) bool {
	return k.stage.CompareAndSwap(uint32(from), uint32(to))
}

// send queues an attempt for the publisher. Without a connection the attempt waits in the
// outbox for the next session.
func (k *call) send() {
	k.req.Resent = k.uncertain
	k.batched.Store(false)
	k.stage.Store(uint32(stageQueued))
	k.route.watch.want()
	k.route.outbox.Put(k)
}

// cancelSend cancels an unwritten attempt and reports success.
func (k *call) cancelSend() bool {
	if !k.transition(stageQueued, stageCanceled) {
		return false
	}
	k.route.outbox.NoteCanceled()
	return true
}

// Canceled implements publish.Outbound.
func (k *call) Canceled() bool { return stage(k.stage.Load()) == stageCanceled }

// budget returns the time left until the deadline.
func (k *call) budget(now time.Time) time.Duration { return max(k.deadline.Sub(now), 0) }

// BeginSend implements publish.Outbound.
func (k *call) BeginSend(generation uint64) bool {
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

// Publishing implements publish.Outbound. Every request is mandatory: without a queue the broker
// returns the request, and the caller learns at once about the missing servers.
func (k *call) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	k.batched.Store(false) // set by appendTo, also for a batch of one call
	msg = k.req.Publishing(k.route.replyTo, k.budget(time.Now()), k.route.persistent)
	msg.UserId = k.route.user.get()
	return k.route.queue, true, msg
}

// OnResult implements publish.Outbound. The confirm of a returned message, which follows the return at
// once, ends the attempt. If the return ended the attempt, the confirm could arrive during the
// next attempt and be mistaken for its confirm.
func (k *call) OnResult(f publish.Result) {
	if k.returned.Swap(false) {
		f = publish.Returned
	}
	if f == publish.Confirmed {
		k.transition(stageWritten, stageConfirmed)
		if k.route.queueGate.isShut.Load() && !k.batched.Load() {
			k.route.queueGate.open()
		}
		return
	}
	after := stageSettled
	if f == publish.Suspect {
		k.suspected++
	}
	if f == publish.Lost || f == publish.Suspect || f == publish.Nacked && !k.route.nackProves {
		after = stageLost
	}
	if k.transition(stageWritten, after) {
		if f == publish.Unsent {
			k.sent.Add(-1)
		}
		k.notify(event{result: f})
	}
}

// Reject implements publish.Rejectable: the call fails for good.
func (k *call) Reject(cause error) {
	k.rejection = cause
	k.OnResult(publish.Rejected)
}

// Suspicion implements suspect.
func (k *call) Suspicion() int { return k.suspected }

// sessionReplaced notifies a confirmed call when the session of its last attempt was replaced.
// answersLost means the loss of the reply queue and its responses. An idempotent call is
// notified so that its caller sends the request again: the request may be gone with the broker
// of the old connection, and the client cannot find out. Any other call keeps waiting for its
// response, unless answersLost is true.
func (k *call) sessionReplaced(generation uint64, answersLost bool) {
	if k.generation.Load() >= generation || !answersLost && !k.req.Idempotent {
		return
	}
	if k.transition(stageConfirmed, stageLost) {
		k.notify(event{result: publish.Lost})
	}
}

// outcome returns the outcome of a call ending now, and cancels an unwritten attempt.
func (k *call) outcome() Outcome {
	unsent := k.cancelSend() || stage(k.stage.Load()) == stageSettled
	if unsent && !k.uncertain {
		return DidNotRun
	}
	return MayHaveRun
}

// newID returns a correlation id, a UUID of version 4 (RFC 9562 section 5.4). The id must not
// be guessable: a party that knows a call's key can obtain its response. Safe for concurrent
// use.
func newID() string {
	s, _ := idSources.Get().(*idSource)
	id := s.next()
	idSources.Put(s)
	return id.String()
}

// idSources are the idle sources of random bytes.
//
//nolint:gochecknoglobals // what is in it is the same for everybody.
var idSources = sync.Pool{New: func() any { return &idSource{used: idBytes} }}

// idBytes is the number of random bytes fetched at once: a system call for each id would take
// longer than all other work for the id.
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
