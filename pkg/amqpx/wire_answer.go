package amqpx

import (
	"context"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// timing says where a call's time went inside the server.
type timing struct{ queue, handler time.Duration }

// encodeResult makes the answer of a call that succeeded: correlation_id and body, and
// the times for a caller that wants them.
func encodeResult(in *incoming, body []byte, t timing, persistent bool) amqp.Publishing {
	msg := amqp.Publishing{
		CorrelationId: in.CorrelationID,
		DeliveryMode:  deliveryMode(persistent),
		Body:          body,
	}
	if in.wantsTimes {
		msg.Headers = amqp.Table{
			headerQueueTime: t.queue.Microseconds(),
			headerHandler:   t.handler.Microseconds(),
		}
	}
	return msg
}

// encodeError makes the answer of a call that failed. The text is in the body too,
// for a client that reads no headers.
func encodeError(in *incoming, e *Error, t timing, persistent bool) amqp.Publishing {
	msg := encodeResult(in, []byte(e.message), t, persistent)
	if msg.Headers == nil {
		msg.Headers = amqp.Table{}
	}
	msg.Headers[headerCode] = string(e.code)
	msg.Headers[headerMessage] = truncate(e.message, maxMessageHeader)
	if e.outcome != MayHaveRun {
		msg.Headers[headerRan] = e.outcome == Ran
	}
	if e.outcome == DidNotRun && in.followsContract {
		msg.Headers[headerRetry] = in.retry
	}
	if e.server != "" && in.followsContract {
		msg.Headers[headerServer] = e.server
	}
	if e.retryAfter > 0 {
		msg.Headers[headerRetryAfter] = milliseconds(e.retryAfter)
	}
	return msg
}

// decodeAnswer reads an answer from any server: a body, or the error that the
// headers describe.
func decodeAnswer(d *amqp.Delivery) ([]byte, timing, *Error) {
	var t timing
	t.queue = duration(d.Headers[headerQueueTime], time.Microsecond)
	t.handler = duration(d.Headers[headerHandler], time.Microsecond)
	if drop, ok := droppedBodyOf(d.Headers); ok {
		return nil, t, tooLargeAnswer(d.Headers, drop)
	}
	if _, ok := d.Headers[headerUnreadable]; ok {
		return nil, t, &Error{code: CodeDataLoss, message: "the answer's headers cannot be read", remote: true, outcome: MayHaveRun}
	}
	raw, failed := d.Headers[headerCode]
	switch {
	case !failed && d.Type == typeError: // of a server that does not know this contract
		return nil, t, &Error{code: CodeUnknown, message: string(d.Body), remote: true, outcome: Ran}
	case !failed:
		return d.Body, t, nil
	}
	text, _ := raw.(string)
	e := &Error{code: Code(text), message: string(d.Body), remote: true, outcome: MayHaveRun}
	if !e.code.Valid() {
		e.code = CodeUnknown
	}
	if e.code == CodeDeadlineExceeded {
		// The caller need not know whose clock ran out first.
		e.causes = []error{context.DeadlineExceeded}
	}
	if e.message == "" {
		e.message, _ = d.Headers[headerMessage].(string)
	}
	if ran, said := truth(d.Headers[headerRan]); said && ran {
		e.outcome = Ran
	} else if said {
		e.outcome = DidNotRun
	}
	e.retryAfter = duration(d.Headers[headerRetryAfter], time.Millisecond)
	e.server, _ = d.Headers[headerServer].(string)
	return nil, t, e
}

// tooLargeAnswer is the error of a call whose answer was beyond the client's limit. An
// answer without a code is that of a handler.
func tooLargeAnswer(h amqp.Table, drop droppedBody) *Error {
	e := &Error{code: CodeResourceExhausted, message: "answer: " + drop.tooLarge(), causes: []error{ErrTooLarge}}
	_, failed := h[headerCode]
	_, unreadable := h[headerUnreadable]
	ran, said := h[headerRan].(bool)
	switch {
	case unreadable, failed && !said:
		e.outcome = MayHaveRun
	case failed && !ran:
		e.outcome = DidNotRun
	default:
		e.outcome = Ran
	}
	return e
}

// received is an answer as a client got it.
type received struct {
	reply

	// round is the rpc-retry that it echoes, if it does.
	round       int64
	echoed      bool
	redelivered bool
}

// receive reads an answer that came alone.
func receive(d *amqp.Delivery) received {
	a := received{redelivered: d.Redelivered}
	a.body, a.timing, a.failed = decodeAnswer(d)
	a.props = receivedProperties(d)
	if a.failed != nil {
		a.round, a.echoed = wholeNumber(d.Headers[headerRetry])
	}
	return a
}

// outdated reports whether an answer is a refusal that answers an earlier round of
// its call. A server that ran the request answers for the whole call, whichever
// request it had.
func (a *received) outdated(round int64) bool {
	if round == 0 || a.echoed && a.round == round || !a.echoed && !a.redelivered {
		return false
	}
	return a.failed != nil && a.failed.outcome == DidNotRun
}

// truncate cuts text to at most n bytes of valid UTF-8.
func truncate(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	return strings.ToValidUTF8(text, "")
}
