package amqpx

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// publishResult is what became of one message that was handed to a publisher.
type publishResult uint8

const (
	// resultConfirmed: the broker took responsibility for the message.
	resultConfirmed publishResult = iota
	// resultNacked: the broker nacked the message (basic.nack). That proves nothing: a queue
	// whose process ends has its unconfirmed messages nacked, delivered ones as well.
	resultNacked
	// resultReturned: the broker returned the message, no queue took it.
	resultReturned
	// resultUnsent: it never left this process.
	resultUnsent
	// resultLost: the link ended before the broker's word; it may have arrived.
	resultLost
	// resultSuspect: the broker ended the channel because of a message, and this was one of
	// those that were unconfirmed; it may have arrived.
	resultSuspect
	// resultRejected: the broker does not take the message, and has not.
	resultRejected
	// resultUnserved: the broker confirmed the message, and no server consumes its queue.
	resultUnserved
)

// outbound is a message on its way out. The publisher calls claim and then, if it
// was granted, settle exactly once.
type outbound interface {
	// beginSend is asked right before the message is written, in the generation that
	// writes it; false skips the message, which then was certainly not sent.
	beginSend(generation uint64) bool
	// publishing returns what to publish and the queue it goes to.
	publishing() (key string, mandatory bool, msg amqp.Publishing)
	// onResult tells the message's fate.
	onResult(f publishResult)
	// canceled reports that a claim will not be granted any more.
	canceled() bool
}

const (
	// maxBurst bounds how many messages leave in one write.
	maxBurst = 256
	// confirmWindow bounds the messages that await the broker's word.
	confirmWindow = 4096
	// quietYields is how often the publisher yields without a new message coming before
	// it writes.
	quietYields = 3
	// returnBuffer holds the returns that arrive between two confirms.
	returnBuffer = 1024
)

// publisher writes one session's messages and settles each by the broker's word.
// Two goroutines: write owns the channel for publishing, so that messages leave
// in bursts and no caller ever blocks in a socket; confirm walks the messages in
// the order they were written and waits for the word on each.
type publisher struct {
	s           *session
	outbox      *outbox
	unconfirmed chan unconfirmed
	onReturn    func(amqp.Return)

	// Of the writer.
	on       *publishChannel
	batchers batchers
	suspects []outbound
	drained  []outbound // for reuse
}

type unconfirmed struct {
	out     outbound
	confirm confirmation
	batcher *batcher // nil for a message that is not counted
	on      *publishChannel
	size    int // of the body
	// alone says that nothing else was unconfirmed while the message was.
	alone bool
	// barrier is closed when all messages before are settled; there is no message then.
	barrier chan struct{}
}

// startPublisher starts publishing what is in outbox, until the session ends.
func startPublisher(s *session, outbox *outbox, onReturn func(amqp.Return)) {
	p := &publisher{
		s:           s,
		outbox:      outbox,
		unconfirmed: make(chan unconfirmed, confirmWindow),
		onReturn:    onReturn,
		on:          newPublishChannel(s, s.pubCh),
		batchers:    newBatchers(),
	}
	s.run(p.write)
	s.run(p.confirm)
	outbox.notify()
}

// write publishes until the session ends. While the broker blocks publishing it
// writes nothing, and takes nothing: until a message is claimed its caller can still
// withdraw it.
func (p *publisher) write() {
	defer close(p.unconfirmed)
	for {
		select {
		case <-p.s.done:
			p.outbox.pushFront(append(p.suspects, p.batchers.takeWaiting()...))
			return
		case <-p.outbox.wake:
		case <-p.batchers.slotFreed:
		}
		if p.waitUnblocked() && p.reopen() {
			p.writeWaiting()
		}
	}
}

// waitUnblocked waits until the broker takes messages; false means that the session
// ended.
func (p *publisher) waitUnblocked() bool {
	for {
		opening := p.s.flow.unblocked()
		if opening == nil {
			return !p.s.ended()
		}
		select {
		case <-opening:
		case <-p.s.done:
			return false
		}
	}
}

// coalesce lets those that are about to send join. A sender wakes this goroutine with its
// message ahead of others that are ready to run, so this one yields to them as long as
// their messages come. That waits for nobody: it returns at once when nobody is ready.
func (p *publisher) coalesce() {
	waiting := p.outbox.len()
	for quiet := 0; quiet < quietYields && waiting < batchCalls; quiet++ {
		runtime.Gosched()
		if now := p.outbox.len(); now != waiting {
			waiting, quiet = now, 0
		}
	}
}

// writeWaiting publishes what waits.
func (p *publisher) writeWaiting() {
	p.coalesce()
	taken := p.outbox.drain(p.drained)
	alone := 0
	for _, out := range taken {
		if !p.joinBatch(out) && !p.joinSuspects(out) {
			taken[alone] = out
			alone++
		}
	}
	clear(taken[alone:])
	p.writeCorked(alone, func(i int) { p.publishAlone(taken[i]) })
	clear(taken[:alone])
	p.drained = taken
	p.writeBatches()
	if len(p.suspects) > 0 {
		p.trySuspects()
	}
}

// writeCorked calls write for 0 to n-1 and gathers what these write into few writes.
func (p *publisher) writeCorked(n int, write func(i int)) {
	if n == 1 {
		write(0)
		return
	}
	for i := 0; i < n; {
		end := min(i+maxBurst, n)
		p.s.pub.cork()
		for ; i < end; i++ {
			write(i)
		}
		p.s.pub.uncork()
	}
}

// publishAlone publishes one message, unless it was withdrawn.
func (p *publisher) publishAlone(out outbound) { p.publishOne(out, false) }

// publishOne is publishAlone, of a message beside which nothing is unconfirmed if so told.
func (p *publisher) publishOne(out outbound, alone bool) {
	if out.beginSend(p.s.generation) {
		p.publish(out, nil, alone)
	}
}

// publish writes one message that was claimed. A publish that fails ends the session:
// the library leaves open what reached the socket.
func (p *publisher) publish(out outbound, l *batcher, alone bool) {
	key, mandatory, msg := out.publishing()
	if err := p.s.checkLimits(&msg); err != nil {
		reject(out, err)
		return
	}
	word, err := p.on.publish(key, mandatory, msg)
	switch {
	case err == nil:
		if l != nil {
			l.unconfirmed.Add(1)
		}
		p.unconfirmed <- unconfirmed{out: out, confirm: word, batcher: l, on: p.on, size: len(msg.Body), alone: alone}
	case errors.Is(err, amqp.ErrClosed):
		// The channel was closed before the last frame of the message was written,
		// and a broker drops a message that is not whole.
		if <-p.on.over; p.on.reason == nil {
			p.s.channelClosed(err)
		}
		out.onResult(resultUnsent)
	default:
		p.s.fail(atStep(stepPublish, "", err))
		out.onResult(resultLost)
	}
}

// confirm settles messages in the order they were written. It ends when write has
// ended and every message is settled: closing the channel settles the rest.
func (p *publisher) confirm() {
	for u := range p.unconfirmed {
		if u.barrier != nil {
			close(u.barrier)
			continue
		}
		p.await(u.on, u.confirm)
		switch {
		case u.confirm.Acked():
			if !p.s.confirmed.Load() {
				p.s.confirmed.Store(true)
			}
			u.out.onResult(resultConfirmed)
		case u.on.IsClosed():
			p.lost(u)
		default:
			u.out.onResult(resultNacked)
		}
		if u.batcher != nil {
			p.releaseSlot(u.batcher)
		}
	}
}

// await waits for the broker's word on one message and handles every return that
// came before it. A broker sends basic.return before the basic.ack of the same
// message (https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed),
// and the library hands over a return before it reads on, so after the word the
// return is in the channel already.
func (p *publisher) await(on *publishChannel, word confirmation) {
	for {
		select {
		case r, ok := <-on.returns:
			p.returned(on, r, ok)
		case <-word.Done():
			for len(on.returns) > 0 {
				r, ok := <-on.returns
				p.returned(on, r, ok)
			}
			return
		}
	}
}

func (p *publisher) returned(on *publishChannel, r amqp.Return, ok bool) {
	if !ok {
		on.returns = nil
		return
	}
	p.onReturn(r)
}

// A broker answers a message that it does not take with an exception, which ends the channel
// and does not say which message it was. The publisher opens another channel on the same
// connection, and finds the message among those that were unconfirmed: they are published
// again in groups that shrink, with nothing else unconfirmed, and one that ends the channel
// alone is the culprit (docs/adr/0014).

// publishChannel is a channel that a publisher writes on. It ends with an exception of the
// broker, or with its session.
type publishChannel struct {
	channel

	returns <-chan amqp.Return
	over    chan struct{} // closed when the channel has ended and reason is set
	reason  *amqp.Error   // the exception that was about a message; nil for any other end
}

// newPublishChannel watches a channel of the session.
func newPublishChannel(s *session, ch channel) *publishChannel {
	on := &publishChannel{
		channel: ch,
		returns: ch.NotifyReturn(make(chan amqp.Return, returnBuffer)),
		over:    make(chan struct{}),
	}
	ends := ch.NotifyClose(make(chan *amqp.Error, 1))
	s.run(func() {
		defer close(on.over)
		select {
		case reason := <-ends:
			if isAboutMessage(reason) {
				on.reason = reason
			}
			switch {
			case s.survives(reason):
			case reason != nil:
				s.fail(atStep(stepPublish, "", reason))
			default:
				s.fail(errConnectionEnded)
			}
		case <-s.done:
			if reason, ok := errors.AsType[*amqp.Error](s.cause); ok && isAboutMessage(reason) {
				on.reason = reason
			}
		}
	})
	return on
}

// isAboutMessage reports whether an exception on a channel that only publishes is about one of
// its messages: 406 precondition-failed or 311 content-too-large. Any other, such as a missing
// permission, would meet every message.
func isAboutMessage(reason *amqp.Error) bool {
	return reason != nil && (reason.Code == amqp.PreconditionFailed || reason.Code == amqp.ContentTooLarge)
}

// survives reports whether the session goes on after this end of its publishing channel. A
// channel that also consumes takes the subscription with it.
func (s *session) survives(reason *amqp.Error) bool {
	return s.sub != s.pub && isAboutMessage(reason)
}

// sizeLimitIn returns the largest message that the broker takes, if an exception tells it.
func sizeLimitIn(reason *amqp.Error) (limit int, ok bool) {
	var size int
	_, text, found := strings.Cut(reason.Reason, "message size ")
	if !found {
		return 0, false
	}
	for _, format := range []string{"%d is larger than configured max size %d", "%d is larger than max size %d"} {
		if n, err := fmt.Sscanf(text, format, &size, &limit); err == nil && n == 2 {
			return limit, limit > 0
		}
	}
	return 0, false
}

// rejectable is an outgoing message that learns why it is not, or will not be, published. It
// is called instead of settle.
type rejectable interface{ reject(cause error) }

// reject settles a message that the broker does not take, and so certainly has not.
func reject(out outbound, cause error) {
	if r, ok := out.(rejectable); ok {
		r.reject(cause)
	} else {
		out.onResult(resultLost)
	}
}

// checkLimits returns why a message cannot be published on the connection, or nil.
func (s *session) checkLimits(msg *amqp.Publishing) error {
	if limit := int(s.sizeLimit.Load()); limit > 0 && len(msg.Body) > limit {
		return tooLarge(len(msg.Body), limit)
	}
	if len(msg.Headers) > 0 {
		return fitFrame(msg, s.pub.frameSize())
	}
	return nil
}

func tooLarge(size, limit int) error {
	return fmt.Errorf("%w: %d bytes, and the broker takes at most %d (max_message_size)", ErrTooLarge, size, limit)
}

// suspect is an outgoing message that may be what ended a channel.
type suspect interface {
	// suspicion is how many channels have ended while the message was unconfirmed.
	suspicion() int
}

// groupSize is how many suspects of the same suspicion are published together.
func groupSize(suspicion int) int {
	const first, second = 64, 8
	switch suspicion {
	case 1:
		return first
	case 2:
		return second
	default:
		return 1
	}
}

// joinSuspects takes a message that is a suspect.
func (p *publisher) joinSuspects(out outbound) bool {
	m, ok := out.(suspect)
	if !ok || m.suspicion() == 0 {
		return false
	}
	p.suspects = append(p.suspects, out)
	return true
}

// trySuspects publishes the suspects in groups, each with nothing else unconfirmed.
func (p *publisher) trySuspects() {
	for len(p.suspects) > 0 && p.barrier() && p.reopen() {
		most := len(p.suspects)
		n := 0
		for n < most {
			m, _ := p.suspects[n].(suspect)
			if most = min(most, groupSize(m.suspicion())); n < most {
				n++
			}
		}
		group := p.suspects[:n]
		p.writeCorked(n, func(i int) { p.publishOne(group[i], n == 1) })
		p.suspects = p.suspects[n:]
		if !p.barrier() {
			return
		}
	}
}

// barrier waits until every message that was written is settled; false means that the session
// ended.
func (p *publisher) barrier() bool {
	settled := make(chan struct{})
	p.unconfirmed <- unconfirmed{barrier: settled}
	select {
	case <-settled:
		return !p.s.ended()
	case <-p.s.done:
		return false
	}
}

// reopen opens another channel when the one to publish on has ended; false means that the
// session ended.
func (p *publisher) reopen() bool {
	if !p.on.IsClosed() {
		return true
	}
	<-p.on.over
	if p.s.ended() {
		return false
	}
	ch, err := p.s.pub.channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		p.s.fail(atStep(stepPublish, "", err))
		return false
	}
	p.on = newPublishChannel(p.s, ch)
	return true
}

// lost settles a message that was unconfirmed when its channel ended.
func (p *publisher) lost(u unconfirmed) {
	<-u.on.over
	reason := u.on.reason
	if reason == nil {
		u.out.onResult(resultLost)
		return
	}
	limit, ok := sizeLimitIn(reason)
	if ok {
		p.s.sizeLimit.Store(int64(limit))
	}
	switch {
	case ok && u.size > limit:
		reject(u.out, tooLarge(u.size, limit))
	case u.alone:
		reject(u.out, reason)
	default:
		u.out.onResult(resultSuspect)
	}
}
