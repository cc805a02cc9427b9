package amqpx

import (
	"context"
	"errors"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/stream"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// The streams of a client in a session. A client without streams declares nothing for them: the
// first stream of a session declares the queue of frames. The queue has the name of a reply queue,
// so that the permissions and the reply prefixes for reply queues hold for streams too.

const (
	// openingLimit bounds the time of an opening in the queue, unless its stream is patient.
	openingLimit = time.Minute
	// streamLinkRetry and streamLinkRetryMax bound the pause after the broker refused the queue of
	// frames.
	streamLinkRetry    = time.Second
	streamLinkRetryMax = 30 * time.Second
)

// clientStreams has the streams of a client.
type clientStreams struct {
	table *stream.Table
	wake  chan struct{} // has a token when streams may wait for a link
	log   logLimit
}

func (c *clientStreams) init(cfg *streamConfig) {
	c.wake = make(chan struct{}, 1)
	c.table = stream.NewTable(cfg.table(false, func() { offerToken(c.wake) }))
}

// keepStreams opens the link for the streams of a session when there is a stream, and again after a
// fault, until the session ends.
func (c *Client) keepStreams(s *transport.Session) {
	pause := xsync.NewBackoff(streamLinkRetry, streamLinkRetryMax)
	offerToken(c.streams.wake)
	for {
		select {
		case <-c.streams.wake:
		case <-s.Done:
			return
		}
		if !c.streams.table.HasWaiting() {
			continue
		}
		err := c.runStreams(s)
		if s.Ended() {
			return
		}
		c.streams.table.FailWaiting(err)
		fault := transport.Classify(s.Target, err)
		c.streams.log.of(c.cfg.logger).Warn("the queue for streams cannot be used", zap.String("fault", string(fault.Kind)), zap.Error(fault))
		timer := time.NewTimer(max(pause.NextBackOff(), streamLinkRetry))
		select {
		case <-timer.C:
		case <-s.Done:
		}
		timer.Stop()
	}
}

// runStreams opens the link and reads its frames until the session or the queue has ended.
func (c *Client) runStreams(s *transport.Session) error {
	user := ""
	if name := c.replyUser.Load(); name != nil {
		user = *name
	} else if c.cfg.userID {
		user = c.route.user.get()
	}
	queue := c.cfg.queue.newReplyQueueName(user)
	ch, frames, err := openStreamQueue(s, queue)
	if err != nil {
		if ch != nil {
			_ = ch.Close() // an exception has closed it
		}
		return err
	}
	link := c.newStreamLink(queue)
	over := make(chan struct{})
	defer close(over)
	s.Run(func() { c.checkOpenings(s, link, over) })
	for {
		select {
		case d, ok := <-frames:
			if !ok {
				link.End(errStreamQueueGone)
				_ = ch.Close()
				return errStreamQueueGone
			}
			if !s.Answered.Load() {
				s.Answered.Store(true)
			}
			link.Receive(d.ReplyTo, "", bodyOfFrames(&d))
		case <-s.Done:
			link.End(transport.ErrConnectionEnded)
			return transport.ErrConnectionEnded
		}
	}
}

// bodyOfFrames returns the body of a message, or a body that cannot be read if the connection has
// discarded it.
func bodyOfFrames(d *amqp.Delivery) []byte {
	if _, dropped := d.Headers[wire.HeaderDropped]; dropped || d.ContentType != wire.ContentTypeFrames {
		return []byte{0}
	}
	return d.Body
}

// newStreamLink makes the link with the queue of frames.
func (c *Client) newStreamLink(queue string) *stream.Link {
	user := ""
	if c.cfg.userID {
		user = c.route.user.get()
	}
	return c.streams.table.NewLink(queue, func(m *stream.Message) {
		c.route.outbox.Put(&frameMessage{
			Message: m, user: user, openTo: c.cfg.queue.streamsQueue().Name, link: c.streams.table.Link, opening: c.completeOpening,
		})
	})
}

// completeOpening sets the properties of an opening.
func (c *Client) completeOpening(st *stream.Stream, msg *amqp.Publishing) {
	o := st.Options()
	x, _ := o.Meta.(*ClientStream)
	msg.AppId, msg.MessageId, msg.CorrelationId = x.method, x.key, strconv.FormatUint(st.Number(), 10)
	wait := openingLimit
	if o.Patient {
		wait = wire.MaxBudget
	}
	if !o.Deadline.IsZero() {
		wait = min(wait, max(time.Until(o.Deadline), 0))
	}
	if wait < wire.MaxBudget {
		msg.Expiration = strconv.FormatInt(wire.Milliseconds(wait), 10)
	}
	if x.unsampled {
		msg.Timestamp = wire.UnsampledTimestamp()
	}
	x.id.Store(new(streamID(msg.ReplyTo, st.Number())))
}

// checkOpenings ends the streams whose openings no server takes: the queue of openings has no
// consumer in two checks, or the opening has expired in the queue. Patient streams end only if two
// checks find no queue: their openings were in it.
func (c *Client) checkOpenings(s *transport.Session, link *stream.Link, over <-chan struct{}) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	patient := func(st *stream.Stream) bool { return st.Options().Patient }
	none := func(*stream.Stream) bool { return false }
	var unserved time.Time // the first check without a consumer; zero: there is one
	for {
		select {
		case <-tick.C:
		case <-over:
			return
		case <-s.Done:
			return
		}
		if link.Openings() == 0 || s.Flow.Unblocked() != nil {
			unserved = time.Time{}
			continue
		}
		now := time.Now()
		link.FailOpenings(now.Add(-openingLimit-checkEvery), patient)
		switch n, err := c.streamServers(s); {
		case err != nil && !transport.IsNotFound(err), err == nil && n > 0:
			unserved = time.Time{}
		case unserved.IsZero():
			unserved = now
		case err != nil: // the queue is gone, and what waited in it
			link.FailOpenings(unserved, none)
		default:
			link.FailOpenings(unserved, patient)
		}
	}
}

// streamServers returns the number of consumers of the queue of openings.
func (c *Client) streamServers(s *transport.Session) (consumers int, err error) {
	err = transport.WithTempChannel(s.Sub, func(ch transport.Channel) error {
		q, err := ch.QueueDeclarePassive(c.cfg.queue.streamsQueue().Name, true, false, false, false, nil)
		consumers = q.Consumers
		return err
	})
	return consumers, err
}

// returnedFrames handles a message of streams that the broker has returned.
func (c *Client) returnedFrames(r *amqp.Return) {
	link := c.streams.table.Link()
	if link == nil {
		return
	}
	number := uint64(0)
	if r.RoutingKey == c.cfg.queue.streamsQueue().Name {
		number, _ = strconv.ParseUint(r.CorrelationId, 10, 64)
	}
	link.Returned(r.RoutingKey, number)
}

// closeStreams ends all streams with ErrClosed, and tells the servers, if the broker takes the
// messages in time.
func (c *Client) closeStreams(ctx context.Context) {
	link := c.streams.table.Link()
	c.streams.table.Close()
	if link == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, transport.CloseTimeout)
	defer cancel()
	link.WaitIdle(ctx.Done())
}

// errSecondStream is the error of middleware that sends the request of a stream twice.
var errSecondStream = errors.New("middleware has sent the request of a stream twice")
