package amqpx

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// session is one generation of the connections of a client or server, with the channels and
// every goroutine that reads or writes them. It is opened, fails and is closed as a whole, and
// no part of a session is ever replaced, except the channel for publishing (see
// publishChannel). The next session is opened after the last one has closed and its goroutines
// have ended.
//
// Publishing and consuming have separate connections, because a broker that blocks publishing
// stops reading from the connection, and acknowledgements must still flow
// (https://www.rabbitmq.com/docs/alarms). Direct reply-to forces one connection for both
// purposes.
type session struct {
	generation uint64
	start      time.Time
	target     brokerTarget
	pub, sub   brokerConn // equal if there is one connection for both
	pubCh      channel
	subCh      channel
	probeCh    channel // on the publishing connection
	flow       flow
	// sizeLimit is the broker's largest body in bytes, known after the first refusal; else 0.
	sizeLimit atomic.Int64
	replyTo   string // the reply queue of a client, else ""
	// answered is set when a response arrives, confirmed when a confirm arrives; the reader of
	// a flag resets it.
	answered, confirmed atomic.Bool
	onReady             func()                 // called once the session counts as ready; may be nil
	consumed            atomic.Pointer[string] // the queue of the consumer; nil until known

	done  chan struct{} // closed when the session failed or has to end
	once  sync.Once
	cause error // the reason, set before done is closed; nil for an end that this process asked for
	wg    sync.WaitGroup
}

// errConnectionEnded is the end of a connection for which the library kept no reason.
var errConnectionEnded error = &kindError{kind: FaultConnectionLost, cause: errors.New("it ended without a reason")}

// openSession dials and opens the channels. After an error nothing stays open.
func openSession(ctx context.Context, cfg *connectionConfig, target brokerTarget) (_ *session, err error) {
	s := &session{start: time.Now(), target: target, done: make(chan struct{})}
	defer func() {
		if err != nil {
			s.fail(err)
			s.close()
		}
	}()
	name := cfg.name + " " + cfg.role
	if cfg.shared {
		s.pub, err = cfg.dialer.dial(ctx, target.url, name)
		s.sub = s.pub
	} else {
		if s.pub, err = cfg.dialer.dial(ctx, target.url, name+" publish"); err == nil {
			s.sub, err = cfg.dialer.dial(ctx, target.url, name+" consume")
		}
	}
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, s.cut)
	defer stop()
	if err := s.openChannels(cfg.shared); err != nil {
		return nil, atStep(stepChannel, "", errors.Join(ctx.Err(), err))
	}
	return s, nil
}

// openChannels opens a channel for publishing, with confirms, a channel for consuming, and a
// channel for probes on the publishing connection. A probe on the publishing channel could
// come between the frames of a message, which would end the connection.
func (s *session) openChannels(shared bool) (err error) {
	defer func() { err = atStep(stepChannel, "", err) }()
	if s.pubCh, err = s.pub.channel(); err != nil {
		return err
	}
	if err = s.pubCh.Confirm(false); err != nil {
		return err
	}
	if s.probeCh, err = s.pub.channel(); err != nil {
		return err
	}
	s.subCh = s.pubCh
	if !shared {
		s.subCh, err = s.sub.channel()
	}
	return err
}

// watch starts goroutines to watch for every end of the session, and for blocking by the
// broker. It is called before the session is used, so no event is missed.
func (s *session) watch(onBlocked func(amqp.Blocking)) {
	ends := []<-chan *amqp.Error{s.pub.closed(), s.pubCh.NotifyClose(make(chan *amqp.Error, 1))}
	if s.sub != s.pub {
		ends = append(ends, s.sub.closed(), s.subCh.NotifyClose(make(chan *amqp.Error, 1)))
	}
	for i, end := range ends {
		s.run(func() {
			select {
			case reason := <-end:
				if i == 1 && s.survives(reason) {
					return // the publisher opens another channel
				}
				// An unrequested close is a failure, with or without a reason.
				s.connectionEnded(i, reason)
			case <-s.done:
			}
		})
	}
	blockings := s.pub.blockings()
	cancels := s.subCh.NotifyCancel(make(chan string, maxConsumers))
	s.run(func() {
		for {
			select {
			case b, ok := <-blockings:
				if !ok {
					blockings = nil
					continue
				}
				s.flow.set(b.Active)
				onBlocked(b)
			case tag, ok := <-cancels:
				if ok {
					s.fail(s.atConsume(&consumerCanceledError{tag}))
				}
				cancels = nil
			case <-s.done:
				return
			}
		}
	})
}

// maxConsumers is the number of consumers of a session on one channel, and the size of the
// buffer for their cancellations. A cancellation without room in the buffer would block
// amqp091-go's reader, and so the end of the session, for 5 s.
const maxConsumers = 3

// errConsumerCanceled means that the broker canceled the consumer, for example because its
// queue was deleted (https://www.rabbitmq.com/docs/consumer-cancel).
var errConsumerCanceled error = &kindError{kind: FaultConsumerCanceled}

// connectionEnded ends the session because one of its connections ended or, if i is odd, one
// of its channels.
func (s *session) connectionEnded(i int, reason *amqp.Error) {
	switch {
	case reason == nil:
		s.fail(errConnectionEnded)
	case i == 1 && s.sub != s.pub:
		s.fail(atStep(stepPublish, "", reason))
	case i%2 == 1:
		s.fail(s.atConsume(reason))
	default:
		s.fail(reason)
	}
}

// atConsume marks err as an error of the consumer.
func (s *session) atConsume(err error) error {
	if queue := s.consumed.Load(); queue != nil {
		return atStep(stepConsume, *queue, err)
	}
	return err
}

// consumerCanceledError is errConsumerCanceled with the tag of the consumer.
type consumerCanceledError struct{ tag string }

func (c *consumerCanceledError) Error() string { return c.Unwrap().Error() }
func (c *consumerCanceledError) Unwrap() error { return errConsumerCanceled }

// consumerEnded is called when deliveries end and this process did not cancel the consumer. If
// the channel has ended too, its watcher knows a better reason.
func (s *session) consumerEnded(tag string) {
	if !s.subCh.IsClosed() {
		s.fail(s.atConsume(&consumerCanceledError{tag}))
	}
}

// canceled reports whether the session ended because the broker canceled the consumer with
// this tag. It may be called only after the end of the session.
func (s *session) canceled(tag string) bool {
	c, ok := errors.AsType[*consumerCanceledError](s.cause)
	return ok && c.tag == tag
}

// run starts f as a goroutine of the session; f must return when done is closed. If code of
// the application, such as an observer, ends the goroutine with runtime.Goexit, the session
// ends too.
func (s *session) run(f func()) {
	s.wg.Go(func() {
		returned := false
		defer func() {
			if !returned {
				s.fail(errGoroutineEnded)
			}
		}()
		f()
		returned = true
	})
}

// inGoroutine calls f, which may wait for the broker without end, in a goroutine of the
// session. The goroutine ends at the latest when the session cuts its connections.
func (s *session) inGoroutine(f func() error) <-chan error {
	done := make(chan error, 1)
	s.run(func() { done <- f() })
	return done
}

// errGoroutineEnded ends a session in which a goroutine ended without returning.
var errGoroutineEnded error = &kindError{kind: FaultLocal, cause: errors.New("a goroutine of the link was ended")}

// fail ends the session; the first call sets the cause.
func (s *session) fail(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.done)
	})
}

// closedReasonWait bounds the wait for the reason of a closed channel.
const closedReasonWait = time.Second

// channelClosed ends the session after a call found its channel closed. The watcher of the
// channel is about to learn the reason, so its cause takes precedence.
func (s *session) channelClosed(err error) {
	timer := time.NewTimer(closedReasonWait)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
		s.fail(err)
	}
}

// ended reports whether the session failed or was closed.
func (s *session) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// close ends the session and returns when its goroutines have ended. The connections of a
// failed session are cut: waiting for a dead peer would only delay the next attempt.
func (s *session) close() {
	s.fail(nil)
	if underMaintenance(s.cause) {
		s.awaitBroker(maintenanceWait)
	}
	var closers sync.WaitGroup
	for i, l := range []brokerConn{s.pub, s.sub} {
		if l == nil || i == 1 && s.sub == s.pub {
			continue
		}
		closers.Go(func() {
			if s.cause != nil {
				l.cut()
			}
			l.close()
		})
	}
	closers.Wait()
	s.wg.Wait()
	if s.sub != nil {
		s.sub.abandon()
	}
}

// maintenanceWait bounds the time a session gives a node under maintenance to close the
// second connection.
const maintenanceWait = time.Second

// underMaintenance reports whether a connection ended because its node is drained for
// maintenance. RabbitMQ 3 lists the connections of the node, closes them in turn, and the
// drain fails if a listed connection has ended meanwhile (`rabbitmq-upgrade drain`: noproc).
func underMaintenance(cause error) bool {
	closed, ok := errors.AsType[*amqp.Error](cause)
	return ok && closed.Code == amqp.ConnectionForced && strings.Contains(closed.Reason, "maintenance mode")
}

// awaitBroker waits until the broker has closed every connection, at most for the duration
// most.
func (s *session) awaitBroker(most time.Duration) {
	limit := time.NewTimer(most)
	defer limit.Stop()
	for _, l := range []brokerConn{s.pub, s.sub} {
		if l == nil {
			continue
		}
		select {
		case <-l.closed(): //nolint:errcheck // the reason is known.
		case <-limit.C:
			return
		}
	}
}

// cut closes the sockets, which makes every blocked call return.
func (s *session) cut() {
	s.pub.cut()
	s.sub.cut()
}

// flow is closed while the broker blocks publishing. Its zero value is open.
type flow struct {
	mu      sync.Mutex
	blocked chan struct{} // closed when the flow opens; nil while open
}

func (g *flow) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case shut && g.blocked == nil:
		g.blocked = make(chan struct{})
	case !shut && g.blocked != nil:
		close(g.blocked)
		g.blocked = nil
	}
}

// unblocked returns nil while the flow is open, else a channel that is closed when the flow
// opens.
func (g *flow) unblocked() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.blocked
}

// errUnresponsive means that the broker does not answer AMQP methods, though it may still send
// heartbeats.
var errUnresponsive error = &kindError{kind: FaultUnresponsive}

// slowPeriods bounds how long a publishing connection counts as slow, in multiples of the time
// after which a connection without an answer counts as dead.
const slowPeriods = 6

// probe sends the broker an AMQP method on every connection, twice in each heartbeat interval,
// and ends the session when no answer comes within one and a half intervals. AMQP's heartbeats
// tell a side whether the peer's data arrives, not whether its own data does. If the data of
// this process is lost, RabbitMQ is the side to notice, after two to three intervals. A broker
// that blocks publishing does not read, so an answer is not required then.
//
// RabbitMQ also stops reading from a connection that publishes faster than a queue takes
// messages, and sends no notice: a quorum queue without a majority takes none. So a separate
// publishing connection counts as slow, not as dead, while heartbeats arrive on it; the probe
// of the consuming connection proves that the broker still answers.
func (s *session) probe(heartbeat time.Duration) {
	channels := []channel{s.probeCh}
	if s.sub != s.pub {
		channels = append(channels, s.subCh)
	}
	for _, ch := range channels {
		s.run(func() {
			next := time.NewTicker(heartbeat / 2)
			defer next.Stop()
			for {
				select {
				case <-next.C:
				case <-s.done:
					return
				}
				if !s.respondsWithin(ch, heartbeat+heartbeat/2) {
					s.fail(errUnresponsive)
					return
				}
			}
		})
	}
}

// respondsWithin reports whether the broker answers on ch in time, or is excused from
// answering.
func (s *session) respondsWithin(ch channel, within time.Duration) bool {
	if ch == s.probeCh && s.flow.unblocked() != nil {
		return true
	}
	answered := make(chan struct{})
	s.run(func() { // the end of the session cuts the sockets and so ends this goroutine
		_ = ch.barrier() // an error ends the channel, which has a watcher
		close(answered)
	})
	heard := s.pub.received()
	limit := time.NewTimer(within)
	defer limit.Stop()
	for period := 1; ; period++ {
		select {
		case <-answered:
			return true
		case <-s.done:
			return true
		case <-limit.C:
		}
		if ch == s.probeCh && s.flow.unblocked() != nil {
			select { // the broker stopped reading before it could answer
			case <-answered:
			case <-s.done:
			}
			return true
		}
		before := heard
		if heard = s.pub.received(); ch != s.probeCh || s.sub == s.pub || heard == before || period == slowPeriods {
			return false
		}
		limit.Reset(within)
	}
}

// survives reports whether the session continues after this end of its publishing channel. The
// end of a channel for publishing and consuming also ends the consumer.
func (s *session) survives(reason *amqp.Error) bool {
	return s.sub != s.pub && isAboutMessage(reason)
}

// sizeLimitIn returns the broker's largest message, in bytes, if an exception contains it.
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

// isAboutMessage reports whether an exception on a channel for publishing is about one of its
// messages: 406 precondition-failed or 311 content-too-large. The cause of any other
// exception, such as a missing permission, would affect every message.
func isAboutMessage(reason *amqp.Error) bool {
	return reason != nil && (reason.Code == amqp.PreconditionFailed || reason.Code == amqp.ContentTooLarge)
}
