package wire

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

// Request is a request as it travels, in a message of its own or in a record of a batch. A
// client fills the fields up to Priority once for each call; a decoder fills all fields.
type Request struct {
	// Method is the method's name (app_id).
	Method string
	// Body is the argument.
	Body []byte
	// Header holds the application's headers, in types that amqp091-go writes; see
	// [EncodeHeader]. May be nil.
	Header map[string]any
	// ContentType and ContentEncoding describe the body; may be "".
	ContentType, ContentEncoding string
	// AcceptEncoding lists the content encodings that the response may have, separated by commas;
	// may be "".
	AcceptEncoding string
	// ID is the id of the call (correlation_id).
	ID string
	// Key is the idempotency key (message_id); may be "".
	Key string
	// Retry counts the refusals before this request; a further refusal echoes the number.
	Retry int64
	// Idempotent is true if the caller declared the call safe to run twice.
	Idempotent bool
	// Resent is true if the caller sent this request before, with unknown result.
	Resent bool
	// WantsTimes is true if the caller wants the times of the call in the server.
	WantsTimes bool
	// Unsampled is true if the caller decided not to trace the call, and has no trace context.
	Unsampled bool
	// Priority is AMQP's priority of the message. Requests in batches have priority 0.
	Priority uint8

	// The fields below are only set by decoders.

	// FollowsContract is true if the caller follows this contract: it reads the contract's
	// headers, and uses no correlation id twice. Other callers get responses without extras.
	FollowsContract bool
	// OneWay is true if there is no address for a response, or none to which a response may be
	// published.
	OneWay bool
	// Redelivered is true if the request may have run before.
	Redelivered bool
	// Expired is true if the request's time ended in another queue.
	Expired bool
	// TooLarge is true if the body exceeded the limit and was discarded.
	TooLarge bool

	headerBytes int32 // the bytes of the headers in a record

	// ReplyTo is the address for the response.
	ReplyTo string
	// Budget is the remaining time at the request's arrival; [NoBudget]: the caller set no
	// limit.
	Budget time.Duration
	// LostDeliveries counts how often servers lost the request before it was published to the
	// present queue.
	LostDeliveries int
}

// NoBudget is the budget of a request whose caller set no limit.
const NoBudget time.Duration = -1

// UniqueID is the minimum length, in bytes, of an id that is considered unique among all
// programs: the length of a UUID's bytes. Programs which number their calls have shorter ids.
const UniqueID = 16

// idIsKey reports whether the id is the idempotency key of a request that has no other key.
func (r *Request) idIsKey() bool { return r.Idempotent && len(r.ID) >= UniqueID }

// sentKey returns the idempotency key as it travels: "" for the key that every server takes from
// the id, because the second text would cost 6 % of the calls/s of single messages.
func (r *Request) sentKey() string {
	if r.Key == r.ID && r.idIsKey() {
		return ""
	}
	return r.Key
}

// takeKey sets the key that the sender has left out, see sentKey. A program which does not follow
// the contract may use its ids again.
func (r *Request) takeKey() {
	if r.Key == "" && r.FollowsContract && r.idIsKey() {
		r.Key = r.ID
	}
}

// Check refuses a request that cannot be sent, or whose body has more than maxBody bytes.
// Method and key are AMQP short strings (AMQP 0-9-1 section 4.2.5.3).
func (r *Request) Check(maxBody int) error {
	if err := CheckCall(r.Method, r.Body, maxBody); err != nil {
		return err
	}
	switch {
	case len(r.ID) > MaxShortString: // set by middleware
		return fmt.Errorf("correlation id of %d bytes: want at most %d", len(r.ID), MaxShortString)
	case len(r.Key) > MaxShortString:
		return fmt.Errorf("idempotency key of %d bytes: want at most %d", len(r.Key), MaxShortString)
	case len(r.Header) > 0:
		if err := CheckHeader(r.Header); err != nil {
			return err
		}
	}
	if len(r.AcceptEncoding) > MaxShortString {
		return fmt.Errorf("accepted content encodings of %d bytes: want at most %d", len(r.AcceptEncoding), MaxShortString)
	}
	if r.ContentType != "" || r.ContentEncoding != "" {
		return CheckContent(r.ContentType, r.ContentEncoding)
	}
	return nil
}

// CheckCall is Check for a request that has only a method and a body.
func CheckCall(method string, body []byte, maxBody int) error {
	switch {
	case method == "" || len(method) > MaxShortString:
		return fmt.Errorf("method name of %d bytes: want 1 to %d", len(method), MaxShortString)
	case len(body) > maxBody:
		return fmt.Errorf("%w: body of %d bytes, limit %d", ErrTooLarge, len(body), maxBody)
	default:
		return nil
	}
}

// Publishing returns the message of the request, with a table of headers only if the request
// needs one. replyTo is the address for the response, and budget the remaining time or [NoBudget]:
// both may differ each time the request is sent.
func (r *Request) Publishing(replyTo string, budget time.Duration, persistent bool) amqp.Publishing {
	kind := TypeRequest
	if r.Idempotent {
		kind = TypeIdempotentRequest
	}
	msg := amqp.Publishing{
		Headers:         maps.Clone(amqp.Table(r.Header)),
		ContentType:     r.ContentType,
		ContentEncoding: r.ContentEncoding,
		Type:            kind,
		AppId:           r.Method,
		ReplyTo:         replyTo,
		CorrelationId:   r.ID,
		MessageId:       r.sentKey(),
		Expiration:      Expiration(budget),
		DeliveryMode:    DeliveryMode(persistent),
		Priority:        r.Priority,
		Body:            r.Body,
	}
	if r.WantsTimes {
		SetHeader(&msg, HeaderTimes, true)
	}
	if r.Unsampled {
		msg.Timestamp = UnsampledTimestamp()
	}
	if r.AcceptEncoding != "" {
		SetHeader(&msg, HeaderAccept, r.AcceptEncoding)
	}
	if r.Resent {
		SetHeader(&msg, HeaderResent, true)
	}
	if r.Retry > 0 {
		SetHeader(&msg, HeaderRetry, r.Retry)
	}
	return msg
}

// Decode decodes a request of any client into r, the zero value. A request without a method
// gets defaultMethod, if not "". The error, if any, is a [*FormatError]; after an error r has
// all fields that could be decoded, so that the server can respond.
func (r *Request) Decode(d *amqp.Delivery, defaultMethod string) error {
	r.Method, r.Body, r.Header = d.AppId, d.Body, ApplicationHeader(d.Headers)
	r.ContentType, r.ContentEncoding, r.Priority = d.ContentType, d.ContentEncoding, d.Priority
	r.ID = cmp.Or(d.CorrelationId, d.MessageId)
	r.ReplyTo, r.OneWay, r.Budget = d.ReplyTo, d.ReplyTo == "", NoBudget
	if !SafeReplyTo(d.ReplyTo) {
		r.OneWay = true // without an address there is no response, not even the refusal
		return errReplyTo
	}
	drop, dropped := DroppedBodyOf(d.Headers)
	_, unreadable := d.Headers[HeaderUnreadable]
	if unreadable && !dropped {
		return formatError("headers nested deeper than %d or of more than %d entries", ReadableDepth, ReadableEntries)
	}
	if d.Type == TypeRequest || d.Type == TypeIdempotentRequest {
		r.FollowsContract, r.Idempotent = true, d.Type == TypeIdempotentRequest
		if n, err := strconv.ParseUint(d.Expiration, 10, 32); err == nil {
			r.Budget = time.Duration(n) * time.Millisecond
		}
		r.Key, r.Unsampled = d.MessageId, IsUnsampledTimestamp(d.Timestamp)
	}
	if len(d.Headers) > 0 {
		if err := r.readHeaders(d); err != nil {
			return err
		}
	}
	r.takeKey()
	if r.FollowsContract && len(d.Headers) > 0 {
		r.readDeath(d)
	}
	r.Redelivered = d.Redelivered || r.Resent || r.LostDeliveries > 0 || unreadable
	if r.Method == "" {
		r.Method = defaultMethod
	}
	switch {
	case dropped && !drop.NoRoom:
		r.TooLarge = true
		return formatError("%s", drop.TooLarge())
	case r.Method == "":
		return formatError("property app_id is empty: it names the method")
	case len(r.Method) > MaxShortString: // a header may be longer than a property
		return formatError("method name of %d bytes: want 1 to %d", len(r.Method), MaxShortString)
	}
	return nil
}

var errReplyTo error = &FormatError{text: "property reply_to is not an address of direct reply-to"}

// readDeath reads x-death, which the broker adds to a request when a policy dead-letters it,
// and removes the expiration (https://www.rabbitmq.com/docs/dlx#effects). If the request
// expired, its time is over. If it was dead-lettered for another reason, its budget is at most
// the original.
func (r *Request) readDeath(d *amqp.Delivery) {
	deaths, _ := d.Headers[HeaderDeath].([]any)
	for _, v := range deaths {
		death, _ := v.(amqp.Table)
		expiration, _ := death["original-expiration"].(string)
		n, err := strconv.ParseUint(expiration, 10, 32)
		if err != nil {
			continue
		}
		if death["reason"] == "expired" {
			r.Expired = true
		}
		if r.Budget == NoBudget {
			r.Budget = time.Duration(n) * time.Millisecond
		}
	}
}

// readHeaders reads the contract's headers. Programs limited to text headers, for example over
// STOMP, send booleans and whole numbers as text.
func (r *Request) readHeaders(d *amqp.Delivery) error {
	h := d.Headers
	if v, ok := h[HeaderMethod]; ok && r.Method == "" {
		if r.Method, ok = v.(string); !ok {
			return formatError("header %s: want text, got %s", HeaderMethod, describe(v))
		}
	}
	if v, ok := h[HeaderTimeout]; ok {
		r.FollowsContract, r.WantsTimes, r.Key = true, true, d.MessageId
		n, ok := WholeNumber(v)
		switch {
		case !ok:
			r.Budget = NoBudget
			return formatError("header %s: want a whole number, got %s", HeaderTimeout, describe(v))
		case n < 0:
			r.Budget = NoBudget
			return formatError("header %s: want 0 or more, got %s", HeaderTimeout, describe(v))
		}
		r.Budget = duration(v, time.Millisecond)
	}
	if v, ok := h[HeaderIdempotent]; ok {
		r.Key = d.MessageId
		if r.Idempotent, ok = truth(v); !ok {
			return formatError("header %s: want true or false, got %s", HeaderIdempotent, describe(v))
		}
	}
	if v, ok := truth(h[HeaderTimes]); ok {
		r.WantsTimes = v
	}
	r.Resent, _ = truth(h[HeaderResent])
	if n, ok := WholeNumber(h[HeaderDeliveries]); ok {
		r.LostDeliveries = int(min(max(n, 0), math.MaxInt32))
	}
	r.Retry, _ = WholeNumber(h[HeaderRetry])
	if accept, _ := h[HeaderAccept].(string); len(accept) <= MaxShortString {
		r.AcceptEncoding = accept
	}
	return nil
}

// Field numbers of a request's record, and of a header's record in it.
const (
	requestID          = 1
	requestMethod      = 2
	requestBody        = 3
	requestTimeout     = 4
	requestMessageID   = 5
	requestIdempotent  = 6
	requestResent      = 7
	requestRetry       = 8
	requestHeader      = 9
	requestContentType = 10
	requestEncoding    = 11
	requestUnsampled   = 12
	requestTimes       = 13
	requestAccept      = 14

	headerName   = 1
	headerValue  = 2
	headerBinary = 3
)

// FitsBatch reports whether the request can travel in a batch: it must have no priority, and all its
// headers must be text or bytes.
func (r *Request) FitsBatch() bool { return r.Priority == 0 && allFlat(r.Header) }

// BatchSize returns an upper bound of the bytes that AppendTo appends.
func (r *Request) BatchSize() int {
	n := recordOverhead + len(r.ID) + len(r.Method) + len(r.Body) + len(r.Key) + len(r.ContentType) + len(r.ContentEncoding) + len(r.AcceptEncoding)
	return n + headersSize(r.Header)
}

// headersSize returns an upper bound of the bytes that appendHeaders appends.
func headersSize(header map[string]any) (n int) {
	for name, value := range header {
		n += headerRecordSize(name, value) + 2*protowire.SizeVarint(MaxHeaderBytes)
	}
	return n
}

// appendHeaders appends headers, which are text or bytes, as fields of a record.
func appendHeaders(b []byte, number protowire.Number, header map[string]any) []byte {
	for name, value := range header {
		b = protowire.AppendTag(b, number, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(headerRecordSize(name, value))) //nolint:gosec // a length.
		b = protowire.AppendTag(b, headerName, protowire.BytesType)
		b = protowire.AppendString(b, name)
		b = protowire.AppendTag(b, headerValue, protowire.BytesType)
		switch v := value.(type) {
		case string:
			b = protowire.AppendString(b, v)
		case []byte:
			b = protowire.AppendBytes(b, v)
			b = appendNumber(b, headerBinary, 1)
		}
	}
	return b
}

// headerRecordSize returns the size of the record of a header, which is text or bytes.
func headerRecordSize(name string, value any) int {
	n := protowire.SizeTag(headerName) + protowire.SizeBytes(len(name)) + protowire.SizeTag(headerValue)
	switch v := value.(type) {
	case string:
		n += protowire.SizeBytes(len(v))
	case []byte:
		n += protowire.SizeBytes(len(v)) + protowire.SizeTag(headerBinary) + protowire.SizeVarint(1)
	}
	return n
}

// AppendTo appends the record of the request to the body of a batch. budget is the remaining
// time, or [NoBudget].
func (r *Request) AppendTo(b []byte, budget time.Duration) []byte {
	b, start := beginRecord(b)
	return r.appendRest(appendText(b, requestID, r.ID), start, budget)
}

// AppendWithID is AppendTo for a request whose id is the text of a UUID, of which no string is made
// then: r.ID is ignored, but for its equality with r.Key.
func (r *Request) AppendWithID(b []byte, id *[16]byte, budget time.Duration) []byte {
	b, start := beginRecord(b)
	return r.appendRest(appendUUID(b, requestID, id), start, budget)
}

// appendRest appends the fields after the id, and ends the record.
func (r *Request) appendRest(b []byte, start int, budget time.Duration) []byte {
	b = appendText(b, requestMethod, r.Method)
	b = appendBlob(b, requestBody, r.Body)
	if budget != NoBudget {
		b = appendNumber(b, requestTimeout, uint64(Milliseconds(min(budget, MaxBudget)))) //nolint:gosec // never negative.
	}
	b = appendText(b, requestMessageID, r.sentKey())
	if r.Idempotent {
		b = appendNumber(b, requestIdempotent, 1)
	}
	if r.Resent {
		b = appendNumber(b, requestResent, 1)
	}
	if r.Retry > 0 {
		b = appendNumber(b, requestRetry, uint64(r.Retry))
	}
	b = appendText(b, requestContentType, r.ContentType)
	b = appendText(b, requestEncoding, r.ContentEncoding)
	if r.Unsampled {
		b = appendNumber(b, requestUnsampled, 1)
	}
	if r.WantsTimes {
		b = appendNumber(b, requestTimes, 1)
	}
	b = appendText(b, requestAccept, r.AcceptEncoding)
	b = appendHeaders(b, requestHeader, r.Header)
	return endRecord(b, start)
}

// DecodeRecord decodes a record of a batch into r, the zero value, with the same result as
// [Request.Decode]. replyTo is the address of the batch. The result does not refer to the
// record's memory. intern converts a method's name to a string; for an empty name it returns
// the default method, if there is one.
func (r *Request) DecodeRecord(record []byte, replyTo string, intern func([]byte) string) error {
	r.ReplyTo, r.Budget, r.FollowsContract = replyTo, NoBudget, true
	r.OneWay = replyTo == ""
	var failed error
	for len(record) > 0 {
		var f field
		f, record = nextField(record)
		if err := r.set(f, intern); err != nil && failed == nil {
			failed = err
		}
	}
	r.takeKey()
	if r.Method == "" {
		r.Method = intern(nil)
	}
	r.Redelivered = r.Resent
	switch {
	case !SafeReplyTo(replyTo):
		r.OneWay = true // without an address there is no response, not even the refusal
		return errReplyTo
	case failed != nil:
		return failed
	case len(r.Header) > 0 && CheckTable(r.Header) != nil: // a server may have to republish the request alone
		return formatError("%v", CheckTable(r.Header))
	case r.Method == "" || len(r.Method) > MaxShortString:
		return formatError("method name of %d bytes: want 1 to %d", len(r.Method), MaxShortString)
	case r.ID == "" && !r.OneWay:
		return formatError("the call has no id")
	default:
		return nil
	}
}

// set decodes a field of a record; a field of a wrong type is ignored.
func (r *Request) set(f field, intern func([]byte) string) error {
	switch f.kind {
	case protowire.BytesType:
		return r.setBytes(f, intern)
	case protowire.VarintType:
		r.setNumber(f)
	default:
	}
	return nil
}

func (r *Request) setBytes(f field, intern func([]byte) string) error {
	switch f.number {
	case requestID:
		return setText(&r.ID, "id", f.bytes)
	case requestMethod:
		r.Method = intern(f.bytes)
	case requestBody:
		r.Body = bytes.Clone(f.bytes)
	case requestMessageID:
		return setText(&r.Key, "message_id", f.bytes)
	case requestContentType:
		return setText(&r.ContentType, "content_type", f.bytes)
	case requestEncoding:
		return setText(&r.ContentEncoding, "content_encoding", f.bytes)
	case requestAccept:
		return setText(&r.AcceptEncoding, "accept_encoding", f.bytes)
	case requestHeader:
		return r.addHeader(f.bytes)
	}
	return nil
}

func (r *Request) setNumber(f field) {
	switch f.number {
	case requestTimeout:
		r.Budget = boundedDuration(f.value, time.Millisecond)
	case requestIdempotent:
		r.Idempotent = f.value != 0
	case requestResent:
		r.Resent = f.value != 0
	case requestRetry:
		r.Retry = int64(min(f.value, 1<<62))
	case requestUnsampled:
		r.Unsampled = f.value != 0
	case requestTimes:
		r.WantsTimes = f.value != 0
	}
}

// setText decodes a short string: like a property of a message it may have any bytes.
func setText(to *string, what string, text []byte) error {
	if len(text) > MaxShortString {
		return formatError("%s of %d bytes: want at most %d", what, len(text), MaxShortString)
	}
	*to = commonText(text)
	return nil
}

// headerRecordOverhead is counted for each header in addition to its bytes, for the place in a
// map.
const headerRecordOverhead = 16

// addHeader decodes a header. The header's bytes are counted before the header is stored, so a
// record of many headers takes no more memory than its own size. A malformed header is
// refused.
func (r *Request) addHeader(record []byte) error {
	if r.headerBytes > MaxHeaderBytes {
		return nil // refused already
	}
	r.headerBytes += int32(min(len(record)+headerRecordOverhead, MaxHeaderBytes+1))
	if r.headerBytes > MaxHeaderBytes {
		return formatError("headers of more than %d bytes", MaxHeaderBytes)
	}
	name, value, ok := readHeader(record)
	switch {
	case !ok:
		return formatError("a header cannot be read")
	case strings.HasPrefix(name, HeaderPrefix): // not the application's
		return nil
	}
	if r.Header == nil {
		r.Header = make(map[string]any)
	}
	r.Header[name] = value
	return nil
}

// readHeader decodes the record of a header. ok is false for a malformed record or a name over
// the size limit.
func readHeader(record []byte) (name string, value any, ok bool) {
	if !isMessage(record) {
		return "", nil, false
	}
	var raw []byte
	binary := false
	for len(record) > 0 {
		var f field
		f, record = nextField(record)
		switch f.number {
		case headerName:
			name = string(f.bytes)
		case headerValue:
			raw = f.bytes
		case headerBinary:
			binary = f.value != 0
		}
	}
	if binary {
		return name, append([]byte{}, raw...), len(name) <= MaxShortString
	}
	return name, string(raw), len(name) <= MaxShortString
}
