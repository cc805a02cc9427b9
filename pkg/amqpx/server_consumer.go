package amqpx

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// retryPrefetch is the prefetch of the retry queue: 1, so that a request which kills a server
// affects no other request.
const retryPrefetch = 1

const (
	// ackPause is how long completed requests wait before they are acknowledged together. If
	// the server dies meanwhile, the broker delivers them again.
	ackPause = 2 * time.Millisecond
	// ackShare bounds the requests that wait for ackPause: a share 1/ackShare of the prefetch.
	ackShare = 4
)

// consumer consumes one of the server's queues during one session, and acknowledges the
// requests.
type consumer struct {
	server *Server
	sess   *transport.Session
	ch     transport.Channel // the channel of the subscription
	main   *consumer         // of a companion, the consumer of the request queue; else nil
	// home is the queue to which requests are returned: a shard, also for its batch queue. requests
	// is the consumer of home; nil if there is none in this session.
	home     string
	requests func() *consumer
	shard    int // of home; noShard for the retry queue
	// unpacks is true if the consumer takes batches.
	unpacks  bool
	all      bool // of the calls to all servers
	prefetch int
	sub      subscription
	acks     chan *delivery // deliveries whose messages are to be acknowledged, requeued or rejected
	unread   chan *delivery // deliveries without bodies, to be requeued
	open     unackedTags    // used only by acknowledge
	// departure tells the consumers of a session that the server leaves the node: they end as for a
	// drain, and subscribe again if the server stays after all.
	departure *departure
	// silent is closed when the broker delivers nothing more to this consumer, until it subscribes again.
	silent atomic.Pointer[chan struct{}]
	// done is closed when nothing can be acknowledged any more: the session has ended, or the
	// channel of a companion.
	done <-chan struct{}
	// failed receives a token when a companion's channel must be closed.
	failed chan struct{}
	// canceled is closed when the broker has ended a companion's subscription.
	canceled chan struct{}
}

// subscription is a consumer's subscription to a queue.
type subscription struct {
	queue      string
	tag        string
	counted    bool                 // transport.BytesInHand counts the bodies
	deliveries <-chan amqp.Delivery // closed when the subscription has ended
}

// newConsumer returns the consumer of the request queue.
func newConsumer(s *Server, sess *transport.Session) *consumer {
	prefetch := s.cfg.shardPrefetch()
	c := &consumer{
		server: s, sess: sess, ch: sess.SubCh, done: sess.Done, home: s.cfg.queue.Name, prefetch: prefetch,
		acks:      make(chan *delivery, 2*prefetch),
		unread:    make(chan *delivery, 2*prefetch),
		departure: &departure{next: newLeaving()},
	}
	c.listen()
	c.requests = func() *consumer { return c }
	sess.Resubscribes.Store(s.cfg.shards > 1)
	return c
}

// departure holds the attempts of a server to leave the node of a session, one after the other. Safe
// for concurrent use.
type departure struct {
	mu   sync.Mutex
	next *leaving // the attempt that is under way or, before it, the next one
}

// leaving is an attempt to leave a node.
type leaving struct {
	begun   chan struct{} // closed when the subscriptions end
	revoked chan struct{} // closed when the server stays
}

func newLeaving() *leaving { return &leaving{begun: make(chan struct{}), revoked: make(chan struct{})} }

// now returns the attempt that is under way, or else the next one.
func (d *departure) now() *leaving {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.next
}

// begin begins an attempt.
func (d *departure) begin() *leaving {
	l := d.now()
	close(l.begun)
	return l
}

// revoke ends the attempt l: the consumers subscribe again.
func (d *departure) revoke(l *leaving) {
	d.mu.Lock()
	d.next = newLeaving()
	d.mu.Unlock()
	close(l.revoked)
}

// hasBegun reports whether the subscriptions end because of this attempt.
func (l *leaving) hasBegun() bool {
	select {
	case <-l.begun:
		return true
	default:
		return false
	}
}

// listen makes the channel that tells of the end of the next subscription.
func (c *consumer) listen() {
	silent := make(chan struct{})
	c.silent.Store(&silent)
}

// silence returns a channel that is closed when the broker delivers nothing more to this consumer.
func (c *consumer) silence() <-chan struct{} { return *c.silent.Load() }

// start starts to consume. The goroutines run until the session ends.
func (c *consumer) start(queue string) error {
	if err := c.subscribe(queue); err != nil {
		return err
	}
	c.run(c.receive)
	c.sess.Run(c.acknowledge)
	c.sess.Run(c.returnUnread)
	return nil
}

// isOver reports whether acknowledgements are no longer possible.
func (c *consumer) isOver() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// fail ends the session, or only the channel of a companion.
func (c *consumer) fail(err error) {
	if c.main == nil {
		c.sess.Fail(err)
		return
	}
	select {
	case c.failed <- struct{}{}:
	default:
	}
}

// subscriptionEnded is called when deliveries end without a cancellation by this server. It reports
// whether the consumer has subscribed again.
func (c *consumer) subscriptionEnded() bool {
	switch {
	case c.main != nil:
		close(c.canceled)
	case c.sess.Resubscribes.Load() && !c.ch.IsClosed():
		return c.resubscribe()
	default:
		c.sess.ConsumerEnded(c.sub.tag)
	}
	return false
}

// resubscribe declares the request queue again and consumes it again, for a server with other shards.
// The session ends if this fails.
func (c *consumer) resubscribe() bool {
	s := c.server
	s.logs.companion.of(s.cfg.logger).Warn("the broker ended a subscription, the server consumes the queue again", zap.String("queue", c.home))
	if _, err := s.cfg.queue.declareOrAdopt(c.sess.Sub, func(reason string) { s.warnAdopted(s.cfg.queue, reason, "") }); err != nil {
		c.sess.Fail(err)
		return false
	}
	s.bindOrWarn(c.sess, c.home)
	if err := c.subscribe(c.home); err != nil {
		c.sess.Fail(err)
		return false
	}
	return true
}

// queueIsGone reports whether the broker ended the session by ending the subscription, and
// therefore does not deliver the requests again.
func (c *consumer) queueIsGone() bool {
	return c.main == nil && !c.sess.Resubscribes.Load() && c.sess.Canceled(c.sub.tag)
}

// run starts a goroutine for deliveries, which a drain waits for.
func (c *consumer) run(f func()) {
	c.server.track.Add(1)
	c.sess.Run(func() {
		defer c.server.track.Done()
		f()
	})
}

// subscribe starts the subscription. The prefetch applies to subscriptions which start after
// basic.qos (https://www.rabbitmq.com/docs/consumer-prefetch). The consumer's tag tells the
// frame reader whether to count bodies (transport.KindOfConsumer): bodies of the retry queue are not
// counted.
func (c *consumer) subscribe(queue string) (err error) {
	if err := c.ch.Qos(c.prefetch, 0, false); err != nil {
		return err
	}
	c.sub = subscription{queue: queue, tag: c.server.cfg.name + "-" + uuid.NewString(), counted: true}
	if queue == c.server.cfg.queue.retryQueue().Name {
		c.sub.tag, c.sub.counted = c.sub.tag+transport.RetryTagSuffix, false
	}
	if c.main == nil {
		c.sess.Consumed.Store(&queue)
	}
	c.sub.deliveries, err = c.ch.Consume(queue, c.sub.tag, false, false, false, false, nil)
	return transport.AtStep(transport.StepConsume, queue, err)
}

// receive passes requests to the workers. When the server drains or leaves the node, receive ends
// the subscription and handles the remaining deliveries.
func (c *consumer) receive() {
	defer c.releaseRest()
	leave := c.departure.now()
	draining, leaving := c.server.draining, leave.begun
	for {
		select {
		case d, ok := <-c.sub.deliveries:
			switch {
			case ok:
				c.handleInTurn(&d)
				continue
			case !c.server.isDraining() && !leave.hasBegun():
				if c.subscriptionEnded() {
					continue
				}
				return
			case draining != nil && (c.main != nil || c.sess.Resubscribes.Load()):
				close(*c.silent.Load()) // the broker has ended the subscription first
			}
			if !leave.hasBegun() || !c.subscribesAgain(leave) {
				return
			}
			leave = c.departure.now()
			draining, leaving = c.server.draining, leave.begun
		case <-draining:
			draining, leaving = nil, nil
			if !c.cancel() {
				return
			}
		case <-leaving:
			draining, leaving = nil, nil
			if !c.cancel() {
				return
			}
		case <-c.done:
			if c.queueIsGone() { // earlier deliveries; the channel is closed after them
				for d := range c.sub.deliveries {
					c.handle(&d)
				}
			}
			return
		}
	}
}

// handleInTurn handles one message. While many requests wait, a batch waits too. One consumer at a
// time waits for room, because the room has one token, and so that the batches of several batch
// queues do not enter together.
func (c *consumer) handleInTurn(message *amqp.Delivery) {
	s := c.server
	if !c.unpacks {
		c.handle(message)
		return
	}
	select {
	case s.unpacking <- struct{}{}:
		defer func() { <-s.unpacking }()
	case <-s.draining:
	case <-c.done:
	}
	for !s.hasRoom() && !s.isDraining() && !c.isOver() {
		select {
		case <-s.room():
		case <-s.draining:
		case <-c.done:
		}
	}
	c.handle(message)
}

// cancel ends the subscription. It returns false if the broker refused this.
func (c *consumer) cancel() bool {
	if err := c.ch.Cancel(c.sub.tag, false); err != nil {
		c.fail(err)
		return false
	}
	close(*c.silent.Load())
	return true
}

// subscribesAgain waits until the server, which was about to leave its node, stays, and subscribes
// again. It returns false if the session ends or the server drains. The server does not wait for this
// goroutine meanwhile.
func (c *consumer) subscribesAgain(leave *leaving) bool {
	s, stays := c.server, false
	s.track.Done()
	select {
	case <-leave.revoked:
		stays = true
	case <-s.draining:
	case <-c.done:
	}
	s.track.Add(1)
	if !stays {
		return false
	}
	c.listen()
	if err := c.subscribe(c.sub.queue); err != nil {
		c.fail(err)
		return false
	}
	return true
}

// handle handles one message. A message in the batch queue that is not a batch is handled as a
// single request, which is returned to the request queue.
func (c *consumer) handle(message *amqp.Delivery) {
	held := c.claim(message)
	switch {
	case !c.unpacks:
		c.accept(message, c.sub.queue, held)
	case message.ContentType == wire.ContentTypeRequests:
		c.unpack(message, held)
	default:
		c.accept(message, c.home, held)
	}
}

// claim transfers the count of a delivery's body from the connection to the delivery, which
// releases the count. It returns the counted bytes.
func (c *consumer) claim(d *amqp.Delivery) int64 {
	if !c.sub.counted || len(d.Body) == 0 {
		return 0
	}
	return c.sess.Sub.Claim(len(d.Body))
}

// releaseRest releases the bodies that are left in a companion's channel when the channel
// ends. When a session ends, the bodies are released with the connection.
func (c *consumer) releaseRest() {
	for c.main != nil && c.isOver() {
		select {
		case d, ok := <-c.sub.deliveries:
			if !ok {
				return
			}
			c.server.cfg.inHand.Release(c.claim(&d))
		case <-c.sess.Done:
			return
		}
	}
}

// submit passes a request to the workers, unless the request is refused.
func (c *consumer) submit(req *inboundRequest) {
	s, message := c.server, &req.delivery.message
	if s.callers != nil && !s.admit(req, s.callerOf(message), len(message.Body)) {
		return
	}
	if !s.shed(req) {
		s.putWaiting(req.priority(), req)
	}
}

// acknowledge acknowledges completed requests late and together, because each acknowledgement
// costs a write here and a wake-up in the broker. If anything depends on an acknowledgement,
// it is sent at once.
func (c *consumer) acknowledge() {
	var settled []*delivery
	pause := xsync.StoppedTimer()
	defer pause.Stop()
	for {
		select {
		case d := <-c.acks:
			first := len(settled) == 0
			settled = append(settled, d)
			for more := len(c.acks); more > 0; more-- {
				settled = append(settled, <-c.acks)
			}
			switch {
			case !c.canDelayAck(settled):
				pause.Stop()
				settled = c.ackAll(settled)
			case first:
				pause.Reset(c.server.cfg.ackPause)
			}
		case <-pause.C:
			settled = c.ackAll(settled)
		case <-c.done:
			for _, d := range settled {
				d.drop()
			}
			c.dropAcks()
			c.server.unpark(c)
			if c.server.callers != nil {
				c.server.callers.releaseOf(c)
			}
			return
		}
	}
}

// canDelayAck reports whether the acknowledgement of completed requests may wait: they use a
// small part of the prefetch, nothing depends on the acknowledgement, and the server does not
// drain.
func (c *consumer) canDelayAck(settled []*delivery) bool {
	return c.server.cfg.ackPause > 0 && len(settled) < c.server.cfg.shardPrefetch()/ackShare &&
		!slices.ContainsFunc(settled, (*delivery).needsAckBarrier) && !c.server.isDraining()
}

// ackAll acknowledges, requeues or rejects messages and returns an empty list.
func (c *consumer) ackAll(deliveries []*delivery) []*delivery {
	if len(deliveries) == 0 {
		return deliveries
	}
	tags := make([]uint64, 0, len(deliveries))
	for _, d := range deliveries {
		if d.disposition == disposeAck {
			tags = append(tags, d.message.DeliveryTag)
		} else {
			c.nack(d)
		}
	}
	slices.Sort(tags)
	c.ackTags(tags)
	synced := !slices.ContainsFunc(deliveries, (*delivery).needsAckBarrier) || c.sync()
	for _, d := range deliveries {
		if d.disposition == disposeRequeue {
			d.drop()
			continue
		}
		for _, refusal := range d.afterAck {
			if !synced { // the broker may or may not deliver the request again; the caller must not wait
				refusal.response.Failure.Ran = wire.RanUnknown
			}
			refusal.send()
		}
		d.end()
	}
	clear(deliveries)
	return deliveries[:0]
}

// sync waits until the broker has processed the acknowledgements; false means that the channel
// has failed.
func (c *consumer) sync() bool {
	err := c.ch.Barrier()
	if err != nil {
		c.fail(err)
	}
	return err == nil
}

// nack requeues or rejects a message.
func (c *consumer) nack(d *delivery) {
	c.open.ack([]uint64{d.message.DeliveryTag})
	if err := d.message.Nack(false, d.disposition == disposeRequeue); err != nil {
		c.fail(err)
	}
}

// ackTags acknowledges requests; tags is in ascending order.
func (c *consumer) ackTags(tags []uint64) {
	if len(tags) > 1 {
		c.sess.Sub.Cork()
		defer c.sess.Sub.Uncork()
	}
	together, single := c.open.ack(tags)
	if len(together) > 0 {
		c.ack(together[len(together)-1], true)
	}
	for _, tag := range single {
		c.ack(tag, false)
	}
}

func (c *consumer) ack(tag uint64, allBefore bool) {
	if err := c.ch.Ack(tag, allBefore); err != nil {
		c.fail(err)
	}
}

// dropAcks drops the deliveries that can no longer be acknowledged.
func (c *consumer) dropAcks() {
	for {
		select {
		case d := <-c.acks:
			d.drop()
		default:
			return
		}
	}
}

// unackedTags decides which deliveries of a channel can be acknowledged together. A basic.ack
// with the multiple flag acknowledges a delivery and all earlier ones, which is wrong while an
// earlier request is in progress. unackedTags holds at most a prefetch of tags. The zero value
// is for a new channel, whose delivery tags begin at 1.
type unackedTags struct {
	highest uint64   // the highest acknowledged tag
	gaps    []uint64 // the lower tags without acknowledgement, in order
}

// ack records tags, in ascending order, as acknowledged. The tags in together can be
// acknowledged by one frame with the last tag, the tags in single only one by one.
func (o *unackedTags) ack(tags []uint64) (together, single []uint64) {
	for _, tag := range tags {
		if tag <= o.highest {
			if i, ok := slices.BinarySearch(o.gaps, tag); ok {
				o.gaps = slices.Delete(o.gaps, i, i+1)
			}
			continue
		}
		for gap := o.highest + 1; gap < tag; gap++ {
			o.gaps = append(o.gaps, gap)
		}
		o.highest = tag
	}
	n := len(tags)
	if len(o.gaps) > 0 {
		n, _ = slices.BinarySearch(tags, o.gaps[0])
	}
	return tags[:n], tags[n:]
}
