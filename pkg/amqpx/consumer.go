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

// consumer takes requests off the server's queues for one session and acknowledges them.
type consumer struct {
	server *Server
	sess   *session
	// requests, batches and retries are its subscriptions; the last two may be missing.
	requests, batches, retries subscription
	acks                       chan *job // answered, to be acknowledged
	open                       openTags  // of acknowledge
	// silent is closed when the broker hands out nothing more to this consumer.
	silent chan struct{}
}

// subscription is one queue that a consumer takes from.
type subscription struct {
	queue      string
	tag        string
	deliveries <-chan amqp.Delivery // nil without a subscription, and when it has ended
}

func newConsumer(s *Server, sess *session) *consumer {
	return &consumer{
		server: s,
		sess:   sess,
		acks:   make(chan *job, 2*s.cfg.prefetch+retryPrefetch),
		silent: make(chan struct{}),
	}
}

// start begins to consume; its goroutines run until the session ends.
func (c *consumer) start() (err error) {
	cfg := c.server.cfg
	if c.requests, err = c.subscribe(cfg.queue.Name, cfg.prefetch); err != nil {
		return err
	}
	if cfg.batch == BatchAuto {
		if c.batches, err = c.subscribe(cfg.queue.batchQueue().Name, cfg.prefetch); err != nil {
			return err
		}
	}
	if cfg.deliveryLimit > 0 {
		if c.retries, err = c.subscribe(cfg.queue.retryQueue().Name, retryPrefetch); err != nil {
			return err
		}
	}
	c.run(c.receive)
	if c.batches.deliveries != nil {
		c.run(c.unpackAll)
	}
	c.sess.run(c.acknowledge)
	return nil
}

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

// subscribe begins one subscription. The prefetch holds for those that begin after
// it (https://www.rabbitmq.com/docs/consumer-prefetch).
func (c *consumer) subscribe(queue string, prefetch int) (sub subscription, err error) {
	if err := c.sess.subCh.Qos(prefetch, 0, false); err != nil {
		return sub, err
	}
	sub = subscription{queue: queue, tag: c.server.cfg.name + "-" + uuid.NewString()}
	sub.deliveries, err = c.sess.subCh.Consume(queue, sub.tag, false, false, false, false, nil)
	return sub, err
}

// receive hands requests to the workers. When the server drains it ends the
// subscriptions and takes what was on its way.
func (c *consumer) receive() {
	draining := c.server.draining
	for c.requests.deliveries != nil || c.retries.deliveries != nil {
		select {
		case d, ok := <-c.requests.deliveries:
			c.received(&c.requests, d, ok)
		case d, ok := <-c.retries.deliveries:
			c.received(&c.retries, d, ok)
		case <-draining:
			draining = nil
			if err := c.cancel(); err != nil {
				c.sess.fail(err)
				return
			}
			close(c.silent)
		case <-c.sess.done:
			if c.sess.canceled(c.requests.tag) {
				c.takeRest()
			}
			return
		}
	}
}

// received takes a delivery, or notes the end of its subscription. While the server
// drains, that is what it asked for.
func (c *consumer) received(sub *subscription, d amqp.Delivery, ok bool) {
	if ok {
		c.take(d, sub.queue)
		return
	}
	sub.deliveries = nil
	if !c.server.isDraining() {
		c.sess.consumerEnded(sub.tag)
	}
}

// takeRest takes what the broker had sent before it deleted the queue. The protocol
// library closes the channel of a consumer that was cancelled.
func (c *consumer) takeRest() {
	if c.requests.deliveries == nil {
		return
	}
	for d := range c.requests.deliveries {
		c.take(d, c.requests.queue)
	}
}

func (c *consumer) cancel() error {
	for _, sub := range []*subscription{&c.requests, &c.batches, &c.retries} {
		if sub.tag == "" {
			continue
		}
		if err := c.sess.subCh.Cancel(sub.tag, false); err != nil {
			return err
		}
	}
	return nil
}

// take makes a job of a delivery.
func (c *consumer) take(d amqp.Delivery, queue string) {
	c.server.counts.requests.Add(1)
	c.server.track.add(1)
	c.handOn(&job{from: c, queue: queue, delivery: &d, arrived: time.Now()})
}

// handOn gives a job to the workers.
func (c *consumer) handOn(j *job) {
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
			case !c.mayWait(settled):
				pause.Stop()
				settled = c.ackAll(settled)
			case first:
				pause.Reset(c.server.cfg.ackPause)
			}
		case <-pause.C:
			settled = c.ackAll(settled)
		case <-c.sess.done:
			for _, j := range settled {
				j.drop()
			}
			c.dropAcks()
			return
		}
	}
}

// mayWait reports whether the acknowledgement of settled requests may come later: few of
// the prefetch are taken up, nothing depends on it, and no drain waits.
func (c *consumer) mayWait(settled []*job) bool {
	return c.server.cfg.ackPause > 0 && len(settled) < c.server.cfg.prefetch/ackShare &&
		!slices.ContainsFunc(settled, (*job).needsSync) && !c.server.isDraining()
}

// ackAll acknowledges settled requests and returns an empty list.
func (c *consumer) ackAll(jobs []*job) []*job {
	if len(jobs) == 0 {
		return jobs
	}
	tags := make([]uint64, len(jobs))
	for i, j := range jobs {
		tags[i] = j.delivery.DeliveryTag
	}
	slices.Sort(tags)
	c.ackTags(tags)
	synced := !slices.ContainsFunc(jobs, (*job).needsSync) || c.sync()
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
		if !j.refused {
			j.over()
		}
	}
	clear(jobs)
	return jobs[:0]
}

// sync waits until the broker has processed the acknowledgements.
func (c *consumer) sync() bool {
	err := c.sess.subCh.sync()
	if err != nil {
		c.sess.fail(err)
	}
	return err == nil
}

// ackTags acknowledges settled requests; tags is in order.
func (c *consumer) ackTags(tags []uint64) {
	if len(tags) > 1 {
		c.sess.sub.hold()
		defer c.sess.sub.release()
	}
	together, single := c.open.settle(tags)
	if len(together) > 0 {
		c.ack(together[len(together)-1], true)
	}
	for _, tag := range single {
		c.ack(tag, false)
	}
}

func (c *consumer) ack(tag uint64, allBefore bool) {
	if err := c.sess.subCh.Ack(tag, allBefore); err != nil {
		c.sess.fail(err)
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
