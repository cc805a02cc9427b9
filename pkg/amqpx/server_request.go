package amqpx

import (
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// inboundRequest is one RPC request in a server, from its arrival until its response is
// published and its delivery acknowledged. Only one goroutine at a time owns an inboundRequest.
// The owner completes the request once, by ack, requeue, leaveUnacked or refuseAfterAck.
type inboundRequest struct {
	delivery *delivery
	place    int              // the index of its worker
	in       *incoming        // empty until the request is decoded
	decoded  bool             // decode has decoded the request
	method   *serverMethod    // nil if the method is unknown
	failed   *Error           // the decoding error, for which the request is refused
	response outboundResponse // the response to the request
	parked   bool             // the request waits, or has waited, see Server.park
	invoked  *invocation      // nil until the middleware runs
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
		Redelivered: in.Redelivered, User: in.user, Queued: queued, OneWay: in.OneWay,
	}
	return &in.handed
}

// decode decodes the request on the first call and returns the same result afterwards.
func (req *inboundRequest) decode() (*incoming, *Error) {
	if !req.decoded {
		req.decoded = true
		s, message := req.delivery.consumer.server, &req.delivery.message
		req.in.user = s.callerOf(message)
		req.failed = formatRefusal(req.in.Decode(message, s.cfg.defaultMethod))
		req.method = s.methods[req.in.Method]
		if req.in.TooLarge {
			req.tooLarge()
		}
	}
	return req.in, req.failed
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
	req.delivery.consumer.server.inFlight.Add(-1)
	req.delivery.release()
}
