package transport

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Session is one generation of the connections of a client or server, with the channels and
// every goroutine that reads or writes on them. A session is opened, fails and is closed as a
// whole. Only the channel for publishing can be replaced, by package publish. The next session
// is opened after the last session has closed and all its goroutines have ended.
//
// Publishing and consuming have separate connections, because a broker that blocks publishing
// stops reading from the connection, and acknowledgements must still flow
// (https://www.rabbitmq.com/docs/alarms). Direct reply-to forces one connection for both
// purposes.
type Session struct {
	Generation uint64
	Start      time.Time
	Target     Target
	Home       Target // the node that the process returns to; Target there
	Pub, Sub   Conn   // equal if there is one connection for both
	PubCh      Channel
	SubCh      Channel
	ProbeCh    Channel // on the publishing connection
	Flow       *flow   // of the publishing connection
	// SizeLimit is the broker's largest body in bytes, known after the first refusal; else 0.
	SizeLimit atomic.Int64
	ReplyTo   string // the reply queue of a client, else ""
	// Exchange is the exchange to which package publish publishes; "" is the default exchange.
	Exchange string
	// Answered is set when a response arrives, confirmed when a confirm arrives; the reader of
	// a flag resets it.
	Answered, Confirmed atomic.Bool
	OnReady             func()                 // called once the session counts as ready; may be nil
	Consumed            atomic.Pointer[string] // the queue of the consumer; nil until known
	// Resubscribes means that the consumer subscribes again when the broker cancels the
	// subscription, and the session goes on.
	Resubscribes atomic.Bool

	// Leave receives a token when the session is to end for its home node; the publisher ends it
	// once nothing is unconfirmed.
	Leave chan struct{}

	Done  chan struct{} // closed when the session failed or has to end
	once  sync.Once
	Cause error // the reason, set before done is closed; nil for an end that this process asked for
	wg    sync.WaitGroup

	// mux is the session whose connections this session shares; nil: the connections are its own.
	mux *Session
	// unclosed counts the channels of a mux that this process has given up and the broker has not
	// closed yet.
	unclosed atomic.Int32
	// answeredAt is when a session on the mux last received a response, in nanoseconds.
	answeredAt atomic.Int64
}

// openChannels opens a channel for publishing, with confirms, a channel for consuming, and a
// channel for probes on the publishing connection. A probe on the publishing channel could
// come between the frames of a message, which would end the connection.
func (s *Session) openChannels(shared bool) (err error) {
	defer func() { err = AtStep(stepChannel, "", err) }()
	if s.PubCh, err = s.Pub.Channel(); err != nil {
		return err
	}
	if err = s.PubCh.Confirm(false); err != nil {
		return err
	}
	if s.ProbeCh, err = s.Pub.Channel(); err != nil {
		return err
	}
	s.SubCh = s.PubCh
	if !shared {
		s.SubCh, err = s.Sub.Channel()
	}
	return err
}

// watch starts goroutines to watch for every end of the session, and for blocking by the
// broker. It is called before the session is used, so no event is missed.
func (s *Session) watch(onBlocked func(amqp.Blocking)) {
	ends := []<-chan *amqp.Error{s.Pub.Closed(), s.PubCh.NotifyClose(make(chan *amqp.Error, 1))}
	if s.Sub != s.Pub {
		ends = append(ends, s.Sub.Closed(), s.SubCh.NotifyClose(make(chan *amqp.Error, 1)))
	}
	for i, end := range ends {
		s.Run(func() {
			select {
			case reason := <-end:
				if i == 1 && s.Survives(reason) {
					return // the publisher opens another channel
				}
				// An unrequested close is a failure, with or without a reason.
				s.connectionEnded(i, reason)
			case <-s.Done:
			}
		})
	}
	if s.mux != nil {
		s.Run(s.watchMux)
		s.Run(func() { s.watchFlow(onBlocked) })
	}
	blockings := s.Pub.Blockings()
	cancels := s.SubCh.NotifyCancel(make(chan string, maxConsumers))
	s.Run(func() {
		for {
			select {
			case b, ok := <-blockings:
				if !ok {
					blockings = nil
					continue
				}
				s.Flow.set(b)
				onBlocked(b)
			case tag, ok := <-cancels:
				if ok && s.Resubscribes.Load() {
					continue
				}
				if ok {
					s.Fail(s.atConsume(&consumerCanceledError{tag}))
				}
				cancels = nil
			case <-s.Done:
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
var errConsumerCanceled error = &KindError{Kind: FaultConsumerCanceled}

// connectionEnded ends the session because one of its connections ended or, if i is odd, one
// of its channels.
func (s *Session) connectionEnded(i int, reason *amqp.Error) {
	switch {
	case reason == nil:
		s.Fail(ErrConnectionEnded)
	case i == 1 && s.Sub != s.Pub:
		s.Fail(AtStep(StepPublish, "", reason))
	case i%2 == 1:
		s.Fail(s.atConsume(reason))
	default:
		s.Fail(reason)
	}
}

// atConsume marks err as an error of the consumer.
func (s *Session) atConsume(err error) error {
	if queue := s.Consumed.Load(); queue != nil {
		return AtStep(StepConsume, *queue, err)
	}
	return err
}

// consumerCanceledError is errConsumerCanceled with the tag of the consumer.
type consumerCanceledError struct{ tag string }

func (c *consumerCanceledError) Error() string { return c.Unwrap().Error() }
func (c *consumerCanceledError) Unwrap() error { return errConsumerCanceled }

// ConsumerEnded is called when deliveries end and this process did not cancel the consumer. If
// the channel has ended too, its watcher knows a better reason.
func (s *Session) ConsumerEnded(tag string) {
	if !s.SubCh.IsClosed() {
		s.Fail(s.atConsume(&consumerCanceledError{tag}))
	}
}

// Canceled reports whether the session ended because the broker canceled the consumer with
// this tag. It may be called only after the end of the session.
func (s *Session) Canceled(tag string) bool {
	c, ok := errors.AsType[*consumerCanceledError](s.Cause)
	return ok && c.tag == tag
}

// Run starts f as a goroutine of the session; f must return when done is closed. If code of
// the application, such as an observer, ends the goroutine with runtime.Goexit, the session
// ends too.
func (s *Session) Run(f func()) {
	s.wg.Go(func() {
		returned := false
		defer func() {
			if !returned {
				s.Fail(errGoroutineEnded)
			}
		}()
		f()
		returned = true
	})
}

// InGoroutine calls f, which may wait for the broker without end, in a goroutine of the
// session. The goroutine ends at the latest when the session cuts its connections.
func (s *Session) InGoroutine(f func() error) <-chan error {
	done := make(chan error, 1)
	s.Run(func() { done <- f() })
	return done
}

// errGoroutineEnded ends a session in which a goroutine ended without returning.
var errGoroutineEnded error = &KindError{Kind: FaultLocal, Cause: errors.New("a goroutine of the session was ended")}

// Fail ends the session; the first call sets the cause.
func (s *Session) Fail(cause error) {
	s.once.Do(func() {
		s.Cause = cause
		close(s.Done)
	})
}

// closedReasonWait bounds the wait for the reason of a closed channel.
const closedReasonWait = time.Second

// ChannelClosed ends the session after a call found its channel closed. The watcher of the
// channel is about to learn the reason, so its cause takes precedence.
func (s *Session) ChannelClosed(err error) {
	timer := time.NewTimer(closedReasonWait)
	defer timer.Stop()
	select {
	case <-s.Done:
	case <-timer.C:
		s.Fail(err)
	}
}

// Ended reports whether the session failed or was closed.
func (s *Session) Ended() bool {
	select {
	case <-s.Done:
		return true
	default:
		return false
	}
}

// NoteAnswered records that a response has arrived.
func (s *Session) NoteAnswered() {
	if s.Answered.Load() {
		return
	}
	s.Answered.Store(true)
	if s.mux != nil {
		s.mux.answeredAt.Store(time.Now().UnixNano())
	}
}

// AreOthersAnswered reports whether another session on the same mux has received a response since
// then.
func (s *Session) AreOthersAnswered(since time.Time) bool {
	return s.mux != nil && s.mux.answeredAt.Load() > since.UnixNano()
}

// IsEnding reports whether the session has ended or is about to end, because one of its connections
// has ended.
func (s *Session) IsEnding() bool {
	return s.Ended() || s.Pub.IsClosed() || s.Sub.IsClosed()
}

// Close ends the session and returns when its goroutines have ended. The connections of a
// failed session are cut: waiting for a dead peer would only delay the next attempt. On a mux
// only the session's channels are closed.
func (s *Session) Close() {
	s.Fail(nil)
	if s.mux == nil && underMaintenance(s.Cause) {
		s.awaitBroker(maintenanceWait)
	}
	var closers sync.WaitGroup
	for i, l := range []Conn{s.Pub, s.Sub} {
		if l == nil || i == 1 && s.Sub == s.Pub {
			continue
		}
		closers.Go(func() {
			if s.Cause != nil && s.Cause != ErrReturnHome { //nolint:errorlint // it is this very value.
				l.Cut()
			}
			l.Close()
		})
	}
	closers.Wait()
	s.wg.Wait()
	if s.Sub != nil {
		s.Sub.Abandon()
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
func (s *Session) awaitBroker(most time.Duration) {
	limit := time.NewTimer(most)
	defer limit.Stop()
	for _, l := range []Conn{s.Pub, s.Sub} {
		if l == nil {
			continue
		}
		select {
		case <-l.Closed(): //nolint:errcheck // the reason is known.
		case <-limit.C:
			return
		}
	}
}

// ErrReturnHome ends a session that leaves its node for the home node. Nothing is unconfirmed
// then, so the connections are closed and not cut.
var ErrReturnHome = errors.New("returns to the home node")

// AwaitReturn waits until a session away from its home node should return, for a random time
// between half of after and one and a half times after: the processes that lost a node do not all
// return at the same moment. It returns false if the session is at home or ended, or if after is 0.
func (s *Session) AwaitReturn(after time.Duration) bool {
	if after <= 0 || s.Home.Address == s.Target.Address {
		return false
	}
	timer := time.NewTimer(after/2 + rand.N(after)) //nolint:gosec // spreads load, guards nothing.
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.Done:
		return false
	}
}

// Cut closes the sockets, which makes every blocked call return.
func (s *Session) Cut() {
	s.Pub.Cut()
	s.Sub.Cut()
}

// flow is closed while the broker blocks publishing.
type flow struct {
	mu      sync.Mutex
	last    amqp.Blocking
	changed chan struct{} // closed at the next change
	blocked chan struct{} // closed when the flow opens; nil while open
}

func newFlow() *flow { return &flow{changed: make(chan struct{})} }

// set records whether the broker blocks publishing.
func (g *flow) set(b amqp.Blocking) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case b.Active && g.blocked == nil:
		g.blocked = make(chan struct{})
	case !b.Active && g.blocked != nil:
		close(g.blocked)
		g.blocked = nil
	}
	g.last = b
	close(g.changed)
	g.changed = make(chan struct{})
}

// state returns the broker's last message, and a channel that is closed at the next.
func (g *flow) state() (amqp.Blocking, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last, g.changed
}

// Unblocked returns nil while the flow is open, else a channel that is closed when the flow
// opens.
func (g *flow) Unblocked() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.blocked
}

// errUnresponsive means that the broker does not answer AMQP methods, though it may still send
// heartbeats.
var errUnresponsive error = &KindError{Kind: FaultUnresponsive}

// slowPeriods bounds how long a publishing connection counts as slow, in multiples of the time
// after which a connection without a response counts as dead.
const slowPeriods = 6

// probe sends the broker an AMQP method on every connection, twice in each heartbeat interval,
// and ends the session when no response comes within one and a half intervals. AMQP's heartbeats
// tell a side whether the peer's data arrives, not whether its own data does. If the data of
// this process is lost, RabbitMQ is the side to notice, after two to three intervals. A broker
// that blocks publishing does not read, so a response is not required then.
//
// RabbitMQ also stops reading from a connection that publishes faster than a queue takes
// messages, and sends no notice: a quorum queue without a majority takes none. So a separate
// publishing connection counts as slow, not as dead, while heartbeats arrive on it; the probe
// of the consuming connection proves that the broker still answers.
func (s *Session) probe(heartbeat time.Duration) {
	channels := []Channel{s.ProbeCh}
	if s.Sub != s.Pub {
		channels = append(channels, s.SubCh)
	}
	for _, ch := range channels {
		s.Run(func() {
			next := time.NewTicker(heartbeat / 2)
			defer next.Stop()
			for {
				select {
				case <-next.C:
				case <-s.Done:
					return
				}
				if !s.respondsWithin(ch, heartbeat+heartbeat/2) {
					s.Fail(errUnresponsive)
					return
				}
			}
		})
	}
}

// respondsWithin reports whether the broker answers on ch in time, or is excused from
// answering.
func (s *Session) respondsWithin(ch Channel, within time.Duration) bool {
	if ch == s.ProbeCh && s.Flow.Unblocked() != nil {
		return true
	}
	answered := make(chan struct{})
	s.Run(func() { // the end of the session cuts the sockets and so ends this goroutine
		_ = ch.Barrier() // an error ends the channel, which has a watcher
		close(answered)
	})
	heard := s.Pub.Received()
	limit := time.NewTimer(within)
	defer limit.Stop()
	for period := 1; ; period++ {
		select {
		case <-answered:
			return true
		case <-s.Done:
			return true
		case <-limit.C:
		}
		if ch == s.ProbeCh && s.Flow.Unblocked() != nil {
			select { // the broker stopped reading before it could answer
			case <-answered:
			case <-s.Done:
			}
			return true
		}
		before := heard
		if heard = s.Pub.Received(); ch != s.ProbeCh || s.Sub == s.Pub || heard == before || period == slowPeriods {
			return false
		}
		limit.Reset(within)
	}
}

// Survives reports whether the session continues after this end of its publishing channel. The
// end of a channel for publishing and consuming also ends the consumer.
func (s *Session) Survives(reason *amqp.Error) bool {
	return s.Sub != s.Pub && IsAboutMessage(reason)
}
