package amqpx

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// job is one request on its way through a server, or the message that a batch of them
// came in (parcel.go). One goroutine at a time owns it.
type job struct {
	from     *consumer
	queue    string         // where it is given back to
	delivery *amqp.Delivery // it came in
	arrived  time.Time
	place    int           // of the worker that has it in hand
	in       *incoming     // nil until it was decoded
	method   *serverMethod // nil if it is unknown
	failed   *Error        // why it is refused, if decoding found so
	parcel   *parcel       // of a request that came in a batch, else nil
	answer   answer        // that it is answered with
	whole    bool          // it stands for a batch

	refused bool  // its refusal is sent when its message is acknowledged, and ends it
	left    bool  // it counts no more for its parcel
	turn    *turn // of a request that waits for a worker again; the job is nothing else then
	invoked *invocation

	// Of the message, see onMessage: what is to be done when it is acknowledged.
	refusals []*answer // to be sent then
	moves    int       // counted copies that are on their way, see awaitMoves
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

// settled acknowledges a request whose answer the broker has. In another session
// than its own there is nothing to acknowledge: the broker hands it out again.
func (j *job) settled() {
	if j.parcel != nil {
		j.leave(true)
		if !j.refused {
			j.over()
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
		j.parcel.giveBack()
		j.leave(true)
		j.over()
		return
	}
	j.disposition = disposeRequeue
	j.dispose()
}

// drop ends a message that was not acknowledged, and with it what waited for that.
func (j *job) drop() {
	for _, refusal := range j.refusals {
		refusal.job.over()
	}
	if !j.refused {
		j.over()
	}
}

// over ends a job: nothing more is done about it here.
func (j *job) over() {
	if j.parcel != nil {
		j.leave(false)
	}
	s := j.from.server
	for range j.moves {
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

// comesAgain reports whether the broker hands the job's request out again anyway:
// its session has ended, and its queue was not deleted.
func (j *job) comesAgain() bool {
	return j.from.isOver() && !j.from.queueIsGone()
}

// refuseLater has a refusal sent when the job's message is acknowledged, and settles
// the job, which belongs to the refusal then.
func (j *job) refuseLater(refusal *answer) {
	j.refused = true
	p, patience := j.parcel, refusalPatience(j)
	j.onMessage(func(m *job) { m.refusals = append(m.refusals, refusal) })
	j.settled()
	if p != nil && patience > 0 {
		p.bound(refusal, patience)
	}
}

// moving notes that a counted copy of the request is on its way.
func (j *job) moving() {
	j.from.server.moves.add(1)
	j.onMessage(func(m *job) { m.moves++ })
}

// notMoving notes that there is no counted copy after all, as the broker did not take any.
func (j *job) notMoving() {
	moves := 0
	j.onMessage(func(m *job) { moves, m.moves = min(m.moves, 1), max(m.moves-1, 0) })
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

// needsSync reports whether something depends on the broker having processed the
// acknowledgement, which it does not confirm.
func (j *job) needsSync() bool { return j.moves > 0 || len(j.refusals) > 0 }
