package amqpx

import (
	"runtime"
	"slices"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// consumer takes requests off the queue for one session and acknowledges them.
type consumer struct {
	server *Server
	sess   *session
	tag    string
	acks   chan *job // answered, to be acknowledged
	open   openTags  // of acknowledge
	// silent is closed when the broker hands out nothing more to this consumer.
	silent chan struct{}
}

// job is one request on its way through a server.
type job struct {
	from     *consumer
	delivery amqp.Delivery
	arrived  time.Time
}

func newConsumer(s *Server, sess *session) *consumer {
	return &consumer{
		server: s,
		sess:   sess,
		tag:    s.cfg.name + "-" + uuid.NewString(),
		acks:   make(chan *job, s.cfg.prefetch),
		silent: make(chan struct{}),
	}
}

// start begins to consume; two goroutines run until the session ends.
func (c *consumer) start() error {
	requests, err := c.sess.subCh.Consume(c.server.cfg.queue.Name, c.tag, false, false, false, false, nil)
	if err != nil {
		return err
	}
	c.server.track.add()
	c.server.consumers.Add(1)
	c.sess.run(func() {
		defer c.server.track.done()
		defer c.server.consumers.Add(-1)
		c.receive(requests)
	})
	c.sess.run(c.acknowledge)
	return nil
}

// receive hands requests to the workers. When the server drains it ends the
// consumer and gives back what was on its way.
func (c *consumer) receive(requests <-chan amqp.Delivery) {
	draining := c.server.draining
	for {
		select {
		case d, ok := <-requests:
			if !ok {
				if draining != nil {
					c.sess.consumerEnded()
				}
				return
			}
			c.take(d)
		case <-draining:
			draining = nil // from here on, the end of requests is what we asked for
			if err := c.sess.subCh.Cancel(c.tag, false); err != nil {
				c.sess.fail(err)
				return
			}
			close(c.silent)
		case <-c.sess.done:
			return
		}
	}
}

// take makes a job of a delivery. The jobs channel holds a whole prefetch, so
// this blocks only while jobs of an ended session are still in it.
func (c *consumer) take(d amqp.Delivery) {
	j := &job{from: c, delivery: d, arrived: time.Now()}
	c.server.counts.requests.Add(1)
	c.server.track.add()
	select {
	case c.server.jobs <- j:
	case <-c.sess.done:
		c.server.track.done()
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
		j.from.server.track.done()
	}
}

// giveBack returns a request that was not started to the queue. It waits until the
// consumer has ended: before that the broker may hand the request right back.
func (j *job) giveBack() {
	defer j.from.server.track.done()
	select {
	case <-j.from.silent:
	case <-j.from.sess.done:
		return // the broker hands it out again
	}
	j.from.server.counts.returned.Add(1)
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
	tags := append(make([]uint64, 0, len(c.acks)+1), first.delivery.DeliveryTag)
	if len(c.acks) > 0 {
		runtime.Gosched() // those that are about to come join the burst
	}
	for more := true; more && len(tags) < burst; {
		select {
		case j := <-c.acks:
			tags = append(tags, j.delivery.DeliveryTag)
		default:
			more = false
		}
	}
	slices.Sort(tags)
	c.ackTags(tags)
	for range tags {
		c.server.track.done()
	}
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
		case <-c.acks:
			c.server.track.done()
		default:
			return
		}
	}
}
