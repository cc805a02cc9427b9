package amqpx

import (
	"crypto/rand"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// event is a reason for a waiting call to act.
type event struct {
	kind    eventKind
	attempt *attempt // with eventPublished: the attempt that ended
}

type eventKind uint8

const (
	eventAnswered  eventKind = iota // a response has arrived
	eventExpired                    // the deadline has passed
	eventCanceled                   // the context has ended
	eventClosed                     // the client is closed
	eventPublished                  // the current attempt ended with a publish result
	eventAttempt                    // the next attempt is due
	eventFull                       // the request was nacked, and the queue is at its bound
)

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

// call is a pending call: what a caller waits for, from its start until it is settled. Each
// send of its request is an attempt. The goroutine inside Client.Call owns the call, and no
// other goroutine starts attempts; the session's goroutines notify it. Its fields are ordered,
// and some counters are short, so that it fits in 512 bytes: many calls may wait at once.
type call struct {
	// req is the request, made once when the call begins. Its fields Retry and Resent differ
	// from one attempt to the next, and are set in attempt.request.
	req      wire.Request
	route    *route
	deadline time.Time
	future   *Future   // of Client.Go; nil when a goroutine waits for the call
	info     *CallInfo // set when the call ends; nil if the caller does not want it

	sent atomic.Int32 // number of written attempts
	// notified has a bit for each eventKind up to eventClosed that happened. A response's bit
	// is cleared when the response is read; the other events end the call, so their bits stay.
	notified atomic.Uint32
	// wake has a token when the goroutine of the call must look at notified and at the current
	// attempt. Senders never block: if there is a token already, another is not needed. It is
	// nil for a future without a goroutine.
	wake chan struct{}
	// current is the attempt whose result the call waits for; nil before the first attempt, and
	// between two attempts. A late result of any other attempt has no effect on the call.
	current atomic.Pointer[attempt]
	first   attempt // the first attempt, here to save its allocation

	// The pending table's lock guards the fields up to inDeadlines; answer may be read after
	// eventAnswered. retry is the number of refusals after which the request was sent again:
	// requests carry the number and responses echo it, so that a second copy of an earlier
	// refusal is not mistaken for the response to the retry.
	entry            *pendingEntry
	answer           wire.Response
	prevDue, nextDue *call
	watcher          *ctxWatcher // watcher of a future's context
	watcherIndex     int32
	retry            int32
	inDeadlines      bool // in the list of calls with the client's default deadline

	waitForServer bool
	responded     bool           // a response was read: answer does not change any more
	uncertain     bool           // an earlier attempt may have arrived
	lastResult    publish.Result // publish result of the last attempt since the last refusal
	suspected     uint16         // channels that ended while an attempt was unconfirmed, since the last refusal
	elsewhere     int32          // number of refusals as unimplemented
	refusers      []string       // known ids of the servers that refused as unimplemented
	refusal       *Error         // the server's refusal, if it ended the last attempt
	// unknownBefore is the count of responses to unknown calls when the call started.
	unknownBefore uint64
	probes        uint64         // epoch of the queue gate in which the call may probe; 0: it may not
	wait          *xsync.Backoff // between attempts; nil before the first wait
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

// notify records an event up to eventClosed and wakes the call. It never blocks.
func (k *call) notify(kind eventKind) {
	k.notified.Or(1 << kind)
	k.wakeUp()
}

// wakeUp makes the call's future or waiting goroutine look at the call. It never blocks.
func (k *call) wakeUp() {
	if k.future != nil {
		k.future.onEvent(k)
	} else {
		offerToken(k.wake)
	}
}

// offerToken makes sure that a channel with room for a token has one.
func offerToken(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// has reports whether an event up to eventClosed happened and was not read.
func (k *call) has(kind eventKind) bool { return k.notified.Load()&(1<<kind) != 0 }

// takeResponse reports whether there is an unread response, which the caller must read.
func (k *call) takeResponse() bool {
	return k.has(eventAnswered) && k.notified.And(^uint32(1<<eventAnswered))&(1<<eventAnswered) != 0
}

// takeEnded returns the current attempt if it has ended, else nil. The call then has no current
// attempt.
func (k *call) takeEnded() *attempt {
	a := k.current.Load()
	if a == nil || !a.ended() {
		return nil
	}
	k.current.Store(nil)
	return a
}

// next returns the next unread event of the call, if there is one. A response comes before an
// event that ends the call, and such an event before the result of the current attempt. An event
// that ends the call stays unread.
func (k *call) next() (ev event, ok bool) {
	switch {
	case k.takeResponse():
		return event{kind: eventAnswered}, true
	case k.has(eventExpired):
		return event{kind: eventExpired}, true
	case k.has(eventCanceled):
		return event{kind: eventCanceled}, true
	case k.has(eventClosed):
		return event{kind: eventClosed}, true
	}
	if a := k.takeEnded(); a != nil {
		return event{kind: eventPublished, attempt: a}, true
	}
	return event{}, false
}

// nextRound prepares a refused call for its next attempt: the same request under the same id.
// The refused attempt may still be unconfirmed. Its result does not concern the call any more.
func (k *call) nextRound() {
	k.cancelSend() // the response came before a re-send was written
	k.current.Store(nil)
	k.responded, k.refusal = false, nil
	k.lastResult, k.suspected = publish.Confirmed, 0
}

// nextWait returns the wait before the next attempt.
func (k *call) nextWait() time.Duration {
	if k.wait == nil {
		k.wait = xsync.NewBackoff(resendMin, resendMax)
	}
	return max(k.wait.NextBackOff(), time.Millisecond)
}

// send hands a new attempt to the publisher. Without a connection the attempt waits in the
// outbox for the next session.
func (k *call) send() {
	a := &k.first
	if a.call != nil {
		a = &attempt{}
	}
	a.call, a.retry, a.resent = k, k.retry, k.uncertain
	a.suspected, a.alone = k.suspected, k.elsewhere > 0
	k.current.Store(a)
	k.route.watch.want()
	k.route.outbox.Put(a)
}

// cancelSend cancels an unwritten attempt and reports success.
func (k *call) cancelSend() bool {
	a := k.current.Load()
	if a == nil || !a.transition(stageQueued, stageCanceled) {
		return false
	}
	k.route.outbox.NoteCanceled()
	return true
}

// budget returns the time left until the deadline.
func (k *call) budget(now time.Time) time.Duration { return max(k.deadline.Sub(now), 0) }

// outcome returns the outcome of a call ending now, and cancels an unwritten attempt. The result
// of an earlier attempt is in uncertain.
func (k *call) outcome() Outcome {
	a := k.current.Load()
	unsent := a == nil || k.cancelSend() || a.at() == stageUndelivered
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
