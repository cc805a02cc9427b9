package amqpx

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/encoding/protowire"
)

// checkRequest refuses a request that cannot be sent. Method and key are AMQP short strings
// (AMQP 0-9-1 section 4.2.5.3).
func checkRequest(req *Request, maxBody int) error {
	switch {
	case req.Method == "" || len(req.Method) > maxShortString:
		return fmt.Errorf("method name of %d bytes: want 1 to %d", len(req.Method), maxShortString)
	case len(req.CorrelationID) > maxShortString: // set by middleware
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

// sendable returns the request in the form to send, with headers of AMQP's types, or the
// reason why it cannot be sent. A request visible to middleware is copied, because middleware
// may change it again.
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

// encodeRequest returns the message of an attempt, with a table of headers only if the request
// needs one. budget is the remaining time.
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

// markAgain marks a request that is not the first of its call. resent: an earlier request may
// have arrived. retry: the number of refusals by servers before this request.
func markAgain(msg *amqp.Publishing, resent bool, retry int64) {
	if resent {
		setHeader(msg, headerResent, true)
	}
	if retry > 0 {
		setHeader(msg, headerRetry, retry)
	}
}

// incoming is a request as received by a server.
type incoming struct {
	Request

	replyTo string
	// resent: the caller sent this request before, with unknown result.
	resent bool
	// lostDeliveries counts how often servers lost the request before it was published to the
	// present queue.
	lostDeliveries int
	// budget is the remaining time at the request's arrival; noBudget: the caller set no
	// limit.
	budget time.Duration
	// expired: the request's time ended in another queue.
	expired bool
	// followsContract: the caller follows this contract. It reads the contract's headers, and
	// uses no correlation id twice. Other callers get responses without extras.
	followsContract bool
	// wantsTimes: the caller wants the times of the call in the server.
	wantsTimes bool
	// retry counts the refusals before this request; a further refusal echoes the number.
	retry int64
	// headerBytes counts the bytes of the headers of a record in a batch.
	headerBytes int
	// tooLarge: the body exceeded the limit and was discarded.
	tooLarge bool
}

const noBudget time.Duration = -1

// decodeRequest decodes a request of any client. A request without a method gets
// defaultMethod, if not "". The error, if any, is for the caller; the result contains all
// fields that could be decoded, so that the server can respond.
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
		in.OneWay = true // without an address there is no response, not even the refusal
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

// readDeath reads x-death, which the broker adds to a request when a policy dead-letters it,
// and removes the expiration (https://www.rabbitmq.com/docs/dlx#effects). If the request
// expired, its time is over. If it was dead-lettered for another reason, its budget is at most
// the original.
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

// readHeaders reads the contract's headers. Programs limited to text headers, for example over
// STOMP, send booleans and whole numbers as text.
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

// expiredRefusal refuses a request whose time had ended before a worker was free.
func expiredRefusal(budget, queued time.Duration) *Error {
	if budget == 0 {
		return refusal(CodeDeadlineExceeded, "the call's time is 0 ms")
	}
	return refusal(CodeDeadlineExceeded, "expired after %v in the server, before a worker was free", queued)
}

// refusal returns the coded error with which a server refuses a request without running it.
func refusal(code Code, format string, args ...any) *Error {
	e := Errorf(code, format, args...)
	e.outcome = DidNotRun
	return e
}

// Field numbers of a call's record, and of a header's record in it.
const (
	callID          = 1
	callMethod      = 2
	callBody        = 3
	callTimeout     = 4
	callMessageID   = 5
	callIdempotent  = 6
	callResent      = 7
	callRetry       = 8
	callHeader      = 9
	callContentType = 10
	callEncoding    = 11

	headerName  = 1
	headerValue = 2
)

// fitsBatch reports whether a request can travel in a batch: all its headers must be text.
func fitsBatch(req *Request) bool {
	return allText(req.Header)
}

// callSize returns an upper bound of the bytes that appendCall appends.
func callSize(req *Request) int {
	n := recordOverhead + len(req.CorrelationID) + len(req.Method) + len(req.Body) + len(req.IdempotencyKey) +
		len(req.ContentType) + len(req.ContentEncoding)
	return n + headersSize(req.Header)
}

// headersSize returns an upper bound of the bytes that appendHeaders appends.
func headersSize(header map[string]any) (n int) {
	for name, value := range header {
		v, _ := value.(string) // a request in a batch has only text headers
		n += headerRecordSize(name, v) + 2*protowire.SizeVarint(maxHeaderBytes)
	}
	return n
}

// appendHeaders appends text headers as fields of a record.
func appendHeaders(b []byte, number protowire.Number, header map[string]any) []byte {
	for name, v := range header {
		value, _ := v.(string)
		b = protowire.AppendTag(b, number, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(headerRecordSize(name, value))) //nolint:gosec // a length.
		b = protowire.AppendTag(b, headerName, protowire.BytesType)
		b = protowire.AppendString(b, name)
		b = protowire.AppendTag(b, headerValue, protowire.BytesType)
		b = protowire.AppendString(b, value)
	}
	return b
}

func headerRecordSize(name, value string) int {
	return protowire.SizeTag(headerName) + protowire.SizeBytes(len(name)) + protowire.SizeTag(headerValue) + protowire.SizeBytes(len(value))
}

// appendCall appends a call's record. budget is the remaining time.
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
	b = appendText(b, callContentType, req.ContentType)
	b = appendText(b, callEncoding, req.ContentEncoding)
	b = appendHeaders(b, callHeader, req.Header)
	return endRecord(b, start)
}

// decodeCall decodes the record of a request into in, with the same result as decodeRequest.
// The result does not refer to the record's memory. intern converts a method's name to a
// string; for an empty name it returns the default method, if there is one.
func decodeCall(in *incoming, record []byte, replyTo string, intern func([]byte) string) *Error {
	in.replyTo, in.budget, in.followsContract = replyTo, noBudget, true
	in.OneWay = replyTo == ""
	var failed *Error
	for len(record) > 0 {
		var f field
		f, record = nextField(record)
		if fault := in.set(f, intern); fault != nil && failed == nil {
			failed = fault
		}
	}
	if in.Idempotent && in.IdempotencyKey == "" {
		in.IdempotencyKey = in.CorrelationID
	}
	if in.Method == "" {
		in.Method = intern(nil)
	}
	in.Redelivered = in.resent
	switch {
	case !safeReplyTo(replyTo):
		in.OneWay = true // without an address there is no response, not even the refusal
		return refusal(CodeInvalidArgument, "property reply_to is not an address of direct reply-to")
	case failed != nil:
		return failed
	case len(in.Header) > 0 && checkTable(in.Header) != nil: // a server may have to republish the request alone
		return refusal(CodeInvalidArgument, "%v", checkTable(in.Header))
	case in.Method == "" || len(in.Method) > maxShortString:
		return refusal(CodeInvalidArgument, "method name of %d bytes: want 1 to %d", len(in.Method), maxShortString)
	case in.CorrelationID == "" && !in.OneWay:
		return refusal(CodeInvalidArgument, "the call has no id")
	default:
		return nil
	}
}

// set decodes a field of a call; a field of a wrong type is ignored.
func (in *incoming) set(f field, intern func([]byte) string) *Error {
	switch f.kind {
	case protowire.BytesType:
		return in.setBytes(f, intern)
	case protowire.VarintType:
		in.setNumber(f)
	default:
	}
	return nil
}

func (in *incoming) setBytes(f field, intern func([]byte) string) *Error {
	switch f.number {
	case callID:
		return setText(&in.CorrelationID, "id", f.bytes)
	case callMethod:
		in.Method = intern(f.bytes)
	case callBody:
		in.Body = bytes.Clone(f.bytes)
	case callMessageID:
		return setText(&in.IdempotencyKey, "message_id", f.bytes)
	case callContentType:
		return setText(&in.ContentType, "content_type", f.bytes)
	case callEncoding:
		return setText(&in.ContentEncoding, "content_encoding", f.bytes)
	case callHeader:
		return in.addHeader(f.bytes)
	}
	return nil
}

func (in *incoming) setNumber(f field) {
	switch f.number {
	case callTimeout:
		in.budget = boundedDuration(f.value, time.Millisecond)
	case callIdempotent:
		in.Idempotent = f.value != 0
	case callResent:
		in.resent = f.value != 0
	case callRetry:
		in.retry = int64(min(f.value, 1<<62))
	}
}

// setText decodes a short string: like a property of a message it may have any bytes.
func setText(to *string, what string, text []byte) *Error {
	if len(text) > maxShortString {
		return refusal(CodeInvalidArgument, "%s of %d bytes: want at most %d", what, len(text), maxShortString)
	}
	*to = string(text)
	return nil
}

// headerRecordOverhead is counted for each header in addition to its bytes, for the place in a
// map.
const headerRecordOverhead = 16

// addHeader decodes a header. The header's bytes are counted before the header is stored, so a
// record of many headers takes no more memory than its own size. A malformed header is
// refused.
func (in *incoming) addHeader(record []byte) *Error {
	if in.headerBytes > maxHeaderBytes {
		return nil // refused already
	}
	if in.headerBytes += len(record) + headerRecordOverhead; in.headerBytes > maxHeaderBytes {
		return refusal(CodeInvalidArgument, "headers of more than %d bytes", maxHeaderBytes)
	}
	name, value, ok := readHeader(record)
	switch {
	case !ok:
		return refusal(CodeInvalidArgument, "a header cannot be read")
	case strings.HasPrefix(name, headerPrefix): // not the application's
		return nil
	}
	if in.Header == nil {
		in.Header = make(map[string]any)
	}
	in.Header[name] = value
	return nil
}

// readHeader decodes the record of a header. ok is false for a malformed record or a name over
// the size limit.
func readHeader(record []byte) (name, value string, ok bool) {
	if !isMessage(record) {
		return "", "", false
	}
	for len(record) > 0 {
		var f field
		f, record = nextField(record)
		switch f.number {
		case headerName:
			name = string(f.bytes)
		case headerValue:
			value = string(f.bytes)
		}
	}
	return name, value, len(name) <= maxShortString
}
