package amqpx

import (
	"errors"
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

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
				s.fail(errLinkEnded)
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
func reject(out outgoing, cause error) {
	if r, ok := out.(rejectable); ok {
		r.reject(cause)
	} else {
		out.settle(fateLost)
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
func (p *publisher) joinSuspects(out outgoing) bool {
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
		p.inBursts(n, func(i int) { p.publishOne(group[i], n == 1) })
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
		u.out.settle(fateLost)
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
		u.out.settle(fateSuspect)
	}
}
