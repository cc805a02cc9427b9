package amqpx

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/stream"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// The streams of a server in a session: the queue of openings, which all servers consume, and a
// queue of frames of this server. A server without methods for streams declares neither.

const (
	// openingPrefetch bounds the openings whose acceptances the broker has not confirmed.
	openingPrefetch = 64
	// streamRetryHint is the hint with the refusal of a stream beyond a limit.
	streamRetryHint = 100 * time.Millisecond
)

// WithMaxStreams bounds the open streams of a server, in total and of one client; the defaults are
// [DefaultMaxStreams] and [DefaultMaxClientStreams]. A stream counts until its handler has returned
// and its end was sent. A server with total streams takes no openings from the queue, so that other
// servers get the openings; a client beyond the limit is refused with [CodeResourceExhausted] and
// [DidNotRun]. The limit MaxCalls of [WithCallerLimits] also holds for the streams of a caller.
func WithMaxStreams(total, perClient int) ServerOption {
	return serverOption(func(c *serverConfig) { c.maxStreams, c.maxClientStreams = total, perClient })
}

// WithMaxStreamTime bounds the time of a stream. At the bound the stream ends with
// [CodeDeadlineExceeded], whatever its client or its handler does, unless the deadline of the client
// is earlier. The default, 0, is no bound: a stream without a deadline then stays open while client
// and server live.
func WithMaxStreamTime(d time.Duration) ServerOption {
	return serverOption(func(c *serverConfig) { c.maxStreamTime = d })
}

// WithStreamMiddleware adds middleware around the handlers of streams, the first listed outermost,
// inside the middleware of [WithMiddleware]. The middleware acts before and after the handler, and
// may pass another context to the handler.
func WithStreamMiddleware(m ...StreamMiddleware) ServerOption {
	return serverOption(func(c *serverConfig) { c.streamMiddleware = append(c.streamMiddleware, m...) })
}

// MaxStreams bounds the open streams of a method in a server; further streams are refused with
// [CodeResourceExhausted] and [DidNotRun]. The default is no bound beside [WithMaxStreams]. The
// option has no effect on calls.
func MaxStreams(n int) HandleOption { return func(m *serverMethod) { m.maxStreams = n } }

// streamFaults returns an error for invalid settings of streams, or nil.
func (c *serverConfig) streamFaults() error {
	var faults []error
	if c.maxStreams < 1 || c.maxClientStreams < 1 {
		faults = append(faults, fmt.Errorf("max streams %d, and %d of a client: want at least 1", c.maxStreams, c.maxClientStreams))
	}
	if c.maxStreamTime < 0 {
		faults = append(faults, fmt.Errorf("max stream time %v: want 0 or more", c.maxStreamTime))
	}
	for i, m := range c.streamMiddleware {
		if m == nil {
			faults = append(faults, fmt.Errorf("stream middleware %d is nil", i+1))
		}
	}
	return errors.Join(faults...)
}

// serverStreams has the streams of a server.
type serverStreams struct {
	methods map[string]*serverMethod
	table   *stream.Table
	base    context.Context //nolint:containedctx // of all handlers; Serve sets it.
	refused atomic.Uint64
	room    chan struct{} // has a token when a stream has ended

	mu       sync.Mutex
	canceled xsync.Recent[callKey] // canceled openings that have not arrived here
	running  int
	ofMethod map[*serverMethod]int
	ofCaller map[callerID]int
}

func (t *serverStreams) init(cfg *serverConfig) {
	t.methods = make(map[string]*serverMethod)
	t.table = stream.NewTable(cfg.streams.table(true, nil))
	t.room = make(chan struct{}, 1)
	t.ofMethod, t.ofCaller = make(map[*serverMethod]int), make(map[callerID]int)
}

// count returns the number of streams in progress.
func (t *serverStreams) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running
}

// cancelOpening handles the cancellation of an opening by its client: it ends the stream, or prevents
// its start if the opening may still arrive.
func (s *Server) cancelOpening(in *incoming, now time.Time) {
	number, err := strconv.ParseUint(in.ID, 10, 64)
	if err != nil {
		return
	}
	if link := s.streams.table.Link(); link != nil && link.Cancel(in.ReplyTo, in.user, number) {
		return
	}
	t := &s.streams
	t.mu.Lock()
	defer t.mu.Unlock()
	t.canceled.Add(in.callKey(), now, givenUpAge, maxCanceledIDs)
}

// takeCanceled reports whether an opening was canceled before it arrived, and forgets it.
func (t *serverStreams) takeCanceled(opening callKey, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.canceled.Len(now) > 0 && t.canceled.Remove(opening, now)
}

// admitStream counts a stream, or returns the refusal of a stream beyond a limit.
func (s *Server) admitStream(m *serverMethod, caller callerID, ofClient int) *Error {
	t := &s.streams
	t.mu.Lock()
	defer t.mu.Unlock()
	var full string
	switch most := s.cfg.callerLimits.MaxCalls; {
	case t.running >= s.cfg.maxStreams:
		full = "the server has as many streams as it may have"
	case ofClient >= s.cfg.maxClientStreams, most > 0 && t.ofCaller[caller] >= most:
		full = "the client has as many streams as it may have in this server"
	case m.maxStreams > 0 && t.ofMethod[m] >= m.maxStreams:
		full = "the method has as many streams as it may have in this server"
	default:
		t.running++
		t.ofMethod[m]++
		t.ofCaller[caller]++
		s.track.Add(1)
		return nil
	}
	e := refusal(CodeResourceExhausted, "%s", full)
	e.retryAfter = streamRetryHint
	return e
}

// releaseStream reverts admitStream.
func (s *Server) releaseStream(m *serverMethod, caller callerID) {
	t := &s.streams
	t.mu.Lock()
	t.running--
	if t.ofMethod[m]--; t.ofMethod[m] == 0 {
		delete(t.ofMethod, m)
	}
	if t.ofCaller[caller]--; t.ofCaller[caller] == 0 {
		delete(t.ofCaller, caller)
	}
	t.mu.Unlock()
	offerToken(t.room)
	s.track.Done()
}

// ended is called when a stream is no longer in progress.
func (t *serverStreams) ended(x *ServerStream) {
	if o, ok := x.server.cfg.observer.(StreamObserver); ok && x.started.Load() {
		recordStream(o, x.method.name, x.begun, x.st, "client")
	}
	x.server.releaseStream(x.method, newCallerID(x.user, x.replyTo))
}

// streamsFull reports whether no further stream may be opened.
func (s *Server) streamsFull() bool { return s.streams.count() >= s.cfg.maxStreams }

// streamConsumer consumes openings and frames in one session.
type streamConsumer struct {
	server *Server
	sess   *transport.Session
	main   *consumer
	ch     transport.Channel
	link   *stream.Link
	queue  string // of frames
	frames <-chan amqp.Delivery
	ended  chan *amqp.Error
	over   chan struct{} // closed when the link has ended
	wake   chan struct{} // has a token when acks or refusals wait

	mu       sync.Mutex
	acks     []uint64
	refusals []streamRefusal
}

// streamRefusal is a refusal that follows the acknowledgement of its opening.
type streamRefusal struct {
	tag           uint64
	replyTo, user string
	number        uint64
	failed        *Error
}

// keepStreams keeps the queues of streams in use until the session ends. first is closed after the
// first attempt.
func (s *Server) keepStreams(main *consumer, first chan<- struct{}) {
	sess := main.sess
	for {
		c, err := s.openStreams(main)
		if first != nil {
			close(first)
			first = nil
		}
		if err == nil {
			err = c.consume()
		}
		if sess.Ended() {
			return
		}
		fault := transport.Classify(sess.Target, err)
		s.logs.streams.of(s.cfg.logger).Warn("a queue of streams cannot be used, the server takes no streams",
			zap.String("queue", s.cfg.queue.streamsQueue().Name), zap.String("fault", string(fault.Kind)), zap.Error(fault))
		timer := time.NewTimer(companionRetry)
		select {
		case <-timer.C:
		case <-sess.Done:
			timer.Stop()
			return
		}
	}
}

// startStreams starts to take streams, and waits a while for the first attempt.
func (s *Server) startStreams(ctx context.Context, main *consumer) {
	if len(s.streams.methods) == 0 {
		return
	}
	first := make(chan struct{})
	main.sess.Run(func() { s.keepStreams(main, first) }) //nolint:contextcheck // it ends with the session.
	timer := time.NewTimer(companionWait)
	defer timer.Stop()
	select {
	case <-first:
	case <-timer.C:
	case <-main.sess.Done:
	case <-ctx.Done():
	}
}

// openStreams declares and binds the queues, and makes the link.
func (s *Server) openStreams(main *consumer) (*streamConsumer, error) {
	sess := main.sess
	openings := s.cfg.queue.streamsQueue()
	if _, err := openings.declareOrAdopt(sess.Sub, func(reason string) { s.warnAdopted(openings, reason, "") }); err != nil {
		return nil, err
	}
	c := &streamConsumer{
		server: s, sess: sess, main: main, queue: s.cfg.queue.newStreamQueueName(),
		ended: make(chan *amqp.Error, 1), over: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	var err error
	if c.ch, c.frames, err = openStreamQueue(sess, c.queue); err != nil {
		if c.ch != nil {
			_ = c.ch.Close() // an exception has closed it
		}
		return nil, err
	}
	c.ended = c.ch.NotifyClose(c.ended)
	c.bind()
	c.link = s.streams.table.NewLink(c.queue, func(m *stream.Message) {
		s.outbox.Put(&frameMessage{Message: m, link: s.streams.table.Link})
	})
	sess.Run(c.readFrames)
	return c, nil
}

// bind binds the queues to the request exchange, for clients that publish there.
func (c *streamConsumer) bind() {
	if _, bound := c.server.bindOrWarn(c.sess, c.server.cfg.queue.streamsQueue().Name); bound {
		c.server.bindOrWarn(c.sess, c.queue)
	}
}

// readFrames reads the frames of the clients until the link has ended.
func (c *streamConsumer) readFrames() {
	for {
		select {
		case d, ok := <-c.frames:
			if !ok {
				c.link.End(errStreamQueueGone)
				_ = c.ch.Close()
				return
			}
			c.link.Receive(d.ReplyTo, c.server.callerOf(&d), bodyOfFrames(&d))
		case <-c.over:
			return
		case <-c.sess.Done:
			c.link.End(transport.ErrConnectionEnded)
			return
		}
	}
}

// consume takes openings while the server is neither full nor draining, until the link has ended.
func (c *streamConsumer) consume() error {
	defer close(c.over)
	s := c.server
	var (
		openings <-chan amqp.Delivery
		tag      string
	)
	draining, leave := s.draining, c.main.departure.now()
	leaving, revoked := leave.begun, chan struct{}(nil)
	again := time.NewTicker(exchangeAgain)
	defer again.Stop()
	for {
		takes := draining != nil && leaving != nil && !s.streamsFull()
		var err error
		switch {
		case takes && tag == "":
			tag = s.cfg.name + "-" + uuid.NewString()
			if err = c.ch.Qos(openingPrefetch, 0, false); err == nil {
				openings, err = c.ch.Consume(s.cfg.queue.streamsQueue().Name, tag, false, false, false, false, nil)
			}
		case !takes && tag != "":
			err = c.ch.Cancel(tag, false) // closes openings behind those that have arrived
			tag = ""
		}
		if err != nil {
			return c.stop(err)
		}
		select {
		case d, ok := <-openings:
			if ok {
				c.handle(&d)
			} else if openings = nil; tag != "" {
				return c.stop(errStreamQueueGone)
			}
		case <-again.C:
			c.bind() // an operator may have deleted the exchange
		case <-c.wake:
		case <-s.streams.room:
		case <-draining:
			draining = nil
		case <-leaving:
			leaving, revoked = nil, leave.revoked
		case <-revoked: // the server stays
			leave = c.main.departure.now()
			leaving, revoked = leave.begun, nil
		case reason := <-c.ended:
			if reason == nil {
				return c.stop(errStreamQueueGone)
			}
			return c.stop(reason)
		case <-c.sess.Done:
			return c.stop(transport.ErrConnectionEnded)
		}
		if err := c.settle(len(openings) == 0); err != nil {
			return c.stop(err)
		}
	}
}

// stop ends the link.
func (c *streamConsumer) stop(err error) error {
	c.link.End(err)
	if !c.sess.Ended() {
		_ = c.ch.Close()
	}
	return err
}

// ack acknowledges an opening soon.
func (c *streamConsumer) ack(tag uint64) {
	c.mu.Lock()
	c.acks = append(c.acks, tag)
	c.mu.Unlock()
	offerToken(c.wake)
}

// refuse acknowledges an opening, and then refuses it.
func (c *streamConsumer) refuse(tag uint64, replyTo, user string, number uint64, failed *Error) {
	c.mu.Lock()
	c.acks = append(c.acks, tag)
	c.refusals = append(c.refusals, streamRefusal{tag, replyTo, user, number, failed})
	c.mu.Unlock()
	offerToken(c.wake)
}

// maxRefusals bounds the refusals that wait for others.
const maxRefusals = openingPrefetch / 2

// settle acknowledges openings, and sends the refusals behind their acknowledgements. Without now,
// refusals wait for others, because the broker must answer between.
func (c *streamConsumer) settle(now bool) error {
	c.mu.Lock()
	acks, refusals := c.acks, c.refusals
	c.acks = nil
	if now = now || len(refusals) >= maxRefusals; now {
		c.refusals = nil
	}
	c.mu.Unlock()
	for _, tag := range acks {
		if err := c.ch.Ack(tag, false); err != nil {
			return err
		}
	}
	if len(refusals) == 0 || !now {
		return nil
	}
	if err := c.ch.Barrier(); err != nil {
		return err
	}
	for _, r := range refusals {
		c.link.Refuse(r.replyTo, r.user, r.number, &wire.End{Failure: failureOf(r.failed)})
	}
	return nil
}

// handle handles an opening.
func (c *streamConsumer) handle(d *amqp.Delivery) {
	s := c.server
	held := int64(0)
	if len(d.Body) > 0 {
		held = c.sess.Sub.Claim(len(d.Body))
	}
	defer s.cfg.inHand.Release(held)
	user := s.callerOf(d)
	switch {
	case d.ReplyTo == "" || !wire.SafeReplyTo(d.ReplyTo) || isDirectAddress(d.ReplyTo) || s.cfg.queue.owns(d.ReplyTo) || d.ReplyTo == s.cfg.queue.streamsQueue().Name,
		!s.mayRespond(d.ReplyTo, user):
		s.counts.replyRefused.Add(1)
		s.warnReplyTo(d, user)
		c.ack(d.DeliveryTag)
		return
	}
	opened := false
	err := wire.DecodeFrames(bodyOfFrames(d), func(f *wire.Frame) bool {
		if f.Open {
			opened = true
			c.open(d, f, user)
		}
		return false // an opening is alone in its message
	})
	if err != nil || !opened {
		s.logs.badStream.of(s.cfg.logger).Warn("dropped an opening of a stream that cannot be read",
			zap.String("reply_to", wire.Truncate(d.ReplyTo, wire.MaxShortString)), zap.Error(err))
		c.ack(d.DeliveryTag)
	}
}

// open starts the handler of an opening, or refuses the opening.
func (c *streamConsumer) open(d *amqp.Delivery, f *wire.Frame, user string) {
	s := c.server
	m := s.streams.methods[d.AppId]
	var failed *Error
	switch {
	case m == nil:
		failed = s.unimplemented(d.AppId)
	case f.Timeout == 0:
		failed = refusal(CodeDeadlineExceeded, "the stream's time ran out before it began")
	case s.streams.takeCanceled(newCallKey(user, d.ReplyTo, strconv.FormatUint(f.Stream, 10)), time.Now()):
		failed = refusal(CodeCanceled, "its client canceled it before it ran")
	case d.Redelivered && m.atMostOnce:
		failed = refusal(CodeUnavailable, "the stream may have run before, and the method runs at most once")
	default:
		failed = s.admitStream(m, newCallerID(user, d.ReplyTo), c.link.Streams(d.ReplyTo))
	}
	if failed != nil {
		if d.Redelivered {
			failed.outcome = MayHaveRun
		}
		s.recordStreamRefusal(m, failed.code)
		c.refuse(d.DeliveryTag, d.ReplyTo, user, f.Stream, failed)
		return
	}
	x, ctx := c.newServerStream(d, f, m, user)
	if x == nil { // it is here already, or the link has ended
		s.releaseStream(m, newCallerID(user, d.ReplyTo))
		c.ack(d.DeliveryTag)
		return
	}
	id := streamID(d.ReplyTo, f.Stream)
	req := &Request{
		Method: m.name, Header: decodeStreamHeader(f.Headers), ContentType: f.ContentType, ContentEncoding: f.ContentEncoding,
		CorrelationID: id, IdempotencyKey: d.MessageId, Redelivered: d.Redelivered, User: user, stream: x,
		Unsampled: wire.IsUnsampledTimestamp(d.Timestamp),
	}
	x.req.Store(req)
	go x.run(ctx, req) // ends with the handler; a drain waits for it
}

// returnedFrames handles a message of streams that the broker has returned: its client has gone.
func (s *Server) returnedFrames(r *amqp.Return) {
	if link := s.streams.table.Link(); link != nil {
		link.Returned(r.RoutingKey, 0)
	}
}

// endStreams ends the streams that a drain has not ended, and tells the clients, if the broker takes
// the messages in time.
func (s *Server) endStreams() {
	link := s.streams.table.Link()
	s.streams.table.Close()
	if link == nil {
		return
	}
	limit := make(chan struct{})
	timer := time.AfterFunc(hardStopGrace, func() { close(limit) })
	defer timer.Stop()
	link.WaitIdle(limit)
}
