package amqpx

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// checkRequest refuses a request that cannot travel. Method and key are AMQP short
// strings (AMQP 0-9-1 section 4.2.5.3).
func checkRequest(req *Request, maxBody int) error {
	switch {
	case req.Method == "" || len(req.Method) > maxShortString:
		return fmt.Errorf("method name of %d bytes: want 1 to %d", len(req.Method), maxShortString)
	case len(req.IdempotencyKey) > maxShortString:
		return fmt.Errorf("idempotency key of %d bytes: want at most %d", len(req.IdempotencyKey), maxShortString)
	case len(req.Body) > maxBody:
		return fmt.Errorf("%w: body of %d bytes, limit %d", ErrTooLarge, len(req.Body), maxBody)
	case len(req.Header) > 0:
		return checkHeader(req.Header)
	default:
		return nil
	}
}

// encodeRequest makes the message of a call, with headers only if it has some of its own.
// budget is the time that is left.
func encodeRequest(req *Request, replyTo string, budget time.Duration, persistent bool) amqp.Publishing {
	kind := typeCall
	if req.Idempotent {
		kind = typeIdempotentCall
	}
	msg := amqp.Publishing{
		Headers:       maps.Clone(amqp.Table(req.Header)),
		Type:          kind,
		AppId:         req.Method,
		ReplyTo:       replyTo,
		CorrelationId: req.CorrelationID,
		MessageId:     req.IdempotencyKey,
		Expiration:    strconv.FormatInt(milliseconds(min(budget, maxBudget)), 10),
		DeliveryMode:  deliveryMode(persistent),
		Body:          req.Body,
	}
	if req.sent.info != nil {
		setHeader(&msg, headerTimes, true)
	}
	return msg
}

func setHeader(msg *amqp.Publishing, name string, value any) {
	if msg.Headers == nil {
		msg.Headers = amqp.Table{}
	}
	msg.Headers[name] = value
}

// markAgain tells the server that the request is not the call's first: resent when
// an earlier one may have arrived, retry how many refusals by servers it follows.
func markAgain(msg *amqp.Publishing, resent bool, retry int64) {
	if resent {
		setHeader(msg, headerResent, true)
	}
	if retry > 0 {
		setHeader(msg, headerRetry, retry)
	}
}

// incoming is a request as it arrived at a server.
type incoming struct {
	Request

	replyTo string
	// resent says that the caller sent this request before, and does not know what
	// became of it.
	resent bool
	// lostDeliveries counts how often a server lost the request before it came to the
	// queue that it was taken from.
	lostDeliveries int
	// budget is how long the call may take from its arrival here; noBudget when the
	// caller set no limit.
	budget time.Duration
	// followsContract says that the caller follows this contract: it reads our headers,
	// and uses no correlation id twice. Others get answers without extras.
	followsContract bool
	// wantsTimes says that the caller wants to know where the time went.
	wantsTimes bool
	// retry counts the refusals that the request follows; a refusal echoes it.
	retry int64
}

const noBudget time.Duration = -1

// decodeRequest reads a request from any client. The error, if any, is for the
// caller; the request is filled in as far as it could be read, so that it can be
// answered.
func decodeRequest(d *amqp.Delivery) (*incoming, *Error) {
	in := &incoming{
		Request: Request{
			Method:         d.AppId,
			Body:           d.Body,
			Header:         applicationHeader(d.Headers),
			CorrelationID:  d.CorrelationId,
			IdempotencyKey: d.MessageId,
			OneWay:         d.ReplyTo == "",
		},
		replyTo: d.ReplyTo,
		budget:  noBudget,
	}
	if !safeReplyTo(d.ReplyTo) {
		in.OneWay = true // there is nowhere to send even the refusal
		return in, refusal(CodeInvalidArgument, "property reply_to is not an address of direct reply-to")
	}
	if _, ok := d.Headers[headerUnreadable]; ok {
		return in, refusal(CodeInvalidArgument, "headers nested deeper than %d or of more than %d entries", readableDepth, readableEntries)
	}
	if d.Type == typeCall || d.Type == typeIdempotentCall {
		in.followsContract, in.Idempotent = true, d.Type == typeIdempotentCall
		if n, err := strconv.ParseUint(d.Expiration, 10, 32); err == nil {
			in.budget = time.Duration(n) * time.Millisecond
		}
	}
	if v, ok := d.Headers[headerTimeout]; ok {
		in.followsContract, in.wantsTimes = true, true
		if in.budget, ok = duration(v, time.Millisecond); !ok {
			in.budget = noBudget
			return in, refusal(CodeInvalidArgument, "header %s: want a whole number, got %T", headerTimeout, v)
		}
	}
	if v, ok := d.Headers[headerIdempotent]; ok {
		if in.Idempotent, ok = v.(bool); !ok {
			return in, refusal(CodeInvalidArgument, "header %s: want true or false, got %T", headerIdempotent, v)
		}
	}
	if v, ok := d.Headers[headerTimes].(bool); ok {
		in.wantsTimes = v
	}
	in.resent, _ = d.Headers[headerResent].(bool)
	if n, ok := wholeNumber(d.Headers[headerDeliveries]); ok {
		in.lostDeliveries = int(min(max(n, 0), math.MaxInt32))
	}
	in.Redelivered = d.Redelivered || in.resent || in.lostDeliveries > 0
	if n, ok := wholeNumber(d.Headers[headerRetry]); ok {
		in.retry = n
	}
	switch {
	case d.AppId == "":
		return in, refusal(CodeInvalidArgument, "property app_id is empty: it names the method")
	case d.ReplyTo != "" && d.CorrelationId == "":
		return in, refusal(CodeInvalidArgument, "property correlation_id is empty: it names the call")
	}
	return in, nil
}

// refusal is a coded error of the server for a request that it did not run.
func refusal(code Code, format string, args ...any) *Error {
	e := Errorf(code, format, args...)
	e.outcome = DidNotRun
	return e
}
