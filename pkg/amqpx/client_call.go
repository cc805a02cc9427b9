package amqpx

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

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
	eventResponse  eventKind = iota // a response has arrived
	eventExpired                    // the deadline has passed
	eventCanceled                   // the context has ended
	eventClosed                     // the client is closed
	eventConfirmed                  // the broker has confirmed a one-way request
	eventPublished                  // the current attempt ended with a publish result
	eventAttempt                    // the next attempt is due
	eventFull                       // the request was nacked, and the queue is at its bound
)

// route has the settings and the state shared by all calls of a client.
type route struct {
	queue      string // the request queue
	requests   atomic.Pointer[requestRoute]
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
	batch      *batchTarget   // nil without batches
	shards     []*clientShard // nil if there is a single shard, which is queue and batch
	turn       atomic.Uint32  // shard of the next message without a key
	// idle has calls that later calls reuse, with their channels and the memory of their bodies.
	idle sync.Pool
}

// call is a pending call, from its start until the call is settled. Each send of the request is
// an attempt. The goroutine inside Client.Call owns the call, and no other goroutine starts
// attempts; the session's goroutines notify the owner. A hundred thousand futures may wait at
// once, so a call has only what a waiting future needs: callProgress has the rest. Fields are
// ordered, and some counters are short, so that a call fits in 240 bytes.
type call struct {
	req      callRequest
	route    *route
	deadline time.Time
	future   *Future // of Client.Go; nil when a goroutine waits for the call
	// callProgress is nil for a future without a goroutine.
	*callProgress

	sent atomic.Int32 // number of written attempts
	// notified has a bit for each eventKind up to eventConfirmed that happened. A response's bit
	// is cleared when the response is read; the other events end the call, so their bits stay.
	notified atomic.Uint32
	// current is the attempt whose result the call waits for; nil before the first attempt, and
	// between two attempts. A late result of any other attempt has no effect on the call.
	current atomic.Pointer[attempt]
	first   attempt // the first attempt, here to save its allocation

	// The pending table's lock guards the fields up to shared; response may be read after
	// eventResponse. retry is the number of refusals after which the request was sent again:
	// requests carry the number and responses echo it, so that a second copy of an earlier
	// refusal is not mistaken for the response to the retry.
	response         *wire.Response // nil until a future has a response
	sameBucket       *call          // the next call in the bucket of the table
	prevDue, nextDue *call
	watcher          *ctxWatcher // watcher of a future's context
	watcherIndex     int32
	retry            int32
	answered         bool // a response to the present round has arrived
	settled          bool // removed from the table because of its result; may be read after eventResponse
	// shared is true if a goroutine has found the call in the table and may use it later, without
	// the lock. It does not change after the removal from the table.
	shared bool

	responded bool // a response was read: response does not change any more
	// unknownBefore is the count of responses to unknown calls when the call started, modulo 1<<32.
	unknownBefore uint32
}

// callProgress is the part of a call that its goroutine needs.
type callProgress struct {
	// wake has a token when the goroutine of the call must look at notified and at the current
	// attempt. Senders never block: if there is a token already, another is not needed.
	wake       chan struct{}
	woken      bool           // the goroutine of the call has read a token of wake
	uncertain  bool           // an earlier attempt may have arrived
	lastResult publish.Result // publish result of the last attempt since the last refusal
	suspected  uint16         // channels that ended while an attempt was unconfirmed, since the last refusal
	elsewhere  int32          // number of refusals as unimplemented
	refusers   []string       // known ids of the servers that refused as unimplemented
	refusal    *Error         // the server's refusal, if it ended the last attempt
	probes     uint64         // epoch of the queue gate in which the call may probe; 0: it may not
	wait       *xsync.Backoff // between attempts; nil before the first wait
}

// maxReusedBody bounds the memory of a body that is kept for reuse, in bytes.
const maxReusedBody = 4 << 10

// replyTo returns the address for the response; "" for a one-way request.
func (k *call) replyTo() string {
	if k.req.isOneWay() {
		return ""
	}
	return k.route.replyTo
}

// isPersistent reports whether the request survives a restart of the broker, in a durable queue.
// Nobody would notice the loss of a confirmed one-way request.
func (k *call) isPersistent() bool { return k.route.persistent || k.req.isOneWay() }

// waitingCall is a call for a waiting goroutine, with everything that the call refers to in one
// allocation.
type waitingCall struct {
	call
	progress callProgress
	options  requestOptions
	response wire.Response
}

// makeCall returns a call for a waiting goroutine, or for a future, which needs no channel.
func (r *route) makeCall(f *Future) *call {
	if f != nil {
		return &call{route: r, future: f}
	}
	k, _ := r.idle.Get().(*call)
	if k == nil {
		w := &waitingCall{}
		k = &w.call
		k.callProgress, k.req.more, k.response = &w.progress, &w.options, &w.response
		k.wake = make(chan struct{}, 1)
	}
	k.route = r
	return k
}

// release lets a later call reuse a call that was settled by a result, or by the confirm of a one-way
// request, unless another goroutine may still use the call. The publisher does not use a confirmed
// attempt any more. The reader of responses, and the publisher of a one-way request, wake the call
// once, and do not use it afterwards: this token must have been read. All other goroutines find a
// call in the pending table, and then the call is shared.
func (k *call) release() {
	if !k.settled && !k.has(eventConfirmed) || k.shared || k.current.Load() != &k.first || k.first.at() != stageConfirmed {
		return
	}
	if !k.woken {
		select {
		case <-k.wake:
		default:
			return // the reader has not put the token yet
		}
	}
	r, body := k.route, k.req.body
	if cap(body) > maxReusedBody {
		body = nil
	}
	*k.callProgress, *k.req.more, *k.response = callProgress{wake: k.wake}, requestOptions{}, wire.Response{}
	*k = call{callProgress: k.callProgress, response: k.response, req: callRequest{body: body, more: k.req.more}}
	r.idle.Put(k)
}

// store keeps a response for the reader of eventResponse. The caller holds the lock of the
// pending table.
func (k *call) store(a *wire.Response) {
	if k.response == nil {
		k.response = new(wire.Response)
	}
	*k.response = *a
	k.response.ID = nil // the id would keep the whole batch in memory
	if k.req.info() != nil {
		k.response.Server = bytes.Clone(a.Server)
	} else {
		k.response.Server = nil
	}
}

// notify records an event up to eventConfirmed and wakes the call. It never blocks.
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

// has reports whether an event up to eventConfirmed happened and was not read.
func (k *call) has(kind eventKind) bool { return k.notified.Load()&(1<<kind) != 0 }

// takeResponse reports whether there is an unread response, which the caller must read.
func (k *call) takeResponse() bool {
	return k.has(eventResponse) && k.notified.And(^uint32(1<<eventResponse))&(1<<eventResponse) != 0
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

// next returns the next unread event of the call, if there is one. A response, or the confirm of a
// one-way request, comes before an event that ends the call, and such an event before the result of the current attempt. An event
// that ends the call stays unread.
func (k *call) next() (ev event, ok bool) {
	switch {
	case k.takeResponse():
		return event{kind: eventResponse}, true
	case k.has(eventConfirmed):
		return event{kind: eventConfirmed}, true
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
	a.call, a.retry = k, k.retry
	if s := k.callProgress; s != nil { // nil before the first attempt of a future
		a.resent, a.suspected, a.alone = s.uncertain, s.suspected, s.elsewhere > 0
	}
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

// budget returns the time left for the request in queues and servers: until the call's deadline,
// or until a one-way request expires; wire.NoBudget means without limit.
func (k *call) budget(now time.Time) time.Duration {
	until := k.deadline
	if k.req.isOneWay() {
		if until = k.req.expires(); until.IsZero() {
			return wire.NoBudget
		}
	}
	return max(until.Sub(now), 0)
}

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

// stage is the progress of an attempt. Each transition is a single compare-and-swap, so exactly
// one goroutine ends an attempt:
//
//	queued    → written      the publisher begins to send the request
//	queued    → canceled     the caller cancels the call, or a response came
//	written   → confirmed    confirm
//	written   → undelivered  return, not sent, rejected, or a nack by a quorum queue
//	written   → lost         any other nack, or loss of the connection
//	confirmed → lost         the connection was replaced, the queue is gone, or has no consumer
type stage uint32

const (
	stageQueued      stage = iota // handed to the publisher, not written
	stageCanceled                 // canceled before the write: it never runs
	stageWritten                  // written, not confirmed yet
	stageConfirmed                // confirmed; the response is outstanding
	stageUndelivered              // ended, and certainly reached no server
	stageLost                     // ended, and may have reached a server
)

// attempt is a single send of a call's request: the message for the publisher, which may hold it
// longer than the call waits for its result. Each attempt is sent once, so a confirm, nack or
// return cannot be mistaken for that of another attempt.
type attempt struct {
	call      *call
	retry     int32  // call.retry at the time of the send
	suspected uint16 // number of channels that ended while an earlier attempt was unconfirmed
	resent    bool   // an earlier attempt may have arrived
	alone     bool   // not to be sent in a batch

	stage      atomic.Uint32
	marks      atomic.Uint32 // markReturned, markBatched, and the publish.Result that ended the attempt
	generation atomic.Uint64 // the session that wrote the attempt
	sentAt     atomic.Int64  // time of the write, in ns; only with route.timed
	// rejection is the broker's reason for rejecting the request; nil if there is none. The
	// publisher sets it before the result.
	rejection *error
}

// The marks of an attempt beside its result, which is in the bits of markResult and is
// publish.Confirmed, the zero value, until the attempt has ended.
const (
	markResult   = 0xff
	markReturned = 1 << 8  // the broker returned the request
	markBatched  = 1 << 9  // sent in a batch
	markAtRisk   = 1 << 10 // written before a check found the queue away or without a consumer
	// markShard is the place of the attempt's shard, which is counted from 1 and 0 until the shard
	// is chosen.
	markShard  = 16
	shardMarks = 0xff << markShard
)

// isReturned reports whether the broker returned the request.
func (a *attempt) isReturned() bool { return a.marks.Load()&markReturned != 0 }

// isBatched reports whether the request was sent in a batch.
func (a *attempt) isBatched() bool { return a.marks.Load()&markBatched != 0 }

// isAtRisk reports whether a check has found the queue away or without a consumer since the request
// was written.
func (a *attempt) isAtRisk() bool { return a.marks.Load()&markAtRisk != 0 }

// at returns the stage.
func (a *attempt) at() stage { return stage(a.stage.Load()) }

// transition changes the stage from one value to another and reports success.
func (a *attempt) transition(from, to stage) bool {
	return a.stage.CompareAndSwap(uint32(from), uint32(to))
}

// end reports the result of the attempt to the call. Only the goroutine that changed the stage
// to undelivered or lost calls end.
func (a *attempt) end(f publish.Result) {
	a.marks.Or(uint32(f))
	a.call.wakeUp()
}

// publishResult returns the result that ended the attempt, and publish.Confirmed until then.
func (a *attempt) publishResult() publish.Result {
	return publish.Result(a.marks.Load() & markResult)
}

// ended reports whether the attempt has ended with a result.
func (a *attempt) ended() bool { return a.publishResult() != publish.Confirmed }

// loseConfirmed ends an attempt whose request the broker has confirmed, because no response is
// to be expected.
func (a *attempt) loseConfirmed(f publish.Result) {
	if a.transition(stageConfirmed, stageLost) {
		a.end(f)
	}
}

// sessionReplaced ends a confirmed attempt when the session that wrote it was replaced.
// responsesLost means the loss of the reply queue and its responses. An idempotent call is
// notified so that its caller sends the request again: the request may be gone with the broker
// of the old connection, and the client cannot find out. Any other call keeps waiting for its
// response, unless responsesLost is true.
func (a *attempt) sessionReplaced(generation uint64, responsesLost bool) {
	if a.generation.Load() < generation && (responsesLost || a.call.req.idempotent) {
		a.loseConfirmed(publish.Lost)
	}
}

// request returns the request as this attempt sends it.
func (a *attempt) request() wire.Request { return a.marked(a.call.req.onWire()) }

// marked returns req with the fields that differ from one attempt to the next.
func (a *attempt) marked(req wire.Request) wire.Request {
	req.Retry, req.Resent = int64(a.retry), a.resent
	return req
}

// appendTo appends the record of the request to the body of a batch.
func (a *attempt) appendTo(body []byte, left time.Duration) []byte {
	r := &a.call.req
	if r.isText || r.keyIsID && !r.idempotent { // not a UUID, or the key is in the record too
		req := a.request()
		return req.AppendTo(body, left)
	}
	req := a.marked(r.measured())
	return req.AppendWithID(body, (*[16]byte)(&r.id), left)
}

// Canceled implements publish.Outbound.
func (a *attempt) Canceled() bool { return a.at() == stageCanceled }

// BeginSend implements publish.Outbound.
func (a *attempt) BeginSend(generation uint64) bool {
	a.generation.Store(generation)
	if !a.transition(stageQueued, stageWritten) {
		return false
	}
	a.call.sent.Add(1)
	if a.call.route.timed {
		a.sentAt.Store(time.Now().UnixNano())
	}
	return true
}

// Publishing implements publish.Outbound. Every request is mandatory: without a queue the broker
// returns the request, and the caller learns at once about the missing servers.
func (a *attempt) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	a.marks.And(^uint32(markBatched)) // set by callBatch.Add, also for a batch of one call
	k, req := a.call, a.request()
	msg = req.Publishing(k.replyTo(), k.budget(time.Now()), k.isPersistent())
	msg.UserId = k.route.user.get()
	return a.routingKey(), true, msg
}

// OnResult implements publish.Outbound. The confirm of a returned message, which follows the
// return at once, ends the attempt. A confirmed attempt must not be used after its transition:
// its call may be settled, and used again (call.release).
func (a *attempt) OnResult(f publish.Result) {
	route := a.call.route
	if a.isReturned() {
		f = publish.Returned
	}
	if len(route.shards) > 0 && !a.isBatched() {
		route.shards[a.shard()].published(f)
	}
	if f == publish.Confirmed {
		opens := route.queueGate.isShut.Load() && !a.isBatched()
		if a.call.req.isOneWay() { // before the transition: no other goroutine may end the attempt as lost first
			a.call.notify(eventConfirmed)
		}
		a.transition(stageWritten, stageConfirmed)
		if opens {
			route.queueGate.open()
		}
		return
	}
	after := stageUndelivered
	if mayHaveArrived(f, route.nackProves) {
		after = stageLost
	}
	if a.transition(stageWritten, after) {
		if f == publish.Unsent {
			a.call.sent.Add(-1)
		}
		a.end(f)
	}
}

// mayHaveArrived reports whether a server may have received a request with this publish result.
// nackProves is that of the route.
func mayHaveArrived(f publish.Result, nackProves bool) bool {
	switch f {
	case publish.Lost, publish.Suspect, publish.Unserved:
		return true
	case publish.Nacked:
		return !nackProves
	default: // returned, unsent, rejected
		return false
	}
}

// Reject implements publish.Rejectable: the call fails for good.
func (a *attempt) Reject(cause error) {
	a.rejection = &cause
	a.OnResult(publish.Rejected)
}

// Suspicion returns the number of channels that ended while the request was unconfirmed. A
// publisher uses it to find the message that ends channels.
func (a *attempt) Suspicion() int { return int(a.suspected) }
