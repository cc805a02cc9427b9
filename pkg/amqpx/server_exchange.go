package amqpx

import (
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// The request exchange. A client that may write to the default exchange can publish to every
// queue of the virtual host. A server therefore binds its request queue and its batch queue to
// an exchange of their own, so that a user can be allowed to call this service only
// (docs/adr/0022). The retry queue, the dead letters and the queues of the control plane are
// never bound.

// requestExchangeSuffix follows the request queue's name in the name of the request exchange.
const requestExchangeSuffix = ".rpc"

// requestExchange returns the name of the request exchange.
func (q Queue) requestExchange() string { return q.Name + requestExchangeSuffix }

const (
	// exchangeWait bounds how long a new session waits for the request exchange.
	exchangeWait = time.Second
	// exchangeAgain is the time between two declarations of the exchange and its bindings: an
	// operator may have deleted them, or granted a permission.
	exchangeAgain = 30 * time.Second
)

// requestBindings are the queues that a server binds to the request exchange in one session.
// Safe for concurrent use.
type requestBindings struct {
	mu     sync.Mutex
	queues []string
}

// add adds a queue.
func (b *requestBindings) add(queue string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.queues, queue) {
		b.queues = append(b.queues, queue)
	}
}

// all returns the queues.
func (b *requestBindings) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.queues)
}

// bindQueue declares the request exchange and binds a queue, with its own name as the key. It reports
// whether the exchange exists: then an error is about the queue.
func (s *Server) bindQueue(sess *transport.Session, queue string) (declared bool, err error) {
	exchange := s.cfg.queue.requestExchange()
	err = transport.WithTempChannel(sess.Sub, func(ch transport.Channel) error {
		if err := ch.ExchangeDeclare(exchange, amqp.ExchangeDirect, true, false, false, false, nil); err != nil {
			return err
		}
		declared = true
		return ch.QueueBind(queue, queue, exchange, false, nil)
	})
	return declared, transport.AtStep(transport.StepExchange, "", err)
}

// startExchange starts to bind the request queue, and keeps the bindings until the session ends.
// wait waits until the queue is bound, up to exchangeWait after the call of startExchange.
func (s *Server) startExchange(sess *transport.Session, bindings *requestBindings) (wait func()) {
	bindings.add(s.cfg.queue.Name)
	first := make(chan struct{})
	sess.Run(func() { s.keepExchange(sess, bindings, first) })
	timer := time.NewTimer(exchangeWait)
	return func() {
		defer timer.Stop()
		select {
		case <-first:
		case <-timer.C:
		case <-sess.Done:
		}
	}
}

// keepExchange binds the queues now and then until the session ends. first is closed after the
// first time.
func (s *Server) keepExchange(sess *transport.Session, bindings *requestBindings, first chan<- struct{}) {
	again := time.NewTicker(exchangeAgain)
	defer again.Stop()
	for {
		s.bindAll(sess, bindings)
		if first != nil {
			close(first)
			first = nil
		}
		select {
		case <-again.C:
		case <-sess.Done:
			return
		}
	}
}

// bindAll binds the queues. A fault of one queue does not stop the others; a fault of the exchange
// does, because the broker would log each refusal.
func (s *Server) bindAll(sess *transport.Session, bindings *requestBindings) {
	all := true
	for _, queue := range bindings.all() {
		declared, bound := s.bindOrWarn(sess, queue)
		if all = all && bound; !declared {
			return
		}
	}
	if all {
		s.exchangeFault.Store(nil)
	}
}

// bindOrWarn is bindQueue that logs a fault, once while the fault lasts. A fault concerns only
// the callers who use the exchange: the server works on with the default exchange.
func (s *Server) bindOrWarn(sess *transport.Session, queue string) (declared, bound bool) {
	declared, err := s.bindQueue(sess, queue)
	if err == nil || sess.Ended() {
		return declared, err == nil
	}
	fault := transport.Classify(sess.Target, err)
	if last := s.exchangeFault.Swap(&fault.Kind); last == nil || *last != fault.Kind {
		s.cfg.logger.Warn("the request exchange cannot be used: requests come only through the default exchange",
			zap.String("exchange", s.cfg.queue.requestExchange()), zap.String("queue", queue),
			zap.String("fault", string(fault.Kind)), zap.Error(fault))
	}
	return declared, false
}

// countExchange counts the n requests of a message that came through the default exchange. The
// copies by servers, which always come through the default exchange, are not counted.
func (s *Server) countExchange(d *amqp.Delivery, n int) {
	if d.Exchange == "" && !s.isOwnCopy(d) {
		s.counts.defaultExchange.Add(uint64(n)) //nolint:gosec // a length is never negative.
	}
}
