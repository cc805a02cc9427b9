package amqpx

import (
	"cmp"
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
	case len(req.CorrelationID) > maxShortString: // of middleware
		return fmt.Errorf("correlation id of %d bytes: want at most %d", len(req.CorrelationID), maxShortString)
	case len(req.IdempotencyKey) > maxShortString:
		return fmt.Errorf("idempotency key of %d bytes: want at most %d", len(req.IdempotencyKey), maxShortString)
	case len(req.Body) > maxBody:
		return fmt.Errorf("%w: body of %d bytes, limit %d", ErrTooLarge, len(req.Body), maxBody)
	case len(req.Header) > 0:
		if err := checkHeader(req.Header); err != nil {
			return err
		}
	}
	if req.ContentType != "" || req.ContentEncoding != "" {
		return checkContent(req.ContentType, req.ContentEncoding)
	}
	return nil
}

// sendable returns the request as it can be sent, with headers of the types that AMQP has,
// or why it cannot. A request that others have seen is copied: it is theirs to change again.
func sendable(req *Request, maxBody int) (*Request, error) {
	header, err := encodeHeader(req.Header)
	if err != nil {
		return nil, err
	}
	if !req.sent.ours {
		own := *req
		own.Header = maps.Clone(header)
		req = &own
	} else if len(header) > 0 {
		req.Header = header
	}
	return req, checkRequest(req, maxBody)
}

// encodeRequest makes the message of a call, with headers only if it has some of its own.
// budget is the time that is left.
func encodeRequest(req *Request, replyTo string, budget time.Duration, persistent bool) amqp.Publishing {
	kind := typeCall
	if req.Idempotent {
		kind = typeIdempotentCall
	}
	msg := amqp.Publishing{
		Headers:         maps.Clone(amqp.Table(req.Header)),
		ContentType:     req.ContentType,
		ContentEncoding: req.ContentEncoding,
		Type:            kind,
		AppId:           req.Method,
		ReplyTo:         replyTo,
		CorrelationId:   req.CorrelationID,
		MessageId:       req.IdempotencyKey,
		Expiration:      strconv.FormatInt(milliseconds(min(budget, maxBudget)), 10),
		DeliveryMode:    deliveryMode(persistent),
		Body:            req.Body,
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
	// expired says that the request's time was over in another queue.
	expired bool
	// followsContract says that the caller follows this contract: it reads our headers,
	// and uses no correlation id twice. Others get answers without extras.
	followsContract bool
	// wantsTimes says that the caller wants to know where the time went.
	wantsTimes bool
	// retry counts the refusals that the request follows; a refusal echoes it.
	retry int64
	// headerBytes counts the headers of a record in a batch.
	headerBytes int
	// tooLarge says that the body was beyond the limit, and was not read.
	tooLarge bool
}

const noBudget time.Duration = -1

// decodeRequest reads a request from any client. A request that names no method is one
// for defaultMethod, if that is not "". The error, if any, is for the caller; the request
// is filled in as far as it could be read, so that it can be answered.
func decodeRequest(d *amqp.Delivery, defaultMethod string) (*incoming, *Error) {
	in := &incoming{
		Request: Request{
			Method:          d.AppId,
			Body:            d.Body,
			Header:          applicationHeader(d.Headers),
			ContentType:     d.ContentType,
			ContentEncoding: d.ContentEncoding,
			CorrelationID:   cmp.Or(d.CorrelationId, d.MessageId),
			OneWay:          d.ReplyTo == "",
		},
		replyTo: d.ReplyTo,
		budget:  noBudget,
	}
	if !safeReplyTo(d.ReplyTo) {
		in.OneWay = true // there is nowhere to send even the refusal
		return in, refusal(CodeInvalidArgument, "property reply_to is not an address of direct reply-to")
	}
	drop, dropped := droppedBodyOf(d.Headers)
	_, unreadable := d.Headers[headerUnreadable]
	if unreadable && !dropped {
		return in, refusal(CodeInvalidArgument, "headers nested deeper than %d or of more than %d entries", readableDepth, readableEntries)
	}
	if d.Type == typeCall || d.Type == typeIdempotentCall {
		in.followsContract, in.Idempotent = true, d.Type == typeIdempotentCall
		if n, err := strconv.ParseUint(d.Expiration, 10, 32); err == nil {
			in.budget = time.Duration(n) * time.Millisecond
		}
		in.IdempotencyKey = d.MessageId
	}
	if len(d.Headers) > 0 {
		if failed := in.readHeaders(d); failed != nil {
			return in, failed
		}
	}
	if in.followsContract && len(d.Headers) > 0 {
		in.readDeath(d)
	}
	in.Redelivered = d.Redelivered || in.resent || in.lostDeliveries > 0 || unreadable
	if in.Method == "" {
		in.Method = defaultMethod
	}
	switch {
	case dropped && !drop.noRoom:
		in.tooLarge = true
		return in, refusal(CodeInvalidArgument, "%s", drop.tooLarge())
	case in.Method == "":
		return in, refusal(CodeInvalidArgument, "property app_id is empty: it names the method")
	case len(in.Method) > maxShortString: // a header may be longer than a property
		return in, refusal(CodeInvalidArgument, "method name of %d bytes: want 1 to %d", len(in.Method), maxShortString)
	}
	return in, nil
}

// readDeath reads x-death, the record of a request that a policy has dead-lettered: that
// removes its expiration (https://www.rabbitmq.com/docs/dlx#effects). A request that expired
// is over. One that was dead-lettered for another reason has at most its first budget.
func (in *incoming) readDeath(d *amqp.Delivery) {
	deaths, _ := d.Headers["x-death"].([]any)
	for _, v := range deaths {
		death, _ := v.(amqp.Table)
		expiration, _ := death["original-expiration"].(string)
		n, err := strconv.ParseUint(expiration, 10, 32)
		if err != nil {
			continue
		}
		if death["reason"] == "expired" {
			in.expired = true
		}
		if in.budget == noBudget {
			in.budget = time.Duration(n) * time.Millisecond
		}
	}
}

// readHeaders reads the headers of the contract. Programs that can send nothing but text,
// as over STOMP, send true, false and whole numbers as text.
func (in *incoming) readHeaders(d *amqp.Delivery) *Error {
	h := d.Headers
	if v, ok := h[headerMethod]; ok && in.Method == "" {
		if in.Method, ok = v.(string); !ok {
			return refusal(CodeInvalidArgument, "header %s: want text, got %s", headerMethod, describe(v))
		}
	}
	if v, ok := h[headerTimeout]; ok {
		in.followsContract, in.wantsTimes, in.IdempotencyKey = true, true, d.MessageId
		n, ok := wholeNumber(v)
		switch {
		case !ok:
			in.budget = noBudget
			return refusal(CodeInvalidArgument, "header %s: want a whole number, got %s", headerTimeout, describe(v))
		case n < 0:
			in.budget = noBudget
			return refusal(CodeInvalidArgument, "header %s: want 0 or more, got %s", headerTimeout, describe(v))
		}
		in.budget = duration(v, time.Millisecond)
	}
	if v, ok := h[headerIdempotent]; ok {
		in.IdempotencyKey = d.MessageId
		if in.Idempotent, ok = truth(v); !ok {
			return refusal(CodeInvalidArgument, "header %s: want true or false, got %s", headerIdempotent, describe(v))
		}
	}
	if v, ok := truth(h[headerTimes]); ok {
		in.wantsTimes = v
	}
	in.resent, _ = truth(h[headerResent])
	if n, ok := wholeNumber(h[headerDeliveries]); ok {
		in.lostDeliveries = int(min(max(n, 0), math.MaxInt32))
	}
	in.retry, _ = wholeNumber(h[headerRetry])
	return nil
}

// expiredRefusal refuses a request whose time was over when a worker was free.
func expiredRefusal(budget, queued time.Duration) *Error {
	if budget == 0 {
		return refusal(CodeDeadlineExceeded, "the call's time is 0 ms")
	}
	return refusal(CodeDeadlineExceeded, "expired after %v in the server, before a worker was free", queued)
}

// refusal is a coded error of the server for a request that it did not run.
func refusal(code Code, format string, args ...any) *Error {
	e := Errorf(code, format, args...)
	e.outcome = DidNotRun
	return e
}
