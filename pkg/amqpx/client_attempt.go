package amqpx

import (
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

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

	stage atomic.Uint32
	// result is the publish.Result that ended the attempt; publish.Confirmed until then.
	result     atomic.Uint32
	generation atomic.Uint64 // the session that wrote the attempt
	sentAt     atomic.Int64  // time of the write, in ns; only with route.timed
	returned   atomic.Bool   // the broker returned the request
	batched    atomic.Bool   // sent in a batch
	// rejection is the broker's reason for rejecting the request. The publisher sets it before
	// the result.
	rejection error
}

// at returns the stage.
func (a *attempt) at() stage { return stage(a.stage.Load()) }

// transition changes the stage from one value to another and reports success.
func (a *attempt) transition(from, to stage) bool {
	return a.stage.CompareAndSwap(uint32(from), uint32(to))
}

// end reports the result of the attempt to the call. Only the goroutine that changed the stage
// to undelivered or lost calls end.
func (a *attempt) end(f publish.Result) {
	a.result.Store(uint32(f))
	a.call.wakeUp()
}

// publishResult returns the result that ended the attempt, and publish.Confirmed until then.
func (a *attempt) publishResult() publish.Result {
	return publish.Result(a.result.Load()) //nolint:gosec // only end stores it.
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
// answersLost means the loss of the reply queue and its responses. An idempotent call is
// notified so that its caller sends the request again: the request may be gone with the broker
// of the old connection, and the client cannot find out. Any other call keeps waiting for its
// response, unless answersLost is true.
func (a *attempt) sessionReplaced(generation uint64, answersLost bool) {
	if a.generation.Load() < generation && (answersLost || a.call.req.Idempotent) {
		a.loseConfirmed(publish.Lost)
	}
}

// request returns the request as this attempt sends it.
func (a *attempt) request() wire.Request {
	req := a.call.req
	req.Retry, req.Resent = int64(a.retry), a.resent
	return req
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
	a.batched.Store(false) // set by callBatch.Add, also for a batch of one call
	k, req := a.call, a.request()
	msg = req.Publishing(k.route.replyTo, k.budget(time.Now()), k.route.persistent)
	msg.UserId = k.route.user.get()
	return k.route.queue, true, msg
}

// OnResult implements publish.Outbound. The confirm of a returned message, which follows the
// return at once, ends the attempt.
func (a *attempt) OnResult(f publish.Result) {
	route := a.call.route
	if a.returned.Load() {
		f = publish.Returned
	}
	if f == publish.Confirmed {
		a.transition(stageWritten, stageConfirmed)
		if route.queueGate.isShut.Load() && !a.batched.Load() {
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
	a.rejection = cause
	a.OnResult(publish.Rejected)
}

// Suspicion returns the number of channels that ended while the request was unconfirmed. A
// publisher uses it to find the message that ends channels.
func (a *attempt) Suspicion() int { return int(a.suspected) }
