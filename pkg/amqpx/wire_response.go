package amqpx

import (
	"bytes"
	"context"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/encoding/protowire"
)

// timing is the duration of a call's wait for a worker, and of its handler.
type timing struct{ queue, handler time.Duration }

// encodeResult returns the response of a successful call: correlation_id and body, and the
// times if the caller requested them.
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

// encodeError returns the response of a failed call. The text is also in the body, for clients
// that read no headers.
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

// decodeAnswer decodes a response of any server: a body, or the error in the headers.
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
	case !failed && d.Type == typeError: // from a server that does not know this contract
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

// tooLargeAnswer returns the error of a call whose response exceeded the client's limit. A
// response without a code is the result of a handler.
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

// received is a response that arrived at a client.
type received struct {
	reply

	// round is the value of rpc-retry in the response; echoed tells whether there is a value.
	round       int64
	echoed      bool
	redelivered bool
}

// receive decodes a response outside a batch.
func receive(d *amqp.Delivery) received {
	a := received{redelivered: d.Redelivered}
	a.body, a.timing, a.failed = decodeAnswer(d)
	a.props = receivedProperties(d)
	if a.failed != nil {
		a.round, a.echoed = wholeNumber(d.Headers[headerRetry])
	}
	return a
}

// outdated reports whether a response is a refusal of an earlier round of its call. A server
// that ran the request, of whatever round, responds for the whole call.
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

// Field numbers of a response's record.
const (
	answerID         = 1
	answerBody       = 2
	answerCode       = 3
	answerRan        = 4
	answerRetry      = 5
	answerRetryAfter = 6
	answerQueueTime  = 7
	answerHandler    = 8

	answerContentType = 9
	answerEncoding    = 10
	answerHeader      = 11
)

// Values of answerRan. The field is missing if the server cannot tell whether the request ran.
const (
	ranNot uint64 = 1
	ranYes uint64 = 2
)

// answerSize returns an upper bound of the bytes that appendAnswer appends.
func answerSize(id string, r reply) int {
	n := recordOverhead + len(id) + len(r.body)
	if r.failed != nil {
		n += len(r.failed.code) + len(r.failed.message)
	}
	if p := r.props; p != nil {
		n += len(p.contentType) + len(p.contentEncoding) + headersSize(p.header) + propertiesOverhead
	}
	return n
}

// propertiesOverhead bounds the size of the tags and lengths of a response's properties.
const propertiesOverhead = 8

// maxAnswerHeaders bounds the headers that a reader accepts in a response of a batch.
const maxAnswerHeaders = 1024

// appendAnswer appends the record of a response.
func appendAnswer(b []byte, in *incoming, r reply) []byte {
	b, start := beginRecord(b)
	b = appendText(b, answerID, in.CorrelationID)
	b = appendNumber(b, answerQueueTime, uint64(max(r.timing.queue.Microseconds(), 0)))
	b = appendNumber(b, answerHandler, uint64(max(r.timing.handler.Microseconds(), 0)))
	if r.props != nil {
		b = appendHeaders(b, answerHeader, r.props.header)
	}
	if r.failed == nil {
		if r.props != nil {
			b = appendText(b, answerContentType, r.props.contentType)
			b = appendText(b, answerEncoding, r.props.contentEncoding)
		}
		return endRecord(appendBlob(b, answerBody, r.body), start)
	}
	b = appendText(b, answerBody, r.failed.message)
	b = appendText(b, answerCode, string(r.failed.code))
	switch r.failed.outcome {
	case DidNotRun:
		b = appendNumber(b, answerRan, ranNot)
		b = appendNumber(b, answerRetry, uint64(max(in.retry, 0)))
	case Ran:
		b = appendNumber(b, answerRan, ranYes)
	case MayHaveRun:
	}
	if r.failed.retryAfter > 0 {
		b = appendNumber(b, answerRetryAfter, uint64(milliseconds(r.failed.retryAfter))) //nolint:gosec // positive.
	}
	return endRecord(b, start)
}

// batchedAnswer is a response in a batch, with its call.
type batchedAnswer struct {
	received

	id      []byte // refers to the batch's body
	call    *call  // the call of the response
	verdict matchResult
}

// decodeAnswers appends the responses of a batch to answers; after an error it appends none.
// Only the ids refer to the memory of body.
func decodeAnswers(body []byte, redelivered bool, answers []batchedAnswer) ([]batchedAnswer, error) {
	var room [64][]byte
	records, err := appendRecords(room[:0], body)
	if err != nil {
		return answers, err
	}
	for _, record := range records {
		a := batchedAnswer{}
		a.id = a.decode(record)
		a.redelivered = redelivered
		answers = append(answers, a)
	}
	return answers, nil
}

// decode decodes the record of a response and returns the id of its call.
func (a *received) decode(record []byte) (id []byte) {
	var body, code []byte
	e := Error{remote: true, outcome: MayHaveRun}
	for len(record) > 0 {
		var f field
		f, record = nextField(record)
		switch {
		case f.kind == protowire.VarintType:
			a.setNumber(&e, f)
		case f.kind != protowire.BytesType:
		case f.number == answerID:
			id = f.bytes
		case f.number == answerBody:
			body = f.bytes
		case f.number == answerCode:
			code = f.bytes
		case f.number >= answerContentType && f.number <= answerHeader:
			a.setProperty(f)
		}
	}
	if len(code) == 0 {
		a.body = bytes.Clone(body)
		return id
	}
	e.code, e.message = Code(code), string(body)
	if !e.code.Valid() {
		e.code = CodeUnknown
	}
	if e.code == CodeDeadlineExceeded {
		e.causes = []error{context.DeadlineExceeded}
	}
	failed := e // so that e stays on the stack in the absence of an error
	a.failed = &failed
	return id
}

// setProperty decodes a content type, a content encoding or a header. It ignores a malformed
// header.
func (a *received) setProperty(f field) {
	if a.props == nil {
		a.props = &properties{}
	}
	switch f.number {
	case answerContentType:
		a.props.contentType = string(f.bytes)
	case answerEncoding:
		a.props.contentEncoding = string(f.bytes)
	case answerHeader:
		name, value, ok := readHeader(f.bytes)
		if !ok || strings.HasPrefix(name, headerPrefix) || len(a.props.header) >= maxAnswerHeaders {
			return
		}
		if a.props.header == nil {
			a.props.header = make(map[string]any)
		}
		a.props.header[name] = value
	}
}

// setNumber decodes a numeric field of a response, into a or, for an error, into e.
func (a *received) setNumber(e *Error, f field) {
	switch f.number {
	case answerRan:
		e.outcome = outcomeOf(f.value)
	case answerRetry:
		a.round, a.echoed = int64(min(f.value, 1<<62)), true
	case answerRetryAfter:
		e.retryAfter = boundedDuration(f.value, time.Millisecond)
	case answerQueueTime:
		a.timing.queue = boundedDuration(f.value, time.Microsecond)
	case answerHandler:
		a.timing.handler = boundedDuration(f.value, time.Microsecond)
	}
}

func outcomeOf(ran uint64) Outcome {
	switch ran {
	case ranNot:
		return DidNotRun
	case ranYes:
		return Ran
	default:
		return MayHaveRun
	}
}
