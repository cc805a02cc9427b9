package amqpx

import (
	"slices"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// retryPrefetch is how many requests of the retry queue a server has in hand: one,
// so that one that kills its server takes no other with it.
const retryPrefetch = 1

const (
	// ackPause is how long settled requests wait for others before they are
	// acknowledged. A server that dies meanwhile leaves them to be handed out again.
	ackPause = 2 * time.Millisecond
	// ackShare is the share of the prefetch that may wait so.
	ackShare = 4
)

// consumer takes requests off one of the server's queues for one session and acknowledges
// them.
type consumer struct {
	server *Server
	sess   *session
	ch     channel   // that it consumes on
	main   *consumer // of a companion that of the request queue; nil of that one itself
	// unpacks says that it takes batches.
	unpacks  bool
	prefetch int
	sub      subscription
	acks     chan *job   // done with, for the broker to be told
	unread   chan *job   // without their bodies, to be given back
	open     unackedTags // of acknowledge
	// silent is closed when the broker hands out nothing more to this consumer.
	silent chan struct{}
	// done is closed when nothing can be acknowledged any more: the session has ended, or
	// the channel of a companion.
	done <-chan struct{}
	// failed has a token when a companion's channel is to be closed.
	failed chan struct{}
	// canceled is closed when the broker has ended a companion's subscription.
	canceled chan struct{}
}

// subscription is the queue that a consumer takes from.
type subscription struct {
	queue      string
	tag        string
	counted    bool                 // its bodies are, see bytesInHand
	deliveries <-chan amqp.Delivery // nil when it has ended
}

// newConsumer returns the consumer of the request queue.
func newConsumer(s *Server, sess *session) *consumer {
	return &consumer{
		server: s, sess: sess, ch: sess.subCh, done: sess.done, prefetch: s.cfg.prefetch,
		acks:   make(chan *job, 2*s.cfg.prefetch),
		unread: make(chan *job, 2*s.cfg.prefetch),
		silent: make(chan struct{}),
	}
}

// start begins to consume; its goroutines run until the session ends.
func (c *consumer) start(queue string) error {
	if err := c.subscribe(queue); err != nil {
		return err
	}
	c.run(c.receive)
	c.sess.run(c.acknowledge)
	c.sess.run(c.returnUnread)
	return nil
}

// isOver reports whether nothing can be acknowledged any more.
func (c *consumer) isOver() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// fail ends the session; of a companion only its channel.
func (c *consumer) fail(err error) {
	if c.main == nil {
		c.sess.fail(err)
		return
	}
	select {
	case c.failed <- struct{}{}:
	default:
	}
}

// subscriptionEnded is called when deliveries end that were not cancelled here.
func (c *consumer) subscriptionEnded() {
	if c.main == nil {
		c.sess.consumerEnded(c.sub.tag)
		return
	}
	close(c.canceled)
}

// queueIsGone reports whether the consumer is over because the broker ended its
// subscription, so that it does not hand the requests out again.
func (c *consumer) queueIsGone() bool { return c.main == nil && c.sess.canceled(c.sub.tag) }

// run starts a goroutine that hands out requests, which a drain waits for. It never
// counts as a request, not even for a moment.
func (c *consumer) run(f func()) {
	c.server.consumers.Add(1)
	c.server.track.add(1)
	c.sess.run(func() {
		defer c.server.consumers.Add(-1)
		defer c.server.track.done()
		f()
	})
}

// subscribe begins the subscription. The prefetch holds for those that begin after
// it (https://www.rabbitmq.com/docs/consumer-prefetch). The consumer's tag tells the frame
// reader whether bodies are counted (kindOfConsumer): those of the retry queue are not.
func (c *consumer) subscribe(queue string) (err error) {
	if err := c.ch.Qos(c.prefetch, 0, false); err != nil {
		return err
	}
	c.sub = subscription{queue: queue, tag: c.server.cfg.name + "-" + uuid.NewString(), counted: true}
	if queue == c.server.cfg.queue.retryQueue().Name {
		c.sub.tag, c.sub.counted = c.sub.tag+retrySuffix, false
	}
	if c.main == nil {
		c.sess.consumed.Store(&queue)
	}
	c.sub.deliveries, err = c.ch.Consume(queue, c.sub.tag, false, false, false, false, nil)
	return atStep(stepConsume, queue, err)
}

// receive hands requests to the workers. When the server drains it ends the
// subscription and takes what was on its way. While many jobs wait it takes no batch.
func (c *consumer) receive() {
	defer c.releaseRest()
	draining := c.server.draining
	for {
		deliveries, room := c.sub.deliveries, (<-chan struct{})(nil)
		if c.unpacks && !c.server.jobs.hasRoom() {
			deliveries, room = nil, c.server.jobs.room
		}
		select {
		case d, ok := <-deliveries:
			if !ok {
				if !c.server.isDraining() {
					c.subscriptionEnded()
				}
				return
			}
			c.handle(&d)
		case <-room:
		case <-draining:
			draining = nil
			if err := c.ch.Cancel(c.sub.tag, false); err != nil {
				c.fail(err)
				return
			}
			close(c.silent)
		case <-c.done:
			if c.queueIsGone() { // what the broker had sent before; the library closes the channel
				for d := range c.sub.deliveries {
					c.handle(&d)
				}
			}
			return
		}
	}
}

// handle takes one delivery.
func (c *consumer) handle(d *amqp.Delivery) {
	if c.unpacks {
		c.unpack(d)
		return
	}
	c.accept(*d, c.sub.queue, c.claim(d))
}

// claim takes over the count of a delivery's body, which its job releases.
func (c *consumer) claim(d *amqp.Delivery) int64 {
	if !c.sub.counted || len(d.Body) == 0 {
		return 0
	}
	return c.sess.sub.claim(len(d.Body))
}

// releaseRest releases the bodies that the channel of a companion still had when it ended;
// those of a session that ends are released with its connection.
func (c *consumer) releaseRest() {
	for c.main != nil && c.isOver() {
		select {
		case d, ok := <-c.sub.deliveries:
			if !ok {
				return
			}
			c.server.cfg.inHand.release(c.claim(&d))
		case <-c.sess.done:
			return
		}
	}
}

// accept makes a job of a delivery, of whose body held bytes are counted.
func (c *consumer) accept(d amqp.Delivery, queue string, held int64) {
	c.server.counts.requests.Add(1)
	c.server.track.add(1)
	j := &job{from: c, queue: queue, delivery: &d, arrived: time.Now(), held: held}
	if len(d.Body) > 0 || len(d.Headers) == 0 || !c.takeUnread(j) {
		c.submit(j)
	}
}

// submit gives a job to the workers.
func (c *consumer) submit(j *job) {
	if !c.server.shed(j) {
		c.server.jobs.put(j)
	}
}

// acknowledge acknowledges settled requests, late and many at once: each acknowledgement
// is a write for us and a wake-up for the broker, and nobody waits for it. Where
// somebody does, it is done at once.
func (c *consumer) acknowledge() {
	var settled []*job
	pause := time.NewTimer(0)
	defer pause.Stop()
	<-pause.C
	for {
		select {
		case j := <-c.acks:
			first := len(settled) == 0
			settled = append(settled, j)
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
			for _, j := range settled {
				j.drop()
			}
			c.dropAcks()
			return
		}
	}
}

// canDelayAck reports whether the acknowledgement of settled requests may come later: few of
// the prefetch are taken up, nothing depends on it, and no drain waits.
func (c *consumer) canDelayAck(settled []*job) bool {
	return c.server.cfg.ackPause > 0 && len(settled) < c.server.cfg.prefetch/ackShare &&
		!slices.ContainsFunc(settled, (*job).needsAckBarrier) && !c.server.isDraining()
}

// ackAll acknowledges settled requests and returns an empty list.
func (c *consumer) ackAll(jobs []*job) []*job {
	if len(jobs) == 0 {
		return jobs
	}
	tags := make([]uint64, 0, len(jobs))
	for _, j := range jobs {
		if j.disposition == disposeAck {
			tags = append(tags, j.delivery.DeliveryTag)
		} else {
			c.nack(j)
		}
	}
	slices.Sort(tags)
	c.ackTags(tags)
	synced := !slices.ContainsFunc(jobs, (*job).needsAckBarrier) || c.sync()
	for _, j := range jobs {
		if !synced {
			// Whether the request comes again, nobody here knows; its caller must not wait.
			for _, refusal := range j.refusals {
				refusal.reply.failed.outcome = MayHaveRun
				refusal.send()
			}
			j.refusals = nil
			j.drop()
			continue
		}
		for _, refusal := range j.refusals {
			refusal.send()
		}
		switch {
		case j.disposition == disposeRequeue:
			j.drop()
		case !j.refused:
			j.finish()
		}
	}
	clear(jobs)
	return jobs[:0]
}

// sync waits until the broker has processed the acknowledgements.
func (c *consumer) sync() bool {
	err := c.ch.barrier()
	if err != nil {
		c.fail(err)
	}
	return err == nil
}

// nack gives a message back to its queue, or rejects it.
func (c *consumer) nack(j *job) {
	c.open.ack([]uint64{j.delivery.DeliveryTag})
	if err := j.delivery.Nack(false, j.disposition == disposeRequeue); err != nil {
		c.fail(err)
	}
}

// ackTags acknowledges settled requests; tags is in order.
func (c *consumer) ackTags(tags []uint64) {
	if len(tags) > 1 {
		c.sess.sub.cork()
		defer c.sess.sub.uncork()
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

// dropAcks forgets what could not be acknowledged any more.
func (c *consumer) dropAcks() {
	for {
		select {
		case j := <-c.acks:
			j.drop()
		default:
			return
		}
	}
}

// unackedTags tells which requests of one channel may be acknowledged together: AMQP
// acknowledges "this one and all before it" in one frame, which is wrong while one
// before it is still open. It holds at most a prefetch of tags. Its zero value is
// that of a new channel, whose delivery tags begin at 1.
type unackedTags struct {
	highest uint64   // the highest tag that was settled
	gaps    []uint64 // the tags below it that were not, in order
}

// ack notes tags, in order, as settled. All of together may be acknowledged by
// its last one, those of single only one by one.
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
