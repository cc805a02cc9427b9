package amqpx

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Companions of the request queue: the further shards, the batch queues, the retry queue, and the
// queue of dead letters. A server runs without a companion which it cannot use. Each companion is declared
// and consumed on a channel of its own, so a queue that is unavailable, or never responds,
// only affects its own function.

const (
	// companionWait bounds how long a new session waits for its companions.
	companionWait = time.Second
	// companionRetry is the time between two attempts to set up a companion.
	companionRetry = 30 * time.Second
)

// companion is a queue beside the request queue, for one session.
type companion struct {
	queue    Queue
	prefetch int // 0: this server does not consume the queue
	unpacks  bool
	shard    int    // noShard for the retry queue and the dead letters
	home     string // the queue to which requests are returned
	// adopts is true if the queue is only used if it exists.
	adopts bool
	all    bool // the queue has the calls to all servers
	// besides is, of a batch queue, the companion of its shard; nil for shard 0 and other queues.
	besides *companion
	// current is the consumer of the queue; nil before the first.
	current atomic.Pointer[consumer]
	up      *atomic.Bool // a field of the server: the companion is usable
	step    atomic.Value // the current step, for the log
	// stays is closed when the server, which was about to leave its node and so has not consumed the
	// queue, stays; else nil. Only keepCompanion uses it.
	stays <-chan struct{}
	// missing receives a token when the broker has returned a message to the queue.
	missing chan struct{}
}

// errNoAnswer is the reason for a fault if the broker does not respond.
var errNoAnswer error = &transport.KindError{Kind: FaultQueueSilent}

// errSubscriptionEnded is the fault of a companion whose subscription has ended.
var errSubscriptionEnded error = &transport.KindError{Kind: FaultConsumerCanceled}

// errStays means that a server which was about to leave its node stays.
var errStays = errors.New("the server stays at its node")

// companions returns the companions of the request queue according to the configuration, with
// the type of the request queue. There is no batch queue if the request queue has a property
// which batches would escape.
func (s *Server) companions(found transport.FoundQueue) []*companion {
	var all []*companion
	base := s.cfg.queue
	base.Type = foundType(found, base.Type)
	if base.Type == QueueQuorum {
		base.Transient = false
	}
	batches := s.cfg.batch == BatchAuto && againstBatches(found, s.cfg.queue) == ""
	all = append(all, s.shardCompanions(requestQueues(base, 0, s.cfg.shards, batches))...)
	if s.cfg.deliveryLimit > 0 {
		all = append(all, &companion{queue: base.retryQueue(), prefetch: retryPrefetch, shard: noShard, up: &s.retryUp},
			&companion{queue: base.deadQueue(), shard: noShard, up: &s.deadUp})
	}
	if k := s.allCompanion(); k != nil {
		all = append(all, k)
	}
	for _, k := range all {
		k.missing = make(chan struct{}, 1)
		if k.home == "" {
			k.home = s.cfg.queue.Name
		}
	}
	return all
}

// startCompanions starts a goroutine for each companion, and waits up to companionWait for the
// companions.
func (s *Server) startCompanions(ctx context.Context, main *consumer, all []*companion, bindings *requestBindings) {
	var opened []<-chan struct{}
	for _, k := range all {
		k.up.Store(false)
		first := make(chan struct{})
		opened = append(opened, first)
		main.sess.Run(func() { s.keepCompanion(main, k, bindings, first) })
	}
	timer := time.NewTimer(companionWait)
	defer timer.Stop()
	late := false
	for i, first := range opened {
		if !late {
			select {
			case <-first:
				continue
			case <-timer.C:
				late = true
			case <-main.sess.Done:
				return
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-first:
		default:
			s.warnCompanion(main.sess, all[i], errNoAnswer)
		}
	}
}

// keepCompanion keeps a companion in use until the session ends, and tries again after a
// fault. first is closed after the first attempt.
func (s *Server) keepCompanion(main *consumer, k *companion, bindings *requestBindings, first chan<- struct{}) {
	sess, lost := main.sess, 0
	for attempt := 0; ; attempt++ {
		c, err := s.openCompanion(main, k, bindings)
		if err == nil {
			k.up.Store(true)
		}
		if attempt == 0 {
			close(first)
		}
		if err == nil {
			err = k.wait(sess, c)
			k.up.Store(false)
			if err == errQueueMissing || err == errStays { //nolint:errorlint // they are these very values: the queue is declared anew at once.
				continue
			}
			lost = 0
		}
		if k.adopts && transport.IsNotFound(err) {
			if k.isShard() {
				s.retiring.remove(k.shard)
			}
			return
		}
		if sess.IsEnding() {
			return
		}
		s.warnCompanion(sess, k, err)
		pause := companionRetry
		if k.isShard() {
			pause = xsync.GrowingPause(shardRetry, companionRetry, lost)
			lost++
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-sess.Done:
			timer.Stop()
			return
		}
	}
}

// wait waits until a companion is lost, and returns the reason. A companion that is not consumed
// because the server leaves its node is lost if the server stays.
func (k *companion) wait(sess *transport.Session, c *consumer) error {
	var done, canceled <-chan struct{}
	if c != nil {
		done, canceled = c.done, c.canceled
	}
	select {
	case <-k.stays:
		return errStays
	case <-canceled:
		return errSubscriptionEnded
	case <-done:
		return errSubscriptionEnded
	case <-k.missing:
		return errQueueMissing
	case <-sess.Done:
		return nil
	}
}

// openCompanion declares the queue, and consumes it if the companion has a prefetch. It waits
// for the broker until the session ends.
func (s *Server) openCompanion(main *consumer, k *companion, bindings *requestBindings) (*consumer, error) {
	sess := main.sess
	k.step.Store(transport.StepDeclare)
	if err := s.declareCompanion(sess, k); err != nil {
		return nil, err
	}
	k.stays = nil
	if k.prefetch == 0 || s.isDraining() {
		return nil, nil //nolint:nilnil // it is only declared.
	}
	if leave := main.departure.now(); leave.hasBegun() {
		k.stays = leave.revoked
		return nil, nil //nolint:nilnil // as above.
	}
	// Only servers publish to the retry queue and the dead letters. The binding of a retiring shard
	// is that of the servers with more shards, or of an operator.
	if k.shard != noShard && !k.adopts {
		bindings.add(k.queue.Name)
		s.bindOrWarn(sess, k.queue.Name)
	}
	k.step.Store(transport.StepConsume)
	ch, err := sess.Sub.Channel()
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	c := &consumer{
		server: s, sess: sess, ch: ch, main: main, departure: main.departure, home: k.home, shard: k.shard, unpacks: k.unpacks, all: k.all, prefetch: k.prefetch, done: done,
		acks:   make(chan *delivery, 2*k.prefetch),
		unread: make(chan *delivery, 2*k.prefetch),
		failed: make(chan struct{}, 1), canceled: make(chan struct{}),
	}
	c.listen()
	c.requests = func() *consumer { return k.requests(main) }
	k.current.Store(c)
	ended := ch.NotifyClose(make(chan *amqp.Error, 1))
	sess.Run(func() {
		defer close(done)
		select {
		case <-ended: //nolint:errcheck // whatever the reason is.
		case <-c.failed:
			_ = ch.Close()
		case <-sess.Done:
		}
	})
	return c, c.start(k.queue.Name)
}

// warnCompanion logs that the server cannot use a companion.
func (s *Server) warnCompanion(sess *transport.Session, k *companion, err error) {
	step, _ := k.step.Load().(string)
	fault := transport.Classify(sess.Target, transport.AtStep(step, k.queue.Name, err))
	s.logs.companion.of(s.cfg.logger).Warn("a queue cannot be used, the server does without it",
		zap.String("queue", k.queue.Name), zap.String("step", step), zap.String("fault", string(fault.Kind)), zap.Error(fault))
}

// returnsCount reports whether the return of a response to ReplyTo is counted. RabbitMQ
// returns every mandatory message to an address of direct reply-to. A returned response to a
// queue of this server would be mistaken for a copy of a request.
func (s *Server) returnsCount(replyTo string) bool {
	return !isDirectAddress(replyTo) && !s.cfg.queue.owns(replyTo)
}

// owns reports whether a queue is the request queue or one of its companions.
func (q Queue) owns(name string) bool {
	companion, found := strings.CutPrefix(name, q.Name)
	if !found {
		return false
	}
	switch companion {
	case retrySuffix, deadSuffix:
		return true
	default:
		_, shard := shardNumber(strings.TrimSuffix(companion, batchSuffix))
		return shard
	}
}

// returnedMessage handles a message which the broker has returned: a copy of a request, if the
// routing key is a queue of this server, otherwise one or more responses.
func (s *Server) returnedMessage(sess *transport.Session, companions *companionSet, r *amqp.Return) {
	switch {
	case r.ContentType == wire.ContentTypeFrames:
		s.returnedFrames(r)
	case s.cfg.queue.owns(r.RoutingKey):
		s.copyReturned(sess, companions, r)
	case r.ContentType == wire.ContentTypeResponses:
		var room [64][]byte
		records, _ := wire.AppendRecords(room[:0], r.Body) // no error: this package has encoded the records
		s.counts.unroutable.Add(uint64(len(records)))
	default:
		s.counts.unroutable.Add(1)
	}
}

// copyReturned handles a returned copy of a request: its queue is missing.
func (s *Server) copyReturned(sess *transport.Session, all *companionSet, r *amqp.Return) {
	k := all.named(r.RoutingKey)
	if k == nil {
		sess.Fail(errQueueMissing)
		return
	}
	s.returned.add(r.RoutingKey, r.CorrelationId, r.MessageId)
	select {
	case k.missing <- struct{}{}:
	default:
	}
}

// foundType returns the type of an adopted queue, or wanted if the type is unknown.
func foundType(f transport.FoundQueue, wanted QueueType) QueueType {
	switch t, _ := f.Arguments[amqp.QueueTypeArg].(string); t {
	case string(QueueQuorum):
		return QueueQuorum
	case string(QueueClassic):
		return QueueClassic
	default:
		return wanted
	}
}

// againstBatches returns the name of a queue argument whose effect batches would escape,
// because they use another queue; "" if there is no such argument.
func againstBatches(f transport.FoundQueue, wanted Queue) string {
	for name, value := range f.Arguments {
		switch name {
		case amqp.QueueTypeArg, "x-queue-mode", "x-queue-version", "x-queue-master-locator", "x-queue-leader-locator",
			"x-quorum-initial-group-size", "x-quorum-target-group-size", amqp.QueueOverflowArg, amqp.QueueTTLArg, "x-delivery-limit":
			continue // no effect on the handling of a request
		case argMaxPriority:
			continue // the server orders requests by priority, in batches or not
		case amqp.SingleActiveConsumerArg:
			if value == false {
				continue
			}
		case amqp.QueueMaxLenArg, amqp.QueueMaxLenBytesArg:
			if fmt.Sprint(wanted.arguments()[name]) == fmt.Sprint(value) {
				continue // the batch queue has the same limit
			}
		}
		return name
	}
	return ""
}
