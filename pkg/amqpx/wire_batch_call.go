package amqpx

import (
	"bytes"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of a call's record, and of a header in it.
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

// batchable reports whether a request can travel in a batch: headers are text there.
func batchable(req *Request) bool {
	return allText(req.Header)
}

// callSize bounds what appendCall appends.
func callSize(req *Request) int {
	n := recordOverhead + len(req.CorrelationID) + len(req.Method) + len(req.Body) + len(req.IdempotencyKey) +
		len(req.ContentType) + len(req.ContentEncoding)
	return n + headersSize(req.Header)
}

// headersSize bounds what appendHeaders appends.
func headersSize(header map[string]any) (n int) {
	for name, value := range header {
		v, _ := value.(string) // batchable
		n += headerRecordSize(name, v) + 2*protowire.SizeVarint(maxHeaderBytes)
	}
	return n
}

// appendHeaders appends headers, which are text, as fields of a record.
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
	b = appendText(b, callContentType, req.ContentType)
	b = appendText(b, callEncoding, req.ContentEncoding)
	b = appendHeaders(b, callHeader, req.Header)
	return endRecord(b, start)
}

// decodeCall reads the record of a request into in, as decodeRequest would give it.
// Nothing in it is a part of the record. intern makes a string of a method's name;
// for an empty one it returns the default method, if there is one.
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
		in.OneWay = true // there is nowhere to send even the refusal
		return refusal(CodeInvalidArgument, "property reply_to is not an address of direct reply-to")
	case failed != nil:
		return failed
	case len(in.Header) > 0 && checkTable(in.Header) != nil: // it may have to go on alone
		return refusal(CodeInvalidArgument, "%v", checkTable(in.Header))
	case in.Method == "" || len(in.Method) > maxShortString:
		return refusal(CodeInvalidArgument, "method name of %d bytes: want 1 to %d", len(in.Method), maxShortString)
	case in.CorrelationID == "" && !in.OneWay:
		return refusal(CodeInvalidArgument, "the call has no id")
	default:
		return nil
	}
}

// set reads one field of a call; one of another type than it should have is as good as
// none.
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

// setText reads a short string: like a property of a message, any bytes.
func setText(to *string, what string, text []byte) *Error {
	if len(text) > maxShortString {
		return refusal(CodeInvalidArgument, "%s of %d bytes: want at most %d", what, len(text), maxShortString)
	}
	*to = string(text)
	return nil
}

// headerRecordOverhead is what a header counts beside its bytes: it takes a place in a map.
const headerRecordOverhead = 16

// addHeader reads a header. Its bytes are counted before it is kept, so that a record of
// many headers takes no more memory than its own. A record of it that is no message is refused.
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

// readHeader reads the record of a header, unless it is no message or its name is too long.
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
