package amqpx

import (
	"context"
	"errors"
	"strings"
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

func newSideConnection(s *Server, role string, send func(context.Context, *transport.Session)) *sideConnection {
	cfg := s.cfg.connections(role, true, noStatus{}, func(context.Context, *transport.Session) error { return nil })
	cfg.Logger = zap.NewNop()
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
	publish.Start(sess, s.direct.outbox, func(amqp.Return) {}) // no message is mandatory
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
	confirm, err := sess.PubCh.PublishTo(key, mandatory, msg)
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
