package amqpx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Batches on the wire: several requests, or several answers, in one body, in the wire
// format of protocol buffers (https://protobuf.dev/programming-guides/encoding/), so that
// any language reads them. docs/protocol.md has the messages. What a record means is
// what the properties and headers of a message that travels alone mean.

const (
	contentTypeCalls   = "application/vnd.amqpx.calls.v1"
	contentTypeAnswers = "application/vnd.amqpx.answers.v1"
	// maxBatchCalls is the most records that a reader takes.
	maxBatchCalls = 4096
)

// Field numbers.
const (
	fieldRecord protowire.Number = 1 // of a batch

	callID         protowire.Number = 1
	callMethod     protowire.Number = 2
	callBody       protowire.Number = 3
	callTimeout    protowire.Number = 4
	callMessageID  protowire.Number = 5
	callIdempotent protowire.Number = 6
	callResent     protowire.Number = 7
	callRetry      protowire.Number = 8
	callHeader     protowire.Number = 9

	headerName  protowire.Number = 1
	headerValue protowire.Number = 2

	answerID         protowire.Number = 1
	answerBody       protowire.Number = 2
	answerCode       protowire.Number = 3
	answerRan        protowire.Number = 4
	answerRetry      protowire.Number = 5
	answerRetryAfter protowire.Number = 6
	answerQueueTime  protowire.Number = 7
	answerHandler    protowire.Number = 8
)

// Values of answerRan. Without it the server cannot tell.
const (
	ranNot uint64 = 1
	ranYes uint64 = 2
)

// recordOverhead bounds what the numbers, tags and lengths of a record take.
const recordOverhead = 64

var errBatchFormat = errors.New("not a batch")

// batchable reports whether a request can travel in a batch: headers are text there.
func batchable(req *Request) bool {
	for _, v := range req.Header {
		if _, ok := v.(string); !ok {
			return false
		}
	}
	return true
}

// callSize bounds what appendCall appends.
func callSize(req *Request) int {
	n := recordOverhead + len(req.CorrelationID) + len(req.Method) + len(req.Body) + len(req.IdempotencyKey)
	for name, v := range req.Header {
		n += headerRecordSize(name, v.(string)) + 2*protowire.SizeVarint(maxHeaderBytes) //nolint:forcetypeassert // batchable.
	}
	return n
}

func headerRecordSize(name, value string) int {
	return protowire.SizeTag(headerName) + protowire.SizeBytes(len(name)) + protowire.SizeTag(headerValue) + protowire.SizeBytes(len(value))
}

// appendCall appends a call's record. budget is the time that is left.
func appendCall(b []byte, req *Request, budget time.Duration, resent bool, retry int64) []byte {
	b, start := beginRecord(b)
	b = appendText(b, callID, req.CorrelationID)
	b = appendText(b, callMethod, req.Method)
	b = appendBlob(b, callBody, req.Body)
	b = appendNumber(b, callTimeout, uint64(milliseconds(min(budget, maxBudget)))) //nolint:gosec // never negative.
	if req.IdempotencyKey != req.CorrelationID || !req.Idempotent {
		b = appendText(b, callMessageID, req.IdempotencyKey)
	}
	if req.Idempotent {
		b = appendNumber(b, callIdempotent, 1)
	}
	if resent {
		b = appendNumber(b, callResent, 1)
	}
	if retry > 0 {
		b = appendNumber(b, callRetry, uint64(retry))
	}
	for name, v := range req.Header {
		value, _ := v.(string)
		b = protowire.AppendTag(b, callHeader, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(headerRecordSize(name, value))) //nolint:gosec // a length.
		b = protowire.AppendTag(b, headerName, protowire.BytesType)
		b = protowire.AppendString(b, name)
		b = protowire.AppendTag(b, headerValue, protowire.BytesType)
		b = protowire.AppendString(b, value)
	}
	return endRecord(b, start)
}

// lengthSize is the size of a record's length, which is written before the record is
// known: a varint may have more bytes than it needs.
const lengthSize = 4

func beginRecord(b []byte) (_ []byte, start int) {
	b = protowire.AppendTag(b, fieldRecord, protowire.BytesType)
	return append(b, 0, 0, 0, 0), len(b) + lengthSize
}

func endRecord(b []byte, start int) []byte {
	n := len(b) - start
	for i := range lengthSize {
		b[start-lengthSize+i] = byte(n>>(7*i))&0x7f | 0x80
	}
	b[start-1] &= 0x7f
	return b
}

func appendText(b []byte, field protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, text)
}

func appendBlob(b []byte, field protowire.Number, blob []byte) []byte {
	if len(blob) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, blob)
}

func appendNumber(b []byte, field protowire.Number, n uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, n)
}

// field is one field of a record: a number, or bytes.
type field struct {
	number protowire.Number
	value  uint64
	bytes  []byte // nil unless it holds bytes
}

// eachField reads a message field by field and skips those of other types.
func eachField(b []byte, each func(f field) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errBatchFormat
		}
		b = b[n:]
		f := field{number: number}
		known := true
		switch kind {
		case protowire.VarintType:
			f.value, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default:
			known, n = false, protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return errBatchFormat
		}
		b = b[n:]
		if !known {
			continue
		}
		if err := each(f); err != nil {
			return err
		}
	}
	return nil
}

// eachRecord calls each for every record of a batch, after it has seen that there are
// not too many.
func eachRecord(body []byte, each func(record []byte) error) error {
	count := 0
	err := eachField(body, func(f field) error {
		if f.number == fieldRecord && f.bytes != nil {
			count++
		}
		return nil
	})
	if err != nil {
		return err
	}
	if count > maxBatchCalls {
		return fmt.Errorf("%w: %d records, at most %d", errBatchFormat, count, maxBatchCalls)
	}
	return eachField(body, func(f field) error {
		if f.number != fieldRecord || f.bytes == nil {
			return nil
		}
		return each(f.bytes)
	})
}

// decodeCalls reads a batch of requests and calls each for all of them, in order, as
// decodeRequest would give them. Nothing that it hands out is a part of body. intern
// makes a string of a method's name. With an error nothing was handed out.
func decodeCalls(body []byte, replyTo string, intern func([]byte) string, each func(in *incoming, failed *Error)) error {
	for _, check := range []bool{true, false} {
		err := eachRecord(body, func(record []byte) error {
			if check {
				return eachField(record, func(field) error { return nil })
			}
			in, failed := decodeCall(record, replyTo, intern)
			each(in, failed)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeCall(record []byte, replyTo string, intern func([]byte) string) (*incoming, *Error) {
	in := &incoming{replyTo: replyTo, budget: noBudget, speaksHeaders: true}
	in.OneWay = replyTo == ""
	var failed *Error
	_ = eachField(record, func(f field) error {
		if fault := in.set(f, intern); fault != nil && failed == nil {
			failed = fault
		}
		return nil
	})
	if in.Idempotent && in.IdempotencyKey == "" {
		in.IdempotencyKey = in.CorrelationID
	}
	in.Redelivered = in.resent
	switch {
	case !safeReplyTo(replyTo):
		in.OneWay = true // there is nowhere to send even the refusal
		failed = refusal(CodeInvalidArgument, "property reply_to is not an address of direct reply-to")
	case failed != nil:
	case in.Method == "" || len(in.Method) > maxShortString:
		failed = refusal(CodeInvalidArgument, "method name of %d bytes: want 1 to %d", len(in.Method), maxShortString)
	case in.CorrelationID == "" && !in.OneWay:
		failed = refusal(CodeInvalidArgument, "the call has no id")
	}
	return in, failed
}

// set reads one field of a call.
func (in *incoming) set(f field, intern func([]byte) string) *Error {
	switch f.number {
	case callID:
		return setText(&in.CorrelationID, "id", f.bytes)
	case callMethod:
		if !utf8.Valid(f.bytes) {
			return setText(&in.Method, "method", f.bytes)
		}
		in.Method = intern(f.bytes)
	case callBody:
		in.Body = bytes.Clone(f.bytes)
	case callTimeout:
		in.budget = time.Duration(min(f.value, uint64(maxBudget/time.Millisecond))) * time.Millisecond //nolint:gosec // bounded.
	case callMessageID:
		return setText(&in.IdempotencyKey, "message_id", f.bytes)
	case callIdempotent:
		in.Idempotent = f.value != 0
	case callResent:
		in.resent = f.value != 0
	case callRetry:
		in.retry = int64(min(f.value, 1<<62)) //nolint:gosec // bounded.
	case callHeader:
		return in.addHeader(f.bytes)
	}
	return nil
}

// setText reads a short string.
func setText(to *string, what string, text []byte) *Error {
	if len(text) > maxShortString || !utf8.Valid(text) {
		return refusal(CodeInvalidArgument, "%s of %d bytes: want UTF-8 of at most %d", what, len(text), maxShortString)
	}
	*to = string(text)
	return nil
}

func (in *incoming) addHeader(record []byte) *Error {
	var name, value string
	err := eachField(record, func(f field) error {
		switch f.number {
		case headerName:
			name = string(f.bytes)
		case headerValue:
			value = string(f.bytes)
		}
		return nil
	})
	if err != nil || len(name) > maxShortString {
		return refusal(CodeInvalidArgument, "a header cannot be read")
	}
	if in.Header == nil {
		in.Header = make(map[string]any)
	}
	in.Header[name] = value
	return nil
}

// answerSize bounds what appendAnswer appends.
func answerSize(id string, r reply) int {
	n := recordOverhead + len(id) + len(r.body)
	if r.failed != nil {
		n += len(r.failed.code) + len(r.failed.message)
	}
	return n
}

// appendAnswer appends the record of what a request came to.
func appendAnswer(b []byte, in *incoming, r reply) []byte {
	b, start := beginRecord(b)
	b = appendText(b, answerID, in.CorrelationID)
	b = appendNumber(b, answerQueueTime, uint64(max(r.timing.queue.Microseconds(), 0)))
	b = appendNumber(b, answerHandler, uint64(max(r.timing.handler.Microseconds(), 0)))
	if r.failed == nil {
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

// decodeAnswers reads a batch of answers and calls each for all of them, in order. The
// id is a part of body, nothing else is. With an error nothing was handed out.
func decodeAnswers(body []byte, each func(id []byte, a received)) error {
	for _, check := range []bool{true, false} {
		err := eachRecord(body, func(record []byte) error {
			if check {
				return eachField(record, func(field) error { return nil })
			}
			each(decodeAnswerRecord(record))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeAnswerRecord(record []byte) (id []byte, a received) {
	e := &Error{remote: true, outcome: MayHaveRun}
	var body []byte
	_ = eachField(record, func(f field) error {
		switch f.number {
		case answerID:
			id = f.bytes
		case answerBody:
			body = f.bytes
		case answerCode:
			e.code = Code(f.bytes)
		case answerRan:
			e.outcome = outcomeOf(f.value)
		case answerRetry:
			a.round, a.echoed = int64(min(f.value, 1<<62)), true //nolint:gosec // bounded.
		case answerRetryAfter:
			e.retryAfter = boundedDuration(f.value, time.Millisecond)
		case answerQueueTime:
			a.timing.queue = boundedDuration(f.value, time.Microsecond)
		case answerHandler:
			a.timing.handler = boundedDuration(f.value, time.Microsecond)
		}
		return nil
	})
	if e.code == "" {
		a.body = bytes.Clone(body)
		return id, a
	}
	e.message = string(body)
	if !e.code.Valid() {
		e.code = CodeUnknown
	}
	if e.code == CodeDeadlineExceeded {
		e.causes = []error{context.DeadlineExceeded}
	}
	a.failed = e
	return id, a
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

// boundedDuration is n units, at most maxBudget.
func boundedDuration(n uint64, unit time.Duration) time.Duration {
	return time.Duration(min(n, uint64(maxBudget/unit))) * unit //nolint:gosec // bounded.
}
