package amqpx

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

// job is one request on its way through a server, or the message that a batch of them
// came in (parcel). One goroutine at a time owns it.
type job struct {
	from     *consumer
	queue    string         // where it is given back to
	delivery *amqp.Delivery // it came in
	arrived  time.Time
	place    int              // of the worker that has it in hand
	in       *incoming        // nil until it was decoded
	method   *serverMethod    // nil if it is unknown
	failed   *Error           // why it is refused, if decoding found so
	parcel   *parcel          // of a request that came in a batch, else nil
	answer   outboundResponse // that it is answered with
	whole    bool             // it stands for a batch

	refused   bool  // its refusal is sent when its message is acknowledged, and ends it
	completed bool  // it counts no more for its parcel
	turn      *turn // of a request that waits for a worker again; the job is nothing else then
	invoked   *invocation

	// Of the message, see onMessage: what is to be done when it is acknowledged.
	refusals     []*outboundResponse // to be sent then
	republishing int                 // counted copies that are on their way, see waitRepublished
	// held is how many bytes of its body are counted, see bytesInHand.
	held int64
	// unread is the size of its body if that was not read for want of room.
	unread int64
	// disposition is what the broker is told of it.
	disposition disposition
}

// disposition is what the broker is told of a message that is done with.
type disposition uint8

const (
	disposeAck     disposition = iota // it is acknowledged
	disposeReject                     // it is rejected: dropped, or dead-lettered by a policy
	disposeRequeue                    // it goes back to its queue, marked as redelivered
)

// decode reads the request.
func (j *job) decode() (*incoming, *Error) {
	if j.in == nil {
		j.in, j.failed = decodeRequest(j.delivery, j.from.server.cfg.defaultMethod)
		j.in.User = j.from.server.callerOf(j.delivery)
		j.method = j.from.server.methods[j.in.Method]
		if j.in.tooLarge {
			j.tooLarge()
		}
	}
	return j.in, j.failed
}

// ack acknowledges a request whose answer the broker has. In another session
// than its own there is nothing to acknowledge: the broker hands it out again.
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

// dispose has the broker told of a message that is done with.
func (j *job) dispose() {
	select {
	case j.from.acks <- j:
		// Nobody reads the acks of a session that ended, and the channel may have had
		// room all the same.
		if j.from.isOver() {
			j.from.dropAcks()
		}
	case <-j.from.done:
		j.drop()
	}
}

// requeue gives a request back to the broker as it is, which marks it as handed out.
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

// drop ends a message that was not acknowledged, and with it what waited for that.
func (j *job) drop() {
	for _, refusal := range j.refusals {
		refusal.job.finish()
	}
	if !j.refused {
		j.finish()
	}
}

// finish ends a job: nothing more is done about it here.
func (j *job) finish() {
	if j.parcel != nil {
		j.complete(false)
	}
	s := j.from.server
	for range j.republishing {
		s.moves.done()
	}
	if j.held > 0 {
		s.cfg.inHand.release(j.held)
	}
	s.track.done()
	if j.whole {
		s.parcels.Add(-1)
	}
}

// willBeRedelivered reports whether the broker hands the job's request out again anyway:
// its session has ended, and its queue was not deleted.
func (j *job) willBeRedelivered() bool {
	return j.from.isOver() && !j.from.queueIsGone()
}

// refuseAfterAck has a refusal sent when the job's message is acknowledged, and settles
// the job, which belongs to the refusal then.
func (j *job) refuseAfterAck(refusal *outboundResponse) {
	j.refused = true
	p, patience := j.parcel, refusalPatience(j)
	j.onMessage(func(m *job) { m.refusals = append(m.refusals, refusal) })
	j.ack()
	if p != nil && patience > 0 {
		p.bound(refusal, patience)
	}
}

// beginRepublish notes that a counted copy of the request is on its way.
func (j *job) beginRepublish() {
	j.from.server.moves.add(1)
	j.onMessage(func(m *job) { m.republishing++ })
}

// endRepublish notes that there is no counted copy after all, as the broker did not take any.
func (j *job) endRepublish() {
	moves := 0
	j.onMessage(func(m *job) { moves, m.republishing = min(m.republishing, 1), max(m.republishing-1, 0) })
	for range moves {
		j.from.server.moves.done()
	}
}

// onMessage calls f with the job that stands for the request's message.
func (j *job) onMessage(f func(*job)) {
	if j.parcel == nil {
		f(j)
		return
	}
	j.parcel.mu.Lock()
	defer j.parcel.mu.Unlock()
	f(j.parcel.message)
}

// needsAckBarrier reports whether something depends on the broker having processed the
// acknowledgement, which it does not confirm.
func (j *job) needsAckBarrier() bool { return j.republishing > 0 || len(j.refusals) > 0 }

// parcel is a batch of requests in a server. Each of them is a job like any other; their
// message is acknowledged when all of them are settled.
type parcel struct {
	message *job

	mu      sync.Mutex
	open    int  // jobs that are neither settled nor over
	unknown bool // one was over and not settled: the message comes again
	requeue bool // one is given back as it is, so all are
}

// unpack hands the calls in a batch to the workers. What is no batch, in its queue, is
// an ordinary request.
func (c *consumer) unpack(d *amqp.Delivery) {
	s := c.server
	held := c.claim(d)
	if d.ContentType != contentTypeCalls {
		c.accept(*d, s.cfg.queue.Name, held)
		return
	}
	p := &parcel{message: &job{from: c, delivery: d, arrived: time.Now(), whole: true, held: held}}
	if len(d.Body) == 0 && c.takeUnreadBatch(p.message) {
		return
	}
	var room [64][]byte
	records, err := appendRecords(room[:0], d.Body)
	s.parcels.Add(1)
	s.track.add(1)
	s.recordBatchReceived(len(records))
	jobs := make([]batchedJob, 0, len(records))
	user := s.callerOf(d)
	for _, record := range records {
		jobs = append(jobs, batchedJob{})
		j := &jobs[len(jobs)-1]
		j.job = job{from: c, queue: s.cfg.queue.Name, delivery: d, arrived: p.message.arrived, in: &j.incoming, parcel: p}
		j.failed = decodeCall(j.in, record, d.ReplyTo, s.nameOf)
		j.method = s.methods[j.in.Method]
		j.in.Redelivered = j.in.Redelivered || d.Redelivered
		j.in.User = user
		switch size := len(j.in.Body); {
		case j.in.CorrelationID == "" && d.ReplyTo != "":
			// Nobody could tell whose response it is, and a batch of such records would be
			// answered with many times its size.
			s.recordRefusal(&j.job, CodeInvalidArgument)
			jobs = jobs[:len(jobs)-1]
			err = errNoID
		case size > s.cfg.maxMessageSize && j.failed == nil:
			s.counts.tooLarge.Add(1)
			drop := droppedBody{size: uint64(size), limit: s.cfg.maxMessageSize}
			j.failed = refusal(CodeInvalidArgument, "%s", drop.tooLarge())
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
	s.track.add(len(jobs))
	d.Body = nil
	// At once: a job of another message between them could wait for the moves of those
	// before it (waitRepublished) and keep the worker that those behind it need.
	wait := make([]*job, 0, len(jobs))
	for i := range jobs {
		if j := &jobs[i].job; !s.shed(j) {
			wait = append(wait, j)
		}
	}
	s.jobs.put(wait...)
}

// errNoID is why a call in a batch is dropped.
var errNoID = errors.New("a call without an id")

// batchedJob is a job that came in a batch, with its request.
type batchedJob struct {
	job
	incoming
}

// nameOf returns a method's name without a copy of its own if the server has it, and the
// default method's for an empty name.
func (s *Server) nameOf(name []byte) string {
	if len(name) == 0 {
		return s.cfg.defaultMethod
	}
	if m := s.methods[string(name)]; m != nil {
		return m.name
	}
	return string(name)
}

// complete counts a job out, once. Settled means that its request is done with.
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

// requeueAll has the whole batch given back when all its jobs have left.
func (p *parcel) requeueAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requeue = true
}

// minRefusalPatience is how long the refusal of a call in a batch waits for the others in
// it, at least.
const minRefusalPatience = 500 * time.Millisecond

// refusalPatience returns how long the refusal of a job waits for the acknowledgement of
// the job's message before it is sent without "did not run"; 0 is without a bound. To an
// idempotent call the difference matters little, as it may be sent again either way. Any
// other one waits for most of its time, so that its caller still gets the refusal's code.
func refusalPatience(j *job) time.Duration {
	switch {
	case j.in.Idempotent:
		return minRefusalPatience
	case j.in.budget == noBudget:
		return 0
	default:
		left := j.in.budget - time.Since(j.arrived)
		return max(left-left/4, minRefusalPatience)
	}
}

// bound sends a refusal after patience, if its batch is not done with by then. As the
// batch may be handed out again, the refusal no longer says that the call did not run.
func (p *parcel) bound(refusal *outboundResponse, patience time.Duration) {
	if p.done() {
		return
	}
	time.AfterFunc(patience, func() {
		if p.withdraw(refusal) {
			refusal.reply.failed.outcome = MayHaveRun
			refusal.send()
		}
	})
}

// done reports whether every job of the batch has left.
func (p *parcel) done() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open == 0
}

// withdraw takes a refusal from those that are sent when the batch is acknowledged. It
// reports false when the batch is done with: then they belong to the acknowledgement.
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

// growingPause returns the pause before try number tries+1: between half and the whole of a
// bound that doubles from first to most.
func growingPause(first, most time.Duration, tries int) time.Duration {
	bound := most
	if tries < 16 { // more doublings are beyond every bound
		bound = min(first<<tries, most)
	}
	return bound/2 + rand.N(bound/2+1) //nolint:gosec // spreads load, guards nothing.
}

// delayed publishes messages that the broker nacked again after a pause. The functions that
// it calls must not block. Its timers end with the server. Its zero value is ready to use.
// Safe for concurrent use.
type delayed struct {
	mu     sync.Mutex
	timers map[*time.Timer]func()
	closed bool
}

// after calls f after a pause, or at once by flush. After close it calls nothing.
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

// flush ends every pause.
func (d *delayed) flush() {
	for _, f := range d.stop(false) {
		f()
	}
}

// close stops every timer.
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
