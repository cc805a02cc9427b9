package amqpx

import (
	"cmp"
	"errors"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// delivery is one AMQP message in a server: a single request, or a batch of requests. When all
// its requests are completed, the consumer disposes of the message, once. Then the delivery
// sends the refusals that waited for the acknowledgement.
type delivery struct {
	consumer *consumer
	message  amqp.Delivery
	arrived  time.Time
	queue    string // the queue to which its requests are returned
	batched  bool   // the message is a batch
	// held is how many bytes of the body transport.BytesInHand counts for this delivery.
	held int64
	// unread is the size of a body that was dropped because transport.BytesInHand had no room.
	unread int64
	// users counts the message, until it is disposed of, and the requests that are not
	// finished. The last of them releases the resources.
	users atomic.Int32

	mu           sync.Mutex
	open         int                 // requests that are not completed
	disposition  disposition         // not changed any more when open is 0
	afterAck     []*outboundResponse // refusals which are sent after the acknowledgement
	republishing int                 // copies with a delivery count in progress, see Server.park
	// last is the request which finishes with the disposal of the message: the request that was
	// completed last, unless a refusal finishes it.
	last *inboundRequest
}

// disposition is the frame with which a consumer disposes of a message. The requests of a
// batch may ask for different dispositions; the greatest of them counts.
type disposition uint8

const (
	disposeAck     disposition = iota // basic.ack
	disposeReject                     // basic.nack without requeue: dropped, or dead-lettered by a policy
	disposeRequeue                    // basic.nack with requeue: delivered again, marked as redelivered
	disposeNever                      // no frame: the broker delivers the message again after the session
)

// singleDelivery is the delivery of a single request with this request, in one allocation.
type singleDelivery struct {
	delivery

	request  inboundRequest
	incoming incoming
}

// batchedRequest is a request in a batch, with the decoded request.
type batchedRequest struct {
	inboundRequest
	incoming
}

// begin counts the delivery and its n requests as work in progress.
func (d *delivery) begin(n int) {
	s := d.consumer.server
	d.open = n
	d.users.Store(int32(n) + 1) //nolint:gosec // a batch has far fewer requests.
	s.inFlight.Add(int64(n))
	s.track.Add(1)
}

// release ends one use of the delivery. The last use releases the delivery's resources.
func (d *delivery) release() {
	if d.users.Add(-1) > 0 {
		return
	}
	s := d.consumer.server
	if d.held > 0 {
		s.cfg.inHand.Release(d.held)
	}
	s.track.Done()
}

// complete marks a request as completed; how is the disposition that the request asks for. The
// last request of the delivery disposes of the message. req is finished with that, or at once if
// other requests are open; it is nil if a refusal finishes the request.
func (d *delivery) complete(req *inboundRequest, how disposition) {
	d.mu.Lock()
	d.open--
	d.disposition = max(d.disposition, how)
	last := d.open == 0
	if last {
		d.last = req
	}
	d.mu.Unlock()
	switch {
	case last:
		d.dispose()
	case req != nil:
		req.finish()
	}
}

// dispose passes the message to the consumer's acknowledge goroutine. If the session of the
// message has ended, dispose only ends the delivery: the broker delivers the message again.
func (d *delivery) dispose() {
	if d.disposition == disposeNever {
		d.drop()
		return
	}
	select {
	case d.consumer.acks <- d:
		// After the session has ended no goroutine reads acks, but the channel may have had
		// room.
		if d.consumer.isOver() {
			d.consumer.dropAcks()
		}
	case <-d.consumer.done:
		d.drop()
	}
}

// requeue returns a message none of whose requests has started to its queue.
func (d *delivery) requeue() {
	d.disposition = disposeRequeue
	d.dispose()
}

// drop ends a message without an acknowledgement, and the refusals that waited for the
// acknowledgement.
func (d *delivery) drop() {
	for _, refusal := range d.afterAck {
		refusal.request.finish()
	}
	d.end()
}

// end ends a message, and the request that was completed last.
func (d *delivery) end() {
	for range d.republishing {
		d.consumer.server.moves.Done()
	}
	if d.last != nil {
		d.last.finish()
	}
	d.release()
}

// willBeRedelivered reports whether the broker delivers the message again in any case: the
// session has ended, and the queue was not deleted.
func (d *delivery) willBeRedelivered() bool { return d.consumer.isOver() && !d.consumer.queueIsGone() }

// beginRepublish records that a copy with a delivery count is being published.
func (d *delivery) beginRepublish() {
	d.consumer.server.moves.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.republishing++
}

// endRepublish reverts beginRepublish, because the broker did not take the copy.
func (d *delivery) endRepublish() {
	d.mu.Lock()
	reverted := d.republishing > 0
	if reverted {
		d.republishing--
	}
	d.mu.Unlock()
	if reverted {
		d.consumer.server.moves.Done()
	}
}

// needsAckBarrier reports whether a refusal or a copy depends on the broker having processed
// the acknowledgement, which AMQP does not confirm.
func (d *delivery) needsAckBarrier() bool { return d.republishing > 0 || len(d.afterAck) > 0 }

// minRefusalPatience is the minimum time that the refusal of a request in a batch waits for
// the other requests of the batch.
const minRefusalPatience = 500 * time.Millisecond

// refusalPatience returns how long the refusal of a request waits for the acknowledgement of
// the request's message before the refusal is sent without [DidNotRun]; 0 means without limit.
// For an idempotent call the outcome matters little, because the call may be sent again either
// way. Any other refusal waits for three quarters of the call's remaining time, so that the
// caller still receives the code of the refusal.
func refusalPatience(req *inboundRequest) time.Duration {
	switch {
	case req.in.Idempotent:
		return minRefusalPatience
	case req.in.Budget == wire.NoBudget:
		return 0
	default:
		left := req.in.Budget - time.Since(req.delivery.arrived)
		return max(left-left/4, minRefusalPatience)
	}
}

// bound sends a refusal after patience if its delivery is not completed by then. The broker may
// deliver the message again, so the outcome of the refusal is [MayHaveRun] then.
func (d *delivery) bound(refusal *outboundResponse, patience time.Duration) {
	if d.isCompleted() {
		return
	}
	time.AfterFunc(patience, func() {
		if d.withdraw(refusal) {
			refusal.response.Failure.Ran = wire.RanUnknown
			refusal.send()
		}
	})
}

// isCompleted reports whether every request of the delivery is completed.
func (d *delivery) isCompleted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open == 0
}

// withdraw removes a refusal from the refusals that are sent after the acknowledgement. It
// returns false if the delivery is completed: the acknowledgement sends the refusal.
func (d *delivery) withdraw(refusal *outboundResponse) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == 0 {
		return false
	}
	i := slices.Index(d.afterAck, refusal)
	if i < 0 {
		return false
	}
	d.afterAck = slices.Delete(d.afterAck, i, i+1)
	return true
}

// accept passes a single request to the workers; held is the number of counted bytes of the
// body.
func (c *consumer) accept(message *amqp.Delivery, queue string, held int64) {
	c.server.counts.requests.Add(1)
	c.server.countExchange(message, 1)
	c.countShard(1)
	one := &singleDelivery{delivery: delivery{consumer: c, queue: queue, message: *message, arrived: time.Now(), held: held}}
	one.request.delivery, one.request.in = &one.delivery, &one.incoming
	one.last = &one.request
	one.begin(1)
	if len(message.Body) > 0 || len(message.Headers) == 0 || !c.takeUnread(&one.request) {
		c.submit(&one.request)
	}
}

// unpack passes the requests of a batch to the workers; held is the number of counted bytes of
// the body.
func (c *consumer) unpack(message *amqp.Delivery, held int64) {
	s := c.server
	d := &delivery{consumer: c, queue: c.home, message: *message, arrived: time.Now(), held: held, batched: true}
	if len(message.Body) == 0 && c.takeUnreadBatch(d) {
		return
	}
	requests := d.decode()
	d.begin(len(requests))
	if len(requests) == 0 {
		d.dispose()
		return
	}
	wait := make([]task, 0, len(requests))
	responses := 0 // that will wait in the server's outbox
	for i := range requests {
		if req := &requests[i].inboundRequest; s.admit(req, req.in.user, len(req.in.Body)) && !s.shed(req) {
			wait = append(wait, req)
			if !req.in.OneWay {
				responses++
			}
		}
	}
	if !s.takesTurns() && !isDirectAddress(message.ReplyTo) && !s.isDraining() {
		s.outbox.Expect(responses)
	}
	s.putWaiting(0, wait...)
}

// decode returns the requests of a batch.
func (d *delivery) decode() []batchedRequest {
	s, replyTo := d.consumer.server, d.message.ReplyTo
	var room [64][]byte
	records, err := wire.AppendRecords(room[:0], d.message.Body)
	s.recordBatchReceived(len(records))
	s.countExchange(&d.message, len(records))
	d.consumer.countShard(len(records))
	requests := make([]batchedRequest, len(records))
	n := 0 // the number of requests
	user := s.callerOf(&d.message)
	allowed := s.mayRespond(replyTo, user)
	if !allowed && len(records) > 0 {
		s.warnReplyTo(&d.message, user)
	}
	for _, record := range records {
		b := &requests[n]
		req := &b.inboundRequest
		req.delivery, req.in, req.decoded = d, &b.incoming, true
		req.failed = formatRefusal(req.in.DecodeRecord(record, replyTo, s.nameOf))
		req.method = s.methods[req.in.Method]
		req.in.Redelivered = req.in.Redelivered || d.message.Redelivered
		req.in.user = user
		switch size := len(req.in.Body); {
		case !allowed:
			s.refuseReplyTo(req)
		case req.in.ID == "" && replyTo != "":
			// No call would match the response, and a batch of such records would cause
			// responses of many times its size.
			s.recordRefusal(req, CodeInvalidArgument)
			*b = batchedRequest{}
			err = errNoID
			continue
		case size > s.cfg.maxMessageSize && req.failed == nil:
			s.counts.tooLarge.Add(1)
			drop := wire.DroppedBody{Size: uint64(size), Limit: s.cfg.maxMessageSize}
			req.failed = refusal(CodeInvalidArgument, "%s", drop.TooLarge())
		}
		n++
	}
	if err != nil || len(records) == 0 {
		s.logs.badBatch.of(s.cfg.logger).Warn("dropped a batch, or calls in it, that cannot be read",
			zap.String("reply_to", replyTo), zap.Int("dropped", len(records)-n), zap.Error(err))
	}
	d.message.Body = nil
	return requests[:n]
}

// errNoID is why a request in a batch is dropped.
var errNoID = errors.New("a call without an id")

// nameOf returns the name of a method, without an allocation if the server has the method. An
// empty name means the default method.
func (s *Server) nameOf(name []byte) string {
	if len(name) == 0 {
		return s.cfg.defaultMethod
	}
	if m := s.methods[string(name)]; m != nil {
		return m.name
	}
	return string(name)
}

// inboundRequest is one RPC request in a server, from its arrival until its response is
// published and its delivery acknowledged. Only one goroutine at a time owns an inboundRequest.
// The owner completes the request once, by ack, requeue, leaveUnacked or refuseAfterAck.
type inboundRequest struct {
	delivery  *delivery
	place     int              // the index of its worker
	in        *incoming        // empty until the request is decoded
	decoded   bool             // decode has decoded the request
	method    *serverMethod    // nil if the method is unknown
	failed    *Error           // the decoding error, for which the request is refused
	response  outboundResponse // the response to the request
	parked    bool             // the request waits, or has waited, see Server.park
	invoked   *invocation      // nil until the middleware runs
	run       invocation       // that of invoked, here to save its allocation
	admission *admission       // nil without limits of callers
}

// priority returns the priority of the request, with which it waits for a worker. The message of a
// batch has none.
func (req *inboundRequest) priority() uint8 {
	if req.delivery.batched {
		return 0
	}
	return req.delivery.message.Priority
}

// incoming is a request in a server. The response depends only on the embedded request: the
// handler gets a Request of its own.
type incoming struct {
	wire.Request // as it was received

	user   string  // the caller, see Server.callerOf
	handed Request // the request that the middleware and the handler get
}

// hand returns the request for the middleware and the handler.
func (in *incoming) hand(queued time.Duration) *Request {
	in.handed = Request{
		Method: in.Method, Body: in.Body, Header: in.Header,
		ContentType: in.ContentType, ContentEncoding: in.ContentEncoding,
		CorrelationID: in.ID, IdempotencyKey: in.Key, Idempotent: in.Idempotent,
		Redelivered: in.Redelivered, User: in.user, Queued: queued, OneWay: in.OneWay, Unsampled: in.Unsampled, Priority: in.Priority,
	}
	return &in.handed
}

// decode decodes the request on the first call and returns the same result afterwards.
func (req *inboundRequest) decode() (*incoming, *Error) {
	if !req.decoded {
		req.decoded = true
		s, message := req.delivery.consumer.server, &req.delivery.message
		req.in.user = s.callerOf(message)
		chosen, fault := s.chooseMethod(message, req.in.user)
		req.failed = formatRefusal(req.in.Decode(message, cmp.Or(chosen, s.cfg.defaultMethod)))
		if chosen != "" {
			req.in.Method = chosen
		}
		req.failed = cmp.Or(fault, req.failed)
		req.method = s.methods[req.in.Method]
		if req.in.LostDeliveries > 0 && !s.trustsCount(message) {
			req.in.LostDeliveries = 0
		}
		switch {
		case !s.mayRespond(message.ReplyTo, req.in.user) && !req.acceptDeadLetter():
			s.refuseReplyTo(req)
			s.warnReplyTo(message, req.in.user)
		case req.in.TooLarge:
			req.tooLarge()
		}
	}
	return req.in, req.failed
}

// chooseMethod returns what the function of [WithMethodOf] chooses; "" if the function is not asked.
// It returns an error for the caller if the function panics.
func (s *Server) chooseMethod(message *amqp.Delivery, user string) (name string, fault *Error) {
	if s.cfg.methodOf == nil || message.Type == wire.TypeRequest || message.Type == wire.TypeIdempotentRequest || s.methods[message.AppId] != nil {
		return "", nil
	}
	defer func() {
		if v := recover(); v != nil {
			s.cfg.logger.Error("the function of WithMethodOf panicked", zap.String("correlation_id", message.CorrelationId),
				zap.String("panic", panicText(v)), zap.ByteString("stack", debug.Stack()))
			fault = localError(CodeInternal, DidNotRun, nil, "the method could not be chosen")
		}
	}()
	return s.cfg.methodOf(&Request{
		Method: message.AppId, Body: message.Body, Header: wire.ApplicationHeader(message.Headers), User: user,
		ContentType: message.ContentType, ContentEncoding: message.ContentEncoding,
		CorrelationID: message.CorrelationId, Redelivered: message.Redelivered, OneWay: message.ReplyTo == "", Priority: message.Priority,
	}), nil
}

// wasDeliveredBefore reports whether the request may have run before.
func (req *inboundRequest) wasDeliveredBefore() bool {
	return req.delivery.message.Redelivered || req.in.Redelivered
}

// ack completes the request after the broker has confirmed its response. The message is
// acknowledged when all requests of the delivery are completed.
func (req *inboundRequest) ack() { req.delivery.complete(req, disposeAck) }

// requeue completes the request and returns the original message, with all requests of the
// delivery, to its queue; the broker marks the message as redelivered.
func (req *inboundRequest) requeue() { req.delivery.complete(req, disposeRequeue) }

// leaveUnacked completes the request without an acknowledgement of its message, because the
// session has ended or the server stops: the broker delivers the message again.
func (req *inboundRequest) leaveUnacked() { req.delivery.complete(req, disposeNever) }

// refuseAfterAck completes the request, and sends the refusal after the acknowledgement of the
// message. The refusal owns the request from then on, and finishes it.
func (req *inboundRequest) refuseAfterAck(refusal *outboundResponse) {
	d, patience := req.delivery, refusalPatience(req)
	d.mu.Lock()
	d.afterAck = append(d.afterAck, refusal)
	d.mu.Unlock()
	d.complete(nil, disposeAck)
	if patience > 0 {
		d.bound(refusal, patience)
	}
}

// finish ends the request. Nothing uses the request afterwards.
func (req *inboundRequest) finish() {
	if req.admission != nil {
		req.delivery.consumer.server.callers.leave(req.admission)
	}
	req.delivery.consumer.server.inFlight.Add(-1)
	req.delivery.release()
}
