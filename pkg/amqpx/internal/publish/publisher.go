package publish

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Result is the result of publishing one message.
type Result uint8

const (
	// Confirmed: the broker took responsibility for the message.
	Confirmed Result = iota
	// Nacked: the broker nacked the message (basic.nack). A consumer may have received
	// the message: when a queue's process ends, the broker nacks all unconfirmed messages of
	// the queue, delivered messages included.
	Nacked
	// Returned: the broker returned the message (basic.return): no queue accepted it.
	Returned
	// Unsent: the message never left this process.
	Unsent
	// Lost: the connection ended before the confirm; the message may have arrived.
	Lost
	// Suspect: the broker ended the channel because of an unconfirmed message, perhaps
	// this one; the message may have arrived.
	Suspect
	// Rejected: the broker refuses the message, and has not accepted it.
	Rejected
	// Unserved: the broker confirmed the message, and no server consumes its queue.
	Unserved
)

// Outbound is a message for a publisher. The publisher calls BeginSend and, if the result is
// true, calls OnResult exactly once.
type Outbound interface {
	// BeginSend is called right before the message is written, with the generation of the
	// session. If the result is false, the publisher skips the message, which is certainly
	// unsent.
	BeginSend(generation uint64) bool
	// Publishing returns the message and the queue to publish to.
	Publishing() (key string, mandatory bool, msg amqp.Publishing)
	// OnResult receives the result of publishing.
	OnResult(f Result)
	// Canceled reports whether BeginSend will return false from now on.
	Canceled() bool
}

const (
	// maxBurst bounds the messages in a write.
	maxBurst = 256
	// confirmWindow bounds the unconfirmed messages.
	confirmWindow = 4096
	// queueConfirmWindow bounds the unconfirmed messages to each of several queues.
	queueConfirmWindow = 1024
	// quietYields is the number of successive yields without a new message after which the
	// publisher writes.
	quietYields = 3
	// returnBuffer bounds the returns waiting between two confirms, and returnsOfQueue further
	// returns for each of several queues: no return is read while a confirm is awaited then, so
	// there is room for all unconfirmed messages in the windows of a queue.
	returnBuffer   = 1024
	returnsOfQueue = 512
)

// publisher writes the messages of one session and reports the result of each. It has two
// goroutines. write owns the channel for publishing, so messages leave in bursts and no caller
// ever blocks in a socket. confirm waits for the confirm of each message, in the order of
// writing. A queue in trouble must not delay the results of messages to others, so with several
// queues there is a goroutine of confirm for each.
type publisher struct {
	s           *transport.Session
	outbox      *Outbox
	unconfirmed chan unconfirmed
	ofQueues    []chan unconfirmed // of the queues of a Spread; nil without
	onReturn    func(amqp.Return)

	// Owned by write.
	on       *publishChannel
	batchers batchers
	suspects []Outbound
	drained  []Outbound // for reuse
}

type unconfirmed struct {
	out     Outbound
	confirm transport.Confirmation
	window  *window // nil for a message outside the windows of batchers
	on      *publishChannel
	size    int // of the body in bytes
	// alone: no other message was unconfirmed at the same time.
	alone bool
	// barrier, if not nil, is closed when all earlier messages have a result; out is nil then.
	barrier chan struct{}
}

// Start publishes the messages in outbox until the session ends. queues is the number of queues of
// the Spread messages; 0: there are none.
func Start(s *transport.Session, outbox *Outbox, queues int, onReturn func(amqp.Return)) {
	p := &publisher{
		s:           s,
		outbox:      outbox,
		unconfirmed: make(chan unconfirmed, confirmWindow),
		onReturn:    onReturn,
		on:          newPublishChannel(s, s.PubCh, queues),
		batchers:    newBatchers(),
	}
	for range queues {
		p.ofQueues = append(p.ofQueues, make(chan unconfirmed, queueConfirmWindow))
	}
	s.Run(p.write)
	s.Run(func() { p.confirm(p.unconfirmed) })
	for _, ch := range p.ofQueues {
		s.Run(func() { p.confirm(ch) })
	}
	outbox.Notify()
}

// write publishes until the session ends. While the broker blocks publishing, write takes no
// message: the caller can cancel a message until BeginSend is called.
func (p *publisher) write() {
	defer func() {
		for _, ch := range append(slices.Clip(p.ofQueues), p.unconfirmed) {
			close(ch)
		}
	}()
	for {
		select {
		case <-p.s.Done:
			p.outbox.PushFront(append(p.suspects, p.batchers.takeWaiting()...))
			return
		case <-p.s.Leave:
			p.leave()
			continue
		case <-p.outbox.Wake:
		case <-p.batchers.slotFreed:
		}
		if p.outbox.IsHeld() {
			continue
		}
		if p.waitUnblocked() && p.reopen() {
			p.writeWaiting()
		}
	}
}

// leaveLimit bounds how long a publisher that is to leave its node holds messages back.
const leaveLimit = time.Second

// leave ends the session for the home node once every written message has a result; the next
// session publishes the rest. If a result does not come in time, the session stays.
func (p *publisher) leave() {
	limit := time.NewTimer(leaveLimit)
	defer limit.Stop()
	for _, ch := range append(slices.Clip(p.ofQueues), p.unconfirmed) {
		settled := make(chan struct{})
		ch <- unconfirmed{barrier: settled}
		select {
		case <-settled:
		case <-p.s.Done:
			return
		case <-limit.C:
			p.outbox.Notify()
			return
		}
	}
	p.s.Fail(transport.ErrReturnHome)
}

// waitUnblocked waits until the broker accepts messages. It returns false if the session
// ended.
func (p *publisher) waitUnblocked() bool {
	for {
		opening := p.s.Flow.Unblocked()
		if opening == nil {
			return !p.s.Ended()
		}
		select {
		case <-opening:
		case <-p.s.Done:
			return false
		}
	}
}

// coalesce lets other goroutines add messages. A sender wakes the publisher ahead of other
// runnable goroutines, so the publisher yields to them as long as new messages arrive. It
// returns at once when no other goroutine is runnable.
func (p *publisher) coalesce() {
	waiting := p.outbox.Len()
	for quiet := 0; quiet < quietYields && waiting < MaxBatchMessages; quiet++ {
		runtime.Gosched()
		if now := p.outbox.Len(); now != waiting {
			waiting, quiet = now, 0
		}
	}
}

// writeWaiting publishes the waiting messages.
func (p *publisher) writeWaiting() {
	p.coalesce()
	taken := p.outbox.Drain(p.drained)
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

// writeCorked calls write for 0 to n-1 and coalesces up to maxBurst messages in a write.
func (p *publisher) writeCorked(n int, write func(i int)) {
	if n == 1 {
		write(0)
		return
	}
	for i := 0; i < n; {
		end := min(i+maxBurst, n)
		p.s.Pub.Cork()
		for ; i < end; i++ {
			write(i)
		}
		p.s.Pub.Uncork()
	}
}

// publishAlone publishes one message, unless the message was canceled.
func (p *publisher) publishAlone(out Outbound) { p.publishOne(out, false) }

// publishOne is publishAlone. If alone is true, no other message is unconfirmed.
func (p *publisher) publishOne(out Outbound, alone bool) {
	if out.BeginSend(p.s.Generation) {
		p.publish(out, nil, alone)
	}
}

// publish writes one message after its BeginSend. A failed publish ends the session: the
// library does not report how much of the message reached the socket.
func (p *publisher) publish(out Outbound, w *window, alone bool) {
	key, mandatory, msg := out.Publishing()
	if err := checkLimits(p.s, &msg); err != nil {
		reject(out, err)
		return
	}
	word, err := p.on.PublishTo(p.s.Exchange, key, mandatory, msg)
	switch {
	case err == nil:
		results := p.unconfirmed
		if w != nil {
			w.unconfirmed.Add(1)
			if w.queue < len(p.ofQueues) {
				results = p.ofQueues[w.queue]
			}
		}
		results <- unconfirmed{out: out, confirm: word, window: w, on: p.on, size: len(msg.Body), alone: alone}
	case errors.Is(err, amqp.ErrClosed):
		// The channel had ended before the first frame of the message was written, or the
		// connection ended before the last, and a broker drops an incomplete message.
		if <-p.on.over; p.on.reason == nil {
			p.s.ChannelClosed(err)
		}
		out.OnResult(Unsent)
	default:
		p.s.Fail(transport.AtStep(transport.StepPublish, "", err))
		out.OnResult(Lost)
	}
}

// confirm reports the results of messages in the order of writing. It ends after write has
// ended and every message has a result: closing the channel completes the remaining confirms.
func (p *publisher) confirm(messages <-chan unconfirmed) {
	for u := range messages {
		if u.barrier != nil {
			close(u.barrier)
			continue
		}
		p.await(u.on, u.confirm)
		switch {
		case u.confirm.Acked():
			if !p.s.Confirmed.Load() {
				p.s.Confirmed.Store(true)
			}
			u.out.OnResult(Confirmed)
		case u.on.IsClosed():
			p.lost(u)
		default:
			u.out.OnResult(Nacked)
		}
		if u.window != nil {
			p.releaseSlot(u.window)
		}
	}
}

// await waits for the confirm of one message and handles every earlier return. A broker sends
// basic.return before the basic.ack of the same message
// (https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed), and package transport
// completes a confirm after amqp091-go has passed every earlier return on, so the return is
// already in the channel when the confirm arrives.
func (p *publisher) await(on *publishChannel, word transport.Confirmation) {
	if len(p.ofQueues) > 0 {
		<-word.Done()
		on.handling.Lock() // a return that another goroutine has taken is handled
		defer on.handling.Unlock()
		for len(on.returns) > 0 {
			r, ok := <-on.returns
			p.returned(on, r, ok)
		}
		return
	}
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

// The broker refuses a message with an exception, which ends the channel and does not identify
// the message. The publisher opens another channel on the same connection and searches for the
// message among the unconfirmed ones: it publishes them again in shrinking groups, with no
// other message unconfirmed, and a message that ends the channel alone is the culprit
// (docs/adr/0014).

// publishChannel is a publisher's channel. It ends with an exception of the broker or with the
// session.
type publishChannel struct {
	transport.Channel

	returns <-chan amqp.Return
	// handling guards returns if there are several goroutines of confirm.
	handling sync.Mutex
	over     chan struct{} // closed when the channel has ended and reason is set
	reason   *amqp.Error   // an exception about a message; nil for any other end
}

// newPublishChannel wraps ch and watches for its end.
func newPublishChannel(s *transport.Session, ch transport.Channel, queues int) *publishChannel {
	on := &publishChannel{
		Channel: ch,
		returns: ch.NotifyReturn(make(chan amqp.Return, returnBuffer+queues*returnsOfQueue)),
		over:    make(chan struct{}),
	}
	ends := ch.NotifyClose(make(chan *amqp.Error, 1))
	s.Run(func() {
		defer close(on.over)
		select {
		case reason := <-ends:
			if transport.IsAboutMessage(reason) {
				on.reason = reason
			}
			switch {
			case s.Survives(reason):
			case reason != nil:
				s.Fail(transport.AtStep(transport.StepPublish, "", reason))
			default:
				s.Fail(transport.ErrConnectionEnded)
			}
		case <-s.Done:
			if reason, ok := errors.AsType[*amqp.Error](s.Cause); ok && transport.IsAboutMessage(reason) {
				on.reason = reason
			}
		}
	})
	return on
}

// Rejectable is an outbound message with a method to receive the reason why it is not, and
// will not be, published. The publisher calls reject instead of OnResult.
type Rejectable interface{ Reject(cause error) }

// reject reports that the broker refuses a message, and so has certainly not accepted it.
func reject(out Outbound, cause error) {
	if r, ok := out.(Rejectable); ok {
		r.Reject(cause)
	} else {
		out.OnResult(Lost)
	}
}

// checkLimits returns the reason why a message cannot be published on the connection, or nil.
// It may remove tracing headers from msg (see transport.FitFrame).
func checkLimits(s *transport.Session, msg *amqp.Publishing) error {
	if limit := int(s.SizeLimit.Load()); limit > 0 && len(msg.Body) > limit {
		return tooLarge(len(msg.Body), limit)
	}
	if len(msg.Headers) > 0 {
		return transport.FitFrame(msg, s.Pub.FrameSize())
	}
	return nil
}

func tooLarge(size, limit int) error {
	return fmt.Errorf("%w: %d bytes, and the broker takes at most %d (max_message_size)", wire.ErrTooLarge, size, limit)
}

// suspected is an outbound message that may be the reason for the end of a channel.
type suspected interface {
	// Suspicion returns the number of channels that ended while the message was unconfirmed.
	Suspicion() int
}

// groupSize returns how many suspects with the same suspicion are published together.
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

// joinSuspects adds out to the suspects if a channel has ended while it was unconfirmed.
func (p *publisher) joinSuspects(out Outbound) bool {
	m, ok := out.(suspected)
	if !ok || m.Suspicion() == 0 {
		return false
	}
	p.suspects = append(p.suspects, out)
	return true
}

// trySuspects publishes the suspects in groups, each without any other unconfirmed message.
func (p *publisher) trySuspects() {
	for len(p.suspects) > 0 && p.barrier() && p.reopen() {
		most := len(p.suspects)
		n := 0
		for n < most {
			m, _ := p.suspects[n].(suspected)
			if most = min(most, groupSize(m.Suspicion())); n < most {
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

// barrier waits until every written message has a result. It returns false if the session
// ended.
func (p *publisher) barrier() bool {
	for _, ch := range append(slices.Clip(p.ofQueues), p.unconfirmed) {
		settled := make(chan struct{})
		ch <- unconfirmed{barrier: settled}
		select {
		case <-settled:
		case <-p.s.Done:
			return false
		}
	}
	return !p.s.Ended()
}

// reopen opens another channel if the channel for publishing has ended. It returns false if
// the session ended.
func (p *publisher) reopen() bool {
	if !p.on.IsClosed() {
		return true
	}
	<-p.on.over
	if p.s.Ended() {
		return false
	}
	ch, err := p.s.Pub.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		p.s.Fail(transport.AtStep(transport.StepPublish, "", err))
		return false
	}
	p.on = newPublishChannel(p.s, ch, len(p.ofQueues))
	return true
}

// lost reports the result of a message that was unconfirmed when its channel ended.
func (p *publisher) lost(u unconfirmed) {
	<-u.on.over
	reason := u.on.reason
	if reason == nil {
		u.out.OnResult(Lost)
		return
	}
	limit, ok := transport.SizeLimitIn(reason)
	if ok {
		p.s.SizeLimit.Store(int64(limit))
	}
	switch {
	case ok && u.size > limit:
		reject(u.out, tooLarge(u.size, limit))
	case u.alone:
		reject(u.out, reason)
	default:
		u.out.OnResult(Suspect)
	}
}
