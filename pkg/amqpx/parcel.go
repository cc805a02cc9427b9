package amqpx

import (
	"errors"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

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
		c.take(*d, s.cfg.queue.Name, held)
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
	s.receivedBatch(len(records))
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
			s.refused(&j.job, CodeInvalidArgument)
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
		p.message.settled()
		return
	}
	p.open = len(jobs)
	s.track.add(len(jobs))
	d.Body = nil
	// At once: a job of another message between them could wait for the moves of those
	// before it (awaitMoves) and keep the worker that those behind it need.
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

// leave counts a job out, once. Settled means that its request is done with.
func (j *job) leave(settled bool) {
	if j.left {
		return
	}
	j.left = true
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
		p.message.settled()
	}
}

// giveBack has the whole batch given back when all its jobs have left.
func (p *parcel) giveBack() {
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
func (p *parcel) bound(refusal *answer, patience time.Duration) {
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
func (p *parcel) withdraw(refusal *answer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.message.refusals, refusal)
	if p.open == 0 || i < 0 {
		return false
	}
	p.message.refusals = slices.Delete(p.message.refusals, i, i+1)
	return true
}
