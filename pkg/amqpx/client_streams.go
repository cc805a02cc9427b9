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
			Message: m, user: user, openTo: c.cfg.queue.streamsQueue().Name, proves: c.route.nackProves, link: c.streams.table.Link, opening: c.completeOpening,
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

// openingWatch checks the queue of openings for the streams of a link.
type openingWatch struct {
	checker queueChecker
	queue   checkedQueue
	link    *stream.Link
	// unserved is the time of the first check without a consumer; zero: there is one.
	unserved time.Time
	// down means that the last check found the queue down. doubtful is the time of the first such
	// check: openings that were written before may be lost; zero: none are. empty is the first check
	// since then that found no message in the queue; zero: none has.
	down            bool
	doubtful, empty time.Time
}

// emptyFor is how long a queue of openings that was down must be empty before openings that are not
// accepted count as lost.
const emptyFor = 5 * time.Second

// checkOpenings checks the queue of openings every second while openings wait, until the link or
// the session ends.
func (c *Client) checkOpenings(s *transport.Session, link *stream.Link, over <-chan struct{}) {
	w := &openingWatch{checker: queueChecker{client: c, s: s}, queue: checkedQueue{name: c.cfg.queue.streamsQueue().Name}, link: link}
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-over:
			return
		case <-s.Done:
			return
		}
		if link.Openings() == 0 || s.Flow.Unblocked() != nil {
			w.unserved = time.Time{}
			continue
		}
		now := time.Now()
		link.FailOpenings(now.Add(-openingLimit-checkEvery), stream.ReasonUnserved, isPatient)
		found, err := w.checker.ask(&w.queue, checkTimeout)
		if ch := w.checker.ch; ch != nil {
			_ = ch.Close()
			w.checker.ch = nil
		}
		w.found(stateOf(found, err), now)
	}
}

func isPatient(s *stream.Stream) bool { return s.Options().Patient }

func isNone(*stream.Stream) bool { return false }

// found acts on the state of the queue at a time. It ends the streams whose openings no server takes,
// because the queue has no consumer in two checks, or its node is down in both; patient streams wait
// on. They end when two checks find no queue, and when the queue was down, is back and stays empty:
// then their openings are lost.
func (w *openingWatch) found(st queueState, now time.Time) {
	down := st.away && st.fault != FaultQueueMissing
	switch {
	case down && !w.down:
		w.doubtful, w.empty = now, time.Time{}
	case !st.known, st.away, st.messages > 0:
		w.empty = time.Time{}
	case w.empty.IsZero():
		w.empty = now
	case !w.doubtful.IsZero() && now.Sub(w.empty) >= emptyFor:
		w.link.FailOpenings(w.doubtful, stream.ReasonUnavailable, isNone)
		w.doubtful = time.Time{}
	}
	w.down = down
	w.link.Hold(down)
	switch {
	case !st.known, st.consumers > 0, st.fault == FaultQueueSilent: // the broker may be slow
		w.unserved = time.Time{}
	case w.unserved.IsZero():
		w.unserved = now
	case down:
		w.link.FailOpenings(w.unserved, stream.ReasonUnavailable, isPatient)
	case st.away: // the queue is gone, and what waited in it
		w.link.FailOpenings(w.unserved, stream.ReasonUnserved, isNone)
	default:
		w.link.FailOpenings(w.unserved, stream.ReasonUnserved, isPatient)
	}
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
