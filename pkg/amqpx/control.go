package amqpx

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

// The control plane. Every server listens, on a queue of its own, to what is published to
// a fanout exchange: calls that were given up (given_up.go), and questions about the
// server (instance.go). docs/protocol.md has the messages.

// What a control message says (its app_id).
const (
	controlCancel = "cancel"
	controlPing   = "ping"
	controlInfo   = "info"
	controlStats  = "stats"
)

const (
	// controlPrefetch, controlLength and controlAnswers bound what a flood of control
	// messages can take up: in this process, in its queue, where the oldest go, and as
	// answers on their way.
	controlPrefetch = 64
	controlLength   = 1024
	controlAnswers  = 64
)

// controlConsumer is the tag of the consumer of control messages.
const controlConsumer = "control"

// control listens to the control plane for one session of a server.
type control struct {
	server     *Server
	sess       *session
	ch         channel
	queue      string
	deliveries <-chan amqp.Delivery
}

// errControlEnded ends a session whose control queue is gone.
var errControlEnded error = &kindError{FaultQueueDeleted, errors.New("that of the control plane")}

// controlRetry is the time between two attempts to have the control plane.
const controlRetry = 15 * time.Second

// startControl begins to listen. It uses a channel of its own, so that a broker that
// refuses costs nothing but the control plane: the server serves without it and tries again.
func (s *Server) startControl(sess *session) error {
	if !s.cfg.control {
		return nil
	}
	err := s.listenToControl(sess)
	if err == nil || !isChannelException(err) {
		return err
	}
	s.pings.through("")
	s.warnNoControl(sess, err)
	sess.run(func() { s.retryControl(sess) })
	return nil
}

// retryControl tries to have the control plane until it has, or the session ends.
func (s *Server) retryControl(sess *session) {
	again := time.NewTicker(controlRetry)
	defer again.Stop()
	for {
		select {
		case <-again.C:
		case <-sess.done:
			return
		}
		err := s.listenToControl(sess)
		if err == nil || sess.ended() {
			return
		}
		s.warnNoControl(sess, err)
	}
}

// listenToControl begins to listen.
func (s *Server) listenToControl(sess *session) error {
	exchange := s.cfg.queue.controlExchange()
	c := &control{server: s, sess: sess, queue: exchange + "." + strings.ReplaceAll(newID(), "-", "")}
	if err := c.listen(exchange); err != nil {
		return atStep(stepControl, "", err)
	}
	s.pings.through(c.queue)
	sess.run(c.read)
	return nil
}

// warnNoControl logs that the server does without the control plane.
func (s *Server) warnNoControl(sess *session, err error) {
	fault := classify(sess.target, err)
	s.logs.noControl.of(s.cfg.logger).Warn("no control plane: the broker refused it",
		zap.String("exchange", s.cfg.queue.controlExchange()), zap.String("fault", string(fault.kind)), zap.Error(fault))
}

// isChannelException reports whether the broker refused something by the end of a channel,
// which leaves the connection as it is.
func isChannelException(err error) bool {
	refused, ok := errors.AsType[*amqp.Error](err)
	if !ok || !refused.Server {
		return false
	}
	switch refused.Code {
	case amqp.AccessRefused, amqp.NotFound, amqp.ResourceLocked, amqp.PreconditionFailed:
		return true
	default:
		return false
	}
}

// listen declares the exchange, and a queue that ends with this link.
func (c *control) listen(exchange string) (err error) {
	if c.ch, err = c.sess.sub.channel(); err != nil {
		return err
	}
	if err = c.ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
		return err
	}
	if _, err = c.ch.QueueDeclare(c.queue, false, true, true, false, amqp.Table{amqp.QueueMaxLenArg: int64(controlLength)}); err != nil {
		return err
	}
	if err = c.ch.QueueBind(c.queue, "", exchange, false, nil); err != nil {
		return err
	}
	if err = c.ch.Qos(controlPrefetch, 0, false); err != nil {
		return err
	}
	c.deliveries, err = c.ch.Consume(c.queue, controlConsumer, false, true, false, false, nil)
	return err
}

// read handles control messages until the session ends.
func (c *control) read() {
	for {
		select {
		case d, ok := <-c.deliveries:
			if !ok {
				c.sess.fail(errControlEnded)
				return
			}
			c.take(&d)
			if err := c.ch.Ack(d.DeliveryTag, false); err != nil {
				c.sess.fail(err)
				return
			}
		case <-c.sess.done:
			return
		}
	}
}

// take handles one message.
func (c *control) take(d *amqp.Delivery) {
	s := c.server
	switch d.AppId {
	case "": // an answer to this server's own ping
		s.pings.answered(d.CorrelationId)
	case controlCancel:
		if err := s.cancelCalls(d); err != nil {
			c.cannotRead(d, err)
		}
	case controlPing, controlInfo, controlStats:
		if d.ReplyTo == "" || !safeReplyTo(d.ReplyTo) {
			c.cannotRead(d, errors.New("no reply_to to answer to"))
			return
		}
		s.tell(d)
	default:
		c.cannotRead(d, errors.New("unknown app_id"))
	}
}

// cannotRead logs that a control message was dropped.
func (c *control) cannotRead(d *amqp.Delivery, err error) {
	c.server.logs.badControl.of(c.server.cfg.logger).Warn("dropped a control message that cannot be read",
		zap.String("app_id", truncate(d.AppId, maxShortString)), zap.Error(err))
}

// cancelCalls ends the calls that a message names, in the format of a batch: of each its
// id, its method, and its key if that differs from the id. They are those of the caller that
// sent the message: its user and its reply_to must be theirs. Calls that do not run here may
// run elsewhere, or be on their way. The error is the last of those that cannot be read.
func (s *Server) cancelCalls(d *amqp.Delivery) error {
	var room [64][]byte
	records, err := appendRecords(room[:0], d.Body)
	if err != nil {
		return err
	}
	user, now := s.callerOf(d), time.Now()
	for _, record := range records {
		in := incoming{Request: Request{User: user}}
		if failed := decodeCall(&in, record, d.ReplyTo, s.nameOf); failed != nil {
			err = failed
			continue
		}
		m := s.methods[in.Method]
		if m == nil || in.CorrelationID == "" {
			continue
		}
		for _, r := range s.dedup.cancel(m, &in, now) {
			s.counts.canceled.Add(1)
			r.end()
		}
	}
	return err
}

// tell answers a question about this server.
func (s *Server) tell(d *amqp.Delivery) {
	if s.controlAnswers.Add(1) > controlAnswers {
		s.controlAnswers.Add(-1) // whoever floods gets fewer answers than questions
		return
	}
	body, err := s.describe(d.AppId)
	if err != nil { // there is nothing in it that cannot be encoded
		s.controlAnswers.Add(-1)
		s.cfg.logger.Error("server cannot be described", zap.Error(err))
		return
	}
	m := &controlMessage{server: s, to: d.ReplyTo, msg: amqp.Publishing{
		ContentType: "application/json", CorrelationId: d.CorrelationId, Body: body,
	}}
	if s.suspects.isAvoided(d.ReplyTo) {
		m.undeliverable(errAvoided)
		return
	}
	s.direct.outbox.put(m)
}

// controlMessage is a response of the control plane, or a server's ping to itself.
type controlMessage struct {
	server *Server // of a response; nil of a ping
	to     string
	msg    amqp.Publishing
	over   atomic.Bool // nobody waits for it
}

// claim implements outgoing.
func (m *controlMessage) claim(uint64) bool { return !m.over.Load() }

// withdrawn implements outgoing.
func (m *controlMessage) withdrawn() bool { return m.over.Load() }

// envelope implements outgoing.
func (m *controlMessage) envelope() (key string, mandatory bool, msg amqp.Publishing) {
	return m.to, false, m.msg
}

// settle implements outgoing. A ping that is lost is not sent again.
func (m *controlMessage) settle(f fate) {
	switch {
	case m.server == nil:
	case f == fateUnsent:
		m.server.direct.outbox.put(m)
	case f == fateLost:
		m.server.isolate(m) // it may be what ended the connection
	default:
		m.server.controlAnswers.Add(-1)
	}
}

// undeliverable implements isolable.
func (m *controlMessage) undeliverable(cause error) {
	m.server.controlAnswers.Add(-1)
	m.server.noteUndeliverable(m.to, m.msg.CorrelationId, cause)
}
