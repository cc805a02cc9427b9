package amqpx

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// job is one request in a server, or a message with a batch of requests (see parcel). Only one
// goroutine at a time owns a job.
type job struct {
	from     *consumer
	queue    string         // the queue to which the request is returned
	delivery *amqp.Delivery // the message of the request
	arrived  time.Time
	place    int              // the index of its worker
	in       *incoming        // nil until the request is decoded
	method   *serverMethod    // nil if the method is unknown
	failed   *Error           // the decoding error, for which the request is refused
	parcel   *parcel          // the batch of the request; nil without a batch
	answer   outboundResponse // the response to the request
	whole    bool             // the job is the message of a batch

	refused   bool  // the refusal is sent after the acknowledgement, and ends the job
	completed bool  // the parcel does not wait for this job any more
	turn      *turn // the wait of a request for a worker; the job has no other purpose then
	invoked   *invocation

	// The fields below belong to the message of the request (see onMessage) and matter when
	// the message is acknowledged.
	refusals     []*outboundResponse // sent after the acknowledgement
	republishing int                 // copies with a delivery count in progress, see waitRepublished
	// held is how many bytes of the body transport.BytesInHand counts for this job.
	held int64
	// unread is the size of a body that was dropped because transport.BytesInHand had no room.
	unread int64
	// disposition is how the consumer disposes of the message.
	disposition disposition
}

// disposition is the frame with which a consumer disposes of a message.
type disposition uint8

const (
	disposeAck     disposition = iota // basic.ack
	disposeReject                     // basic.nack without requeue: dropped, or dead-lettered by a policy
	disposeRequeue                    // basic.nack with requeue: delivered again, marked as redelivered
)

// incoming is a request in a server. The response depends only on the embedded request: the
// handler gets a Request of its own.
type incoming struct {
	wire.Request // as it was received

	user   string  // the caller, see Server.callerOf
	handed Request // the request that the middleware and the handler get
}

// hand returns the request for the middleware and the handler.
func (in *incoming) hand(queued time.Duration) *Request {
	in.handed = Request{
		Method: in.Method, Body: in.Body, Header: in.Header,
		ContentType: in.ContentType, ContentEncoding: in.ContentEncoding,
		CorrelationID: in.ID, IdempotencyKey: in.Key, Idempotent: in.Idempotent,
		Redelivered: in.Redelivered, User: in.user, Queued: queued, OneWay: in.OneWay,
	}
	return &in.handed
}

// decode decodes the request on the first call and returns the same result afterwards.
func (j *job) decode() (*incoming, *Error) {
	if j.in == nil {
		s := j.from.server
		j.in = &incoming{user: s.callerOf(j.delivery)}
		j.failed = formatRefusal(j.in.Decode(j.delivery, s.cfg.defaultMethod))
		j.method = s.methods[j.in.Method]
		if j.in.TooLarge {
			j.tooLarge()
		}
	}
	return j.in, j.failed
}

// ack acknowledges a request after the broker has confirmed the response. If the session of
// the request has ended, ack only ends the job: the broker delivers the request again.
func (j *job) ack() {
	if j.parcel != nil {
		j.complete(true)
		if !j.refused {
			j.finish()
		}
		return
	}
	j.dispose()
}

// dispose passes the message to the consumer's acknowledge goroutine.
func (j *job) dispose() {
	select {
	case j.from.acks <- j:
		// After the session has ended no goroutine reads acks, but the channel may have had
		// room.
		if j.from.isOver() {
			j.from.dropAcks()
		}
	case <-j.from.done:
		j.drop()
	}
}

// requeue returns the original request to its queue; the broker marks it as redelivered.
func (j *job) requeue() {
	if j.parcel != nil {
		j.parcel.requeueAll()
		j.complete(true)
		j.finish()
		return
	}
	j.disposition = disposeRequeue
	j.dispose()
}

// drop ends a message without an acknowledgement, and the refusals that waited for the
// acknowledgement.
func (j *job) drop() {
	for _, refusal := range j.refusals {
		refusal.job.finish()
	}
	if !j.refused {
		j.finish()
	}
}

// finish ends a job and releases its resources.
func (j *job) finish() {
	if j.parcel != nil {
		j.complete(false)
	}
	s := j.from.server
	for range j.republishing {
		s.moves.Done()
	}
	if j.held > 0 {
		s.cfg.inHand.Release(j.held)
	}
	s.track.Done()
	if j.whole {
		s.parcels.Add(-1)
	}
}

// willBeRedelivered reports whether the broker delivers the job's request again in any case:
// the session has ended, and the queue was not deleted.
func (j *job) willBeRedelivered() bool {
	return j.from.isOver() && !j.from.queueIsGone()
}

// refuseAfterAck acknowledges the job's message and sends the refusal after that. The refusal
// owns the job from then on.
func (j *job) refuseAfterAck(refusal *outboundResponse) {
	j.refused = true
	p, patience := j.parcel, refusalPatience(j)
	j.onMessage(func(m *job) { m.refusals = append(m.refusals, refusal) })
	j.ack()
	if p != nil && patience > 0 {
		p.bound(refusal, patience)
	}
}

// beginRepublish records that a copy with a delivery count is being published.
func (j *job) beginRepublish() {
	j.from.server.moves.Add(1)
	j.onMessage(func(m *job) { m.republishing++ })
}

// endRepublish reverts beginRepublish, because the broker did not take the copy.
func (j *job) endRepublish() {
	moves := 0
	j.onMessage(func(m *job) { moves, m.republishing = min(m.republishing, 1), max(m.republishing-1, 0) })
	for range moves {
		j.from.server.moves.Done()
	}
}

// onMessage calls f with the job of the request's message, which may be a batch.
func (j *job) onMessage(f func(*job)) {
	if j.parcel == nil {
		f(j)
		return
	}
	j.parcel.mu.Lock()
	defer j.parcel.mu.Unlock()
	f(j.parcel.message)
}

// needsAckBarrier reports whether a refusal or a copy depends on the broker having processed
// the acknowledgement, which AMQP does not confirm.
func (j *job) needsAckBarrier() bool { return j.republishing > 0 || len(j.refusals) > 0 }

// parcel is a batch of requests in a server. Each request has its own job; the message of the
// batch is acknowledged when all requests are completed.
type parcel struct {
	message *job

	mu      sync.Mutex
	open    int  // jobs that are not completed
	unknown bool // a job ended and its request must be delivered again, so the whole batch is
	requeue bool // a job requeued its request, so the whole batch is requeued
}

// unpack passes the requests of a batch to the workers. A message in the batch queue that is
// not a batch is handled as a single request.
func (c *consumer) unpack(d *amqp.Delivery) {
	s := c.server
	held := c.claim(d)
	if d.ContentType != wire.ContentTypeRequests {
		c.accept(*d, s.cfg.queue.Name, held)
		return
	}
	p := &parcel{message: &job{from: c, delivery: d, arrived: time.Now(), whole: true, held: held}}
	if len(d.Body) == 0 && c.takeUnreadBatch(p.message) {
		return
	}
	var room [64][]byte
	records, err := wire.AppendRecords(room[:0], d.Body)
	s.parcels.Add(1)
	s.track.Add(1)
	s.recordBatchReceived(len(records))
	jobs := make([]batchedJob, 0, len(records))
	user := s.callerOf(d)
	for _, record := range records {
		jobs = append(jobs, batchedJob{})
		j := &jobs[len(jobs)-1]
		j.job = job{from: c, queue: s.cfg.queue.Name, delivery: d, arrived: p.message.arrived, in: &j.incoming, parcel: p}
		j.failed = formatRefusal(j.in.DecodeRecord(record, d.ReplyTo, s.nameOf))
		j.method = s.methods[j.in.Method]
		j.in.Redelivered = j.in.Redelivered || d.Redelivered
		j.in.user = user
		switch size := len(j.in.Body); {
		case j.in.ID == "" && d.ReplyTo != "":
			// No call would match the response, and a batch of such records would cause
			// responses of many times its size.
			s.recordRefusal(&j.job, CodeInvalidArgument)
			jobs = jobs[:len(jobs)-1]
			err = errNoID
		case size > s.cfg.maxMessageSize && j.failed == nil:
			s.counts.tooLarge.Add(1)
			drop := wire.DroppedBody{Size: uint64(size), Limit: s.cfg.maxMessageSize}
			j.failed = refusal(CodeInvalidArgument, "%s", drop.TooLarge())
		}
	}
	if err != nil || len(records) == 0 {
		s.logs.badBatch.of(s.cfg.logger).Warn("dropped a batch, or calls in it, that cannot be read",
			zap.String("reply_to", d.ReplyTo), zap.Int("dropped", len(records)-len(jobs)), zap.Error(err))
	}
	if len(jobs) == 0 {
		p.message.ack()
		return
	}
	p.open = len(jobs)
	s.track.Add(len(jobs))
	d.Body = nil
	// The jobs are queued without jobs of other messages between them: a job in between could
	// wait for the copies of the jobs before it (waitRepublished), and would occupy the worker
	// which the jobs behind it need.
	wait := make([]*job, 0, len(jobs))
	for i := range jobs {
		if j := &jobs[i].job; !s.shed(j) {
			wait = append(wait, j)
		}
	}
	s.jobs.Put(wait...)
}

// errNoID is why a request in a batch is dropped.
var errNoID = errors.New("a call without an id")

// batchedJob is the job of a request in a batch, with the decoded request.
type batchedJob struct {
	job
	incoming
}

// nameOf returns the name of a method, without an allocation if the server has the method. An
// empty name means the default method.
func (s *Server) nameOf(name []byte) string {
	if len(name) == 0 {
		return s.cfg.defaultMethod
	}
	if m := s.methods[string(name)]; m != nil {
		return m.name
	}
	return string(name)
}

// complete marks the job as completed, once; the last job of a batch disposes of the message.
// settled is false if the request must be delivered again.
func (j *job) complete(settled bool) {
	if j.completed {
		return
	}
	j.completed = true
	p := j.parcel
	p.mu.Lock()
	p.open--
	p.unknown = p.unknown || !settled
	last, unknown, requeue := p.open == 0, p.unknown, p.requeue
	p.mu.Unlock()
	if !last {
		return
	}
	switch {
	case unknown:
		p.message.drop()
	case requeue:
		p.message.requeue()
	default:
		p.message.ack()
	}
}

// requeueAll makes the last job requeue the whole batch.
func (p *parcel) requeueAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requeue = true
}

// minRefusalPatience is the minimum time that the refusal of a request in a batch waits for
// the other requests of the batch.
const minRefusalPatience = 500 * time.Millisecond

// refusalPatience returns how long the refusal of a job waits for the acknowledgement of the
// job's message before the refusal is sent without [DidNotRun]; 0 means without limit. For an
// idempotent call the outcome matters little, because the call may be sent again either way.
// Any other refusal waits for three quarters of the call's remaining time, so that the caller
// still receives the code of the refusal.
func refusalPatience(j *job) time.Duration {
	switch {
	case j.in.Idempotent:
		return minRefusalPatience
	case j.in.Budget == wire.NoBudget:
		return 0
	default:
		left := j.in.Budget - time.Since(j.arrived)
		return max(left-left/4, minRefusalPatience)
	}
}

// bound sends a refusal after patience if its batch is not completed by then. The broker may
// deliver the batch again, so the outcome of the refusal is [MayHaveRun] then.
func (p *parcel) bound(refusal *outboundResponse, patience time.Duration) {
	if p.done() {
		return
	}
	time.AfterFunc(patience, func() {
		if p.withdraw(refusal) {
			refusal.response.Failure.Ran = wire.RanUnknown
			refusal.send()
		}
	})
}

// done reports whether every job of the batch is completed.
func (p *parcel) done() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open == 0
}

// withdraw removes a refusal from the refusals that are sent after the acknowledgement of the
// batch. It returns false if the batch is completed: the acknowledgement sends the refusal.
func (p *parcel) withdraw(refusal *outboundResponse) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.message.refusals, refusal)
	if p.open == 0 || i < 0 {
		return false
	}
	p.message.refusals = slices.Delete(p.message.refusals, i, i+1)
	return true
}

// growingPause returns the pause before attempt tries+1: a random time between half of a bound
// and the bound, which doubles with each attempt from first to most.
func growingPause(first, most time.Duration, tries int) time.Duration {
	bound := most
	if tries < 16 { // with more doublings the bound exceeds every value of most
		bound = min(first<<tries, most)
	}
	return bound/2 + rand.N(bound/2+1) //nolint:gosec // spreads load, guards nothing.
}

// delayed calls functions after a pause, to publish nacked messages again. The functions must
// not block. The timers end with the server. The zero value is ready to use. Safe for
// concurrent use.
type delayed struct {
	mu     sync.Mutex
	timers map[*time.Timer]func()
	closed bool
}

// after calls f after a pause, or when flush is called. After close it does nothing.
func (d *delayed) after(pause time.Duration, f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	if d.timers == nil {
		d.timers = make(map[*time.Timer]func())
	}
	var timer *time.Timer
	timer = time.AfterFunc(pause, func() {
		d.mu.Lock()
		_, waits := d.timers[timer]
		delete(d.timers, timer)
		d.mu.Unlock()
		if waits {
			f()
		}
	})
	d.timers[timer] = f
}

// flush calls all waiting functions at once.
func (d *delayed) flush() {
	for _, f := range d.stop(false) {
		f()
	}
}

// close stops all timers.
func (d *delayed) close() { d.stop(true) }

func (d *delayed) stop(closed bool) []func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = d.closed || closed
	var calls []func()
	for timer, f := range d.timers {
		timer.Stop()
		calls = append(calls, f)
	}
	clear(d.timers)
	return calls
}
