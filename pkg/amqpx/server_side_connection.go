package amqpx

import (
	"context"
	"errors"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// A response can end the connection on which it is published. RabbitMQ 3 closes the connection
// if the response goes to an address of direct reply-to on a node that does not run. Such an
// address is well-formed, so no check can find the bad address. Therefore the responses to
// direct reply-to, and the responses of the control plane, are published on separate
// connections, where such a response affects no other work. docs/adr/0012 has the reasons.

// isDirectAddress reports whether a reply_to is an address of direct reply-to.
func isDirectAddress(replyTo string) bool { return strings.HasPrefix(replyTo, wire.DirectReplyTo) }

// isolable is an outbound message which can be published alone.
type isolable interface {
	publish.Outbound
	// undeliverable ends the message: the connection ended while the message was alone on the
	// connection.
	undeliverable(cause error)
}

// sideConnection is a connection of a server for messages which could end the session's
// connection. The server dials when a message waits, and again with growing pauses. Only the
// goroutine of run uses it.
type sideConnection struct {
	server *Server
	role   string
	sup    *transport.Supervisor // only dials: the server's status and log describe the session's connection
	outbox *publish.Outbox
	send   func(ctx context.Context, sess *transport.Session) // returns when the session or ctx ends, or when idle
}

// newSideConnection returns a side connection of a server. With a mux, the servers of a Connection
// share it.
func newSideConnection(s *Server, role string, mux *transport.Mux, send func(context.Context, *transport.Session)) *sideConnection {
	cfg := s.cfg.connections(role, true, noStatus{})
	cfg.Setup = func(context.Context, *transport.Session) error { return nil }
	cfg.Logger, cfg.Mux = zap.NewNop(), mux
	return &sideConnection{server: s, role: role, sup: transport.NewSupervisor(cfg), outbox: publish.NewOutbox(), send: send}
}

// run keeps the connection alive while messages wait, until ctx ends.
func (c *sideConnection) run(ctx context.Context) {
	wait := c.sup.NewBackoff()
	for c.isNeeded(ctx) {
		sess, err := c.sup.Connect(ctx)
		if err == nil {
			begun := time.Now()
			c.send(ctx, sess)
			sess.Close()
			err = sess.Cause
			if time.Since(begun) >= transport.SettledAfter {
				wait.Reset()
			}
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		c.server.logs.sideConnection.of(c.server.cfg.logger).Warn("a connection for responses ended, reconnecting",
			zap.String("role", c.role), zap.Error(err))
		xsync.Sleep(ctx, wait.NextBackOff())
	}
}

// isNeeded waits for a message in the outbox; false means that ctx has ended.
func (c *sideConnection) isNeeded(ctx context.Context) bool {
	for c.outbox.Len() == 0 && ctx.Err() == nil {
		select {
		case <-c.outbox.Wake:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// publishDirect publishes responses to direct reply-to and responses of the control plane.
func (s *Server) publishDirect(ctx context.Context, sess *transport.Session) {
	publish.Start(sess, s.direct.outbox, 0, func(amqp.Return) {}) // no message is mandatory
	select {
	case <-sess.Done:
	case <-ctx.Done():
	}
}

const (
	// isolatedIdle is how long the connection for suspects stays open without messages.
	isolatedIdle = 5 * time.Second
	// isolatedNacked is the age from which a connection is replaced after a nack: the queue
	// may accept messages on another channel, see republished.send.
	isolatedNacked = time.Second
	// isolatedTries bounds how often a message is published alone if its connections end for
	// reasons that may have nothing to do with the message.
	isolatedTries = 3
)

// isolated is a message which is published alone.
type isolated struct {
	isolable

	tries int
}

// isolate publishes a message which may have ended a connection alone, to find out whether the
// message is the cause.
func (s *Server) isolate(out isolable) { s.isolated.outbox.Put(&isolated{isolable: out}) }

// publishIsolated publishes the messages one by one, each after the confirm of the previous.
func (s *Server) publishIsolated(ctx context.Context, sess *transport.Session) {
	returns := sess.PubCh.NotifyReturn(make(chan amqp.Return, 1))
	for {
		waiting := s.isolated.outbox.Drain(nil)
		for i, out := range waiting {
			if !s.publishAlone(ctx, sess, out, returns) {
				s.isolated.outbox.PushFront(waiting[i+1:])
				return
			}
		}
		idle := time.NewTimer(isolatedIdle)
		select {
		case <-s.isolated.outbox.Wake:
			idle.Stop()
		case <-idle.C:
			return
		case <-sess.Done:
			idle.Stop()
			return
		case <-ctx.Done():
			idle.Stop()
			return
		}
	}
}

// publishAlone publishes one message and waits for its confirm. The result is false if the
// session or ctx has ended, or if the connection is to be replaced. Then the message waits for
// the next connection, unless it has a result or is undeliverable.
func (s *Server) publishAlone(ctx context.Context, sess *transport.Session, out publish.Outbound, returns <-chan amqp.Return) bool {
	for opening := sess.Flow.Unblocked(); opening != nil; opening = sess.Flow.Unblocked() {
		select {
		case <-opening:
			continue
		case <-sess.Done:
		case <-ctx.Done():
		}
		s.isolated.outbox.Put(out)
		return false
	}
	if !out.BeginSend(sess.Generation) {
		return true
	}
	key, mandatory, msg := out.Publishing()
	confirm, err := sess.PubCh.PublishTo(sess.Exchange, key, mandatory, msg)
	switch {
	case errors.Is(err, amqp.ErrClosed): // the message was not sent
		sess.ChannelClosed(err)
		s.isolated.outbox.Put(out)
		return false
	case err != nil:
		sess.Fail(err)
		s.blame(out, err)
		return false
	}
	select {
	case <-confirm.Done():
	case <-ctx.Done():
		s.isolated.outbox.Put(out)
		return false
	}
	switch {
	case confirm.Acked():
		select {
		case <-returns: // a broker returns a message before the confirm
			out.OnResult(publish.Returned)
		default:
			out.OnResult(publish.Confirmed)
		}
		return true
	case !sess.PubCh.IsClosed():
		out.OnResult(publish.Nacked)
		return time.Since(sess.Start) < isolatedNacked
	}
	<-sess.Done // a closed channel ends its session
	s.blame(out, sess.Cause)
	return false
}

// blame handles a message which was alone on a connection when the connection ended. The
// message is undeliverable after an exception, or after isolatedTries attempts; otherwise
// publishing is tried again.
func (s *Server) blame(out publish.Outbound, cause error) {
	m, ok := out.(*isolated)
	if !ok {
		return
	}
	if m.tries++; isException(cause) || m.tries == isolatedTries {
		m.undeliverable(cause)
		return
	}
	s.isolated.outbox.Put(m)
}

// noteUndeliverable counts and logs a message which ended the connection it was published on.
func (s *Server) noteUndeliverable(to, correlationID string, cause error) {
	s.counts.undeliverable.Add(1)
	if isDirectAddress(to) {
		s.suspects.avoid(to)
	}
	s.logs.undeliverable.of(s.cfg.logger).Warn("dropped a response that ends the connection it is published on",
		zap.String("reply_to", to), zap.String("correlation_id", correlationID), zap.Error(cause))
}

// errAvoided is the reason why a response is not published: its address has ended a
// connection.
var errAvoided = errors.New("its address has ended a connection before")

const (
	// maxSuspects bounds the number of requests, and the number of addresses, in suspects.
	maxSuspects = 8192
	// suspectAge is how long requests and addresses are remembered.
	suspectAge = 5 * time.Minute
)

// suspects remembers the requests whose response, or copy, was unconfirmed when the broker
// ended the server's connection with an exception. One of these messages may be the cause, so
// when their requests are delivered again, the responses and copies are published alone on a
// separate connection (isolated in server_side_connection.go). suspects also remembers the
// addresses of direct reply-to which ended a connection. Safe for concurrent use.
type suspects struct {
	seed  maphash.Seed
	count atomic.Int64 // of requests and addresses

	mu          sync.Mutex
	unconfirmed []uint64 // requests of the session which has just ended, in the order of publishing
	requests    xsync.Recent[uint64]
	addresses   xsync.Recent[string]
}

func newSuspects() *suspects { return &suspects{seed: maphash.MakeSeed()} }

// isException reports whether the broker ended a connection or a channel because of a frame or
// message from this process.
func isException(cause error) bool {
	e, ok := errors.AsType[*amqp.Error](cause)
	return ok && e.Server && e.Code != amqp.ConnectionForced
}

// keyOf identifies a request across deliveries. Two requests of one caller with equal ids have
// the same key; then the second is published alone too, which only takes longer.
func (s *suspects) keyOf(in *incoming) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, text := range []string{in.ReplyTo, in.ID, in.Key, in.Method} {
		_, _ = h.WriteString(text)
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

// noteUnconfirmed records a request whose message was unconfirmed when the session ended. The
// broker handles messages in order, so the first maxSuspects requests are kept.
func (s *suspects) noteUnconfirmed(in *incoming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unconfirmed) < maxSuspects {
		s.unconfirmed = append(s.unconfirmed, s.keyOf(in))
	}
}

// sessionEnded decides whether the recorded requests are suspects. It is called after the
// session has ended and before the next session consumes.
func (s *suspects) sessionEnded(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	noted := s.unconfirmed
	s.unconfirmed = nil
	if !isException(cause) {
		return
	}
	now := time.Now()
	for _, key := range noted {
		s.requests.Add(key, now, suspectAge, maxSuspects)
	}
	s.updateCount()
}

// isSuspect reports whether the messages of a request must be published alone.
func (s *suspects) isSuspect(in *incoming) bool {
	if s.count.Load() == 0 {
		return false
	}
	key := s.keyOf(in)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.updateCount()
	return s.requests.Has(key, time.Now())
}

// clear forgets a request after the broker has accepted its message.
func (s *suspects) clear(in *incoming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests.Remove(s.keyOf(in), time.Now())
	s.updateCount()
}

// avoid records an address which ended a connection.
func (s *suspects) avoid(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses.Add(address, time.Now(), suspectAge, maxSuspects)
	s.updateCount()
}

// isAvoided reports whether an address ended a connection within suspectAge.
func (s *suspects) isAvoided(address string) bool {
	if s.count.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.updateCount()
	return s.addresses.Has(address, time.Now())
}

// updateCount sets count. The caller holds mu.
func (s *suspects) updateCount() {
	now := time.Now()
	s.count.Store(int64(s.requests.Len(now) + s.addresses.Len(now)))
}
