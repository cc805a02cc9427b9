package amqpx

import (
	"runtime"
	"slices"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// retryPrefetch is how many requests of the retry queue a server has in hand: one,
// so that one that kills its server takes no other with it.
const retryPrefetch = 1

// consumer takes requests off the queue, and off the retry queue if there is one, for
// one session and acknowledges them.
type consumer struct {
	server *Server
	sess   *session
	tags   []string  // of its one or two subscriptions
	acks   chan *job // answered, to be acknowledged
	open   openTags  // of acknowledge
	// silent is closed when the broker hands out nothing more to this consumer.
	silent chan struct{}
}

// job is one request on its way through a server.
type job struct {
	from     *consumer
	queue    string // it came from
	delivery amqp.Delivery
	arrived  time.Time
	in       *incoming // nil until it was decoded
	moving   bool      // a counted copy of it is on its way, see awaitMoves
	refusal  *answer   // to be sent when the request is acknowledged
}

// over ends a job: nothing more is done about its request here.
func (j *job) over() {
	s := j.from.server
	if j.moving {
		s.moves.done()
	}
	s.track.done()
}

// comesAgain reports whether the broker hands the job's request out again anyway:
// its session has ended, and its queue was not deleted.
func (j *job) comesAgain() bool {
	return j.from.sess.ended() && !j.from.sess.canceled(j.delivery.ConsumerTag)
}

func newConsumer(s *Server, sess *session) *consumer {
	return &consumer{
		server: s,
		sess:   sess,
		acks:   make(chan *job, s.cfg.prefetch+retryPrefetch),
		silent: make(chan struct{}),
	}
}

// start begins to consume; two goroutines run until the session ends.
func (c *consumer) start() error {
	cfg := c.server.cfg
	requests, err := c.subscribe(cfg.queue.Name, cfg.prefetch)
	if err != nil {
		return err
	}
	var retries <-chan amqp.Delivery // never ready without a retry queue
	if cfg.deliveryLimit > 0 {
		if retries, err = c.subscribe(cfg.queue.retryQueue().Name, retryPrefetch); err != nil {
			return err
		}
	}
	c.server.track.add()
	c.server.consumers.Add(1)
	c.sess.run(func() {
		defer c.server.track.done()
		defer c.server.consumers.Add(-1)
		c.receive(requests, retries)
	})
	c.sess.run(c.acknowledge)
	return nil
}

// subscribe begins one subscription. The prefetch holds for those that begin after
// it (https://www.rabbitmq.com/docs/consumer-prefetch).
func (c *consumer) subscribe(queue string, prefetch int) (<-chan amqp.Delivery, error) {
	if err := c.sess.subCh.Qos(prefetch, 0, false); err != nil {
		return nil, err
	}
	tag := c.server.cfg.name + "-" + uuid.NewString()
	c.tags = append(c.tags, tag)
	return c.sess.subCh.Consume(queue, tag, false, false, false, false, nil)
}

// receive hands requests to the workers. When the server drains it ends the
// subscriptions and takes what was on its way.
func (c *consumer) receive(requests, retries <-chan amqp.Delivery) {
	draining := c.server.draining
	ended := func(tag string) {
		if draining != nil {
			c.sess.consumerEnded(tag)
		}
	}
	for requests != nil || retries != nil {
		select {
		case d, ok := <-requests:
			if !ok {
				ended(c.tags[0])
				requests = nil
				continue
			}
			c.take(d, c.server.cfg.queue.Name)
		case d, ok := <-retries:
			if !ok {
				ended(c.tags[1])
				retries = nil
				continue
			}
			c.take(d, c.server.cfg.queue.retryQueue().Name)
		case <-draining:
			draining = nil // from here on, the end of a subscription is what we asked for
			if err := c.cancel(); err != nil {
				c.sess.fail(err)
				return
			}
			close(c.silent)
		case <-c.sess.done:
			if c.sess.canceled(c.tags[0]) {
				c.takeRest(requests)
			}
			return
		}
	}
}

// takeRest takes what the broker had sent before it deleted the queue. The protocol
// library closes the channel of a consumer that was cancelled.
func (c *consumer) takeRest(requests <-chan amqp.Delivery) {
	if requests == nil {
		return
	}
	for d := range requests {
		c.take(d, c.server.cfg.queue.Name)
	}
}

func (c *consumer) cancel() error {
	for _, tag := range c.tags {
		if err := c.sess.subCh.Cancel(tag, false); err != nil {
			return err
		}
	}
	return nil
}

// take makes a job of a delivery. The jobs channel holds a whole prefetch, so
// this blocks only while jobs of an ended session are still in it.
func (c *consumer) take(d amqp.Delivery, queue string) {
	j := &job{from: c, queue: queue, delivery: d, arrived: time.Now()}
	c.server.counts.requests.Add(1)
	c.server.track.add()
	if c.server.shed(j) {
		return
	}
	select {
	case c.server.jobs <- j:
		return
	default:
	}
	select {
	case c.server.jobs <- j:
	case <-c.sess.done:
		j.over()
	}
}

// settled acknowledges a request whose answer the broker has. In another session
// than its own there is nothing to acknowledge: the broker hands it out again.
func (j *job) settled() {
	select {
	case j.from.acks <- j:
		// Nobody reads the acks of a session that ended, and the channel may have had
		// room all the same.
		if j.from.sess.ended() {
			j.from.dropAcks()
		}
	case <-j.from.sess.done:
		j.over()
	}
}

// requeue gives a request back to the broker as it is, which marks it as handed out.
func (j *job) requeue() {
	defer j.over()
	if err := j.delivery.Nack(false, true); err != nil {
		j.from.sess.fail(err)
	}
}

// acknowledge acknowledges settled requests, those that wait together in one write
// and, where neighbours are settled, in one frame.
func (c *consumer) acknowledge() {
	for {
		select {
		case j := <-c.acks:
			c.ackBurst(j)
		case <-c.sess.done:
			c.dropAcks()
			return
		}
	}
}

func (c *consumer) ackBurst(first *job) {
	jobs := append(make([]*job, 0, len(c.acks)+1), first)
	if len(c.acks) > 0 {
		runtime.Gosched() // those that are about to come join the burst
	}
	for more := true; more && len(jobs) < burst; {
		select {
		case j := <-c.acks:
			jobs = append(jobs, j)
		default:
			more = false
		}
	}
	tags := make([]uint64, len(jobs))
	for i, j := range jobs {
		tags[i] = j.delivery.DeliveryTag
	}
	slices.Sort(tags)
	c.ackTags(tags)
	synced := !slices.ContainsFunc(jobs, (*job).needsSync) || c.sync()
	for _, j := range jobs {
		if j.refusal == nil || !synced {
			j.over()
			continue
		}
		select {
		case c.server.outbox <- j.refusal:
		case <-c.sess.done:
			j.over()
		}
	}
}

// needsSync reports whether something depends on the broker having processed the
// acknowledgement, which it does not confirm.
func (j *job) needsSync() bool { return j.moving || j.refusal != nil }

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
			j.over()
		default:
			return
		}
	}
}
