package wire

import (
	"bytes"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/encoding/protowire"
)

// Response is a response as it travels, in a message of its own or in a record of a batch: a
// result or a failure.
type Response struct {
	// ID is the correlation id of a response in a batch. It refers to the memory of the batch.
	// Only the decoder of batches sets ID; the encoders take the id from the request.
	ID []byte
	// Body is the result; nil for a failure.
	Body []byte
	// Failure is nil for a result.
	Failure *Failure
	// Properties are the properties of the application; nil if there are none.
	Properties *Properties
	// Times are the times of the call in the server, zero if the server did not report them.
	Times Times
	// Server is the id of the server that responds; nil if not known. In a response of a batch it
	// refers to the memory of the batch. The record of a batch does not contain it: the batch
	// does.
	Server []byte

	// The fields below are only set by decoders.

	// Round is the [Request.Retry] which a refusal echoes; Echoed tells whether there is one.
	Round  int64
	Echoed bool
	// Redelivered is true if the broker delivered the message before.
	Redelivered bool
}

// Failure is the error of a failed call.
type Failure struct {
	// Code is the code of the error, which may be unknown to this process.
	Code string
	// Message is the text without the code.
	Message string
	// Ran tells whether the request ran.
	Ran Ran
	// RetryAfter is a hint how long to wait before another call; zero for none.
	RetryAfter time.Duration
	// Server is the server that refused the call as unimplemented; "" if not known.
	Server string
	// Details are the typed values of the failure, in order.
	Details []Detail
	// TooLarge is true if no server sent this failure: the response exceeded the limit of this
	// process, and its body was discarded.
	TooLarge bool
}

// Ran is what a failure says about the request's handler.
type Ran uint8

// The values of Ran; other than 0 they are also the values of the field in a record.
const (
	RanUnknown Ran = iota // the server cannot tell
	RanNo                 // no handler ran
	RanYes                // a handler ran
)

// Times are the times of a call in a server.
type Times struct {
	// Queue is the duration of the wait for a worker.
	Queue time.Duration
	// Handler is the duration of the handler.
	Handler time.Duration
}

// Properties holds the properties of a response which the application reads and sets. A value
// is immutable once it is shared.
type Properties struct {
	// ContentType and ContentEncoding describe the body; may be "".
	ContentType, ContentEncoding string
	// Type is the AMQP property type, which is received and not sent.
	Type string
	// Header holds the application's headers; may be nil.
	Header map[string]any
	// Trailer holds the application's trailers; may be nil.
	Trailer map[string]any
}

// Codes of the failures that the decoder makes.
const (
	codeUnknown           = "unknown"
	codeResourceExhausted = "resource_exhausted"
	codeDataLoss          = "data_loss"
)

// Publishing returns the message of the response to a request: correlation_id and body, and the
// times if the caller requested them. The text of a failure is also the body, for clients that
// read no headers.
func (r *Response) Publishing(to *Request, persistent bool) amqp.Publishing {
	msg := amqp.Publishing{
		CorrelationId: to.ID,
		DeliveryMode:  DeliveryMode(persistent),
		Body:          r.Body,
	}
	if to.WantsTimes {
		msg.Headers = amqp.Table{
			HeaderQueueTime: r.Times.Queue.Microseconds(),
			HeaderHandler:   r.Times.Handler.Microseconds(),
		}
		if len(r.Server) > 0 {
			msg.Headers[HeaderServer] = string(r.Server)
		}
	}
	if r.Failure != nil {
		r.Failure.addTo(&msg, to)
	}
	r.Properties.AddTo(&msg, r.Failure != nil)
	return msg
}

// addTo adds the failure to the response to a request.
func (f *Failure) addTo(msg *amqp.Publishing, to *Request) {
	msg.Body = []byte(f.Message)
	SetHeader(msg, HeaderCode, f.Code)
	SetHeader(msg, HeaderMessage, Truncate(f.Message, maxMessageHeader))
	if f.Ran != RanUnknown {
		SetHeader(msg, HeaderRan, f.Ran == RanYes)
	}
	if f.Ran == RanNo && to.FollowsContract {
		SetHeader(msg, HeaderRetry, to.Retry)
	}
	if f.Server != "" && to.FollowsContract {
		SetHeader(msg, HeaderServer, f.Server)
	}
	if f.RetryAfter > 0 {
		SetHeader(msg, HeaderRetryAfter, Milliseconds(f.RetryAfter))
	}
	if len(f.Details) > 0 {
		SetHeader(msg, HeaderDetails, EncodeDetails(f.Details))
	}
}

// DecodeResponse decodes a message of any server that is not a batch.
func DecodeResponse(d *amqp.Delivery) Response {
	r := Response{Redelivered: d.Redelivered, Properties: receivedProperties(d)}
	r.Times.Queue = duration(d.Headers[HeaderQueueTime], time.Microsecond)
	r.Times.Handler = duration(d.Headers[HeaderHandler], time.Microsecond)
	if server, _ := d.Headers[HeaderServer].(string); server != "" {
		r.Server = []byte(server)
	}
	if r.Failure = receivedFailure(d); r.Failure == nil {
		r.Body = d.Body
	} else {
		r.Round, r.Echoed = WholeNumber(d.Headers[HeaderRetry])
	}
	return r
}

// receivedFailure returns the failure in a response, or nil for a result.
func receivedFailure(d *amqp.Delivery) *Failure {
	if drop, ok := DroppedBodyOf(d.Headers); ok {
		return tooLarge(d.Headers, drop)
	}
	if _, ok := d.Headers[HeaderUnreadable]; ok {
		return &Failure{Code: codeDataLoss, Message: "the response's headers cannot be read"}
	}
	raw, failed := d.Headers[HeaderCode]
	switch {
	case !failed && d.Type == typeError: // from a server that does not know this contract
		return &Failure{Code: codeUnknown, Message: string(d.Body), Ran: RanYes}
	case !failed:
		return nil
	}
	f := &Failure{Message: string(d.Body)}
	f.Code, _ = raw.(string)
	if f.Message == "" {
		f.Message, _ = d.Headers[HeaderMessage].(string)
	}
	if ran, said := truth(d.Headers[HeaderRan]); said && ran {
		f.Ran = RanYes
	} else if said {
		f.Ran = RanNo
	}
	f.RetryAfter = duration(d.Headers[HeaderRetryAfter], time.Millisecond)
	f.Server, _ = d.Headers[HeaderServer].(string)
	f.Details = receivedDetails(d.Headers[HeaderDetails])
	return f
}

// tooLarge returns the failure of a call whose response exceeded the client's limit. A response
// without a code is the result of a handler.
func tooLarge(h amqp.Table, drop DroppedBody) *Failure {
	f := &Failure{Code: codeResourceExhausted, Message: "response: " + drop.TooLarge(), TooLarge: true}
	_, failed := h[HeaderCode]
	_, unreadable := h[HeaderUnreadable]
	ran, said := h[HeaderRan].(bool)
	switch {
	case unreadable, failed && !said:
		f.Ran = RanUnknown
	case failed && !ran:
		f.Ran = RanNo
	default:
		f.Ran = RanYes
	}
	return f
}

// Outdated reports whether the response is a refusal of an earlier round of its call; round is
// the [Request.Retry] of the present round. A server that ran the request, of whatever round,
// responds for the whole call.
func (r *Response) Outdated(round int64) bool {
	if round == 0 || r.Echoed && r.Round == round || !r.Echoed && !r.Redelivered {
		return false
	}
	return r.Failure != nil && r.Failure.Ran == RanNo
}

// AddTo adds the properties to a response which is not in a batch.
func (p *Properties) AddTo(msg *amqp.Publishing, failed bool) {
	if p == nil {
		return
	}
	if !failed {
		msg.ContentType, msg.ContentEncoding = p.ContentType, p.ContentEncoding
	}
	for name, v := range p.Header {
		SetHeader(msg, name, v)
	}
	for name, v := range p.Trailer {
		SetHeader(msg, HeaderTrailer+name, v)
	}
}

// Size estimates the memory of the properties in bytes.
func (p *Properties) Size() int {
	if p == nil {
		return 0
	}
	n, _ := HeaderSize(p.Header)
	trailer, _ := HeaderSize(p.Trailer)
	return n + trailer + len(p.ContentType) + len(p.ContentEncoding)
}

// commonProperties are the properties of responses that have a common content type and nothing else:
// every response of a method repeats its content type. They do not change, and are shared.
//
//nolint:gochecknoglobals // it never changes.
var commonProperties = func() map[string]*Properties {
	common := make(map[string]*Properties)
	for _, contentType := range []string{contentTypeJSON, contentTypeProtobuf, contentTypeOctets, contentTypePlain} {
		common[contentType] = &Properties{ContentType: contentType}
	}
	return common
}()

// receivedProperties returns the properties of a response outside a batch, or nil.
func receivedProperties(d *amqp.Delivery) *Properties {
	header, trailer := ApplicationHeader(d.Headers), receivedTrailer(d.Headers)
	if header == nil && trailer == nil && d.ContentEncoding == "" && d.Type == "" {
		if d.ContentType == "" {
			return nil
		}
		if common := commonProperties[d.ContentType]; common != nil {
			return common
		}
	}
	return &Properties{ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, Type: d.Type, Header: header, Trailer: trailer}
}

// receivedTrailer returns the trailers in h, or nil if there are none.
func receivedTrailer(h amqp.Table) (trailer map[string]any) {
	for name, v := range h {
		if name, ok := strings.CutPrefix(name, HeaderTrailer); ok && name != "" {
			if trailer == nil {
				trailer = make(map[string]any)
			}
			trailer[name] = receivedValue(v)
		}
	}
	return trailer
}

// Field numbers of a response's record.
const (
	responseID         = 1
	responseBody       = 2
	responseCode       = 3
	responseRan        = 4
	responseRetry      = 5
	responseRetryAfter = 6
	responseQueueTime  = 7
	responseHandler    = 8

	responseContentType = 9
	responseEncoding    = 10
	responseHeader      = 11
	responseTrailer     = 12
	responseDetail      = 13
)

// FitsBatch reports whether the response can travel in a batch: all its headers and trailers must
// be text or bytes.
func (r *Response) FitsBatch() bool {
	p := r.Properties
	return p == nil || allFlat(p.Header) && allFlat(p.Trailer)
}

// BatchSize returns an upper bound of the bytes that AppendTo appends.
func (r *Response) BatchSize(to *Request) int {
	n := recordOverhead + len(to.ID) + len(r.Body)
	if r.Failure != nil {
		n += len(r.Failure.Code) + len(r.Failure.Message) + DetailsSize(r.Failure.Details)
	}
	if p := r.Properties; p != nil {
		n += len(p.ContentType) + len(p.ContentEncoding) + headersSize(p.Header) + headersSize(p.Trailer) + propertiesOverhead
	}
	return n
}

// propertiesOverhead bounds the size of the tags and lengths of a response's properties.
const propertiesOverhead = 8

// maxResponseHeaders bounds the headers, and the trailers, that a reader accepts in a response of a
// batch.
const maxResponseHeaders = 1024

// AppendTo appends the record of the response to a request to the body of a batch.
func (r *Response) AppendTo(b []byte, to *Request) []byte {
	b, start := beginRecord(b)
	b = appendText(b, responseID, to.ID)
	b = appendNumber(b, responseQueueTime, uint64(max(r.Times.Queue.Microseconds(), 0)))
	b = appendNumber(b, responseHandler, uint64(max(r.Times.Handler.Microseconds(), 0)))
	if r.Properties != nil {
		b = appendHeaders(b, responseHeader, r.Properties.Header)
		b = appendHeaders(b, responseTrailer, r.Properties.Trailer)
	}
	if r.Failure != nil {
		return endRecord(r.Failure.appendTo(b, to), start)
	}
	if r.Properties != nil {
		b = appendText(b, responseContentType, r.Properties.ContentType)
		b = appendText(b, responseEncoding, r.Properties.ContentEncoding)
	}
	return endRecord(appendBlob(b, responseBody, r.Body), start)
}

// appendTo appends the fields of the failure to a record.
func (f *Failure) appendTo(b []byte, to *Request) []byte {
	b = appendText(b, responseBody, f.Message)
	b = appendText(b, responseCode, f.Code)
	if f.Ran != RanUnknown {
		b = appendNumber(b, responseRan, uint64(f.Ran))
	}
	if f.Ran == RanNo {
		b = appendNumber(b, responseRetry, uint64(max(to.Retry, 0)))
	}
	if f.RetryAfter > 0 {
		b = appendNumber(b, responseRetryAfter, uint64(Milliseconds(f.RetryAfter))) //nolint:gosec // positive.
	}
	return appendDetails(b, responseDetail, f.Details)
}

// responsesServer is the field of a batch of responses for the server that responds.
const responsesServer = 2

// BeginResponses appends the beginning of a batch of responses of a server; an empty id is left
// out.
func BeginResponses(b, server []byte) []byte { return appendBlob(b, responsesServer, server) }

// serverOf returns the server of a batch of responses, of which AppendRecords has read all fields.
// Our servers write the field first.
func serverOf(b []byte) []byte {
	for len(b) > 0 {
		var f field
		f, b = nextField(b)
		if f.number == responsesServer && f.kind == protowire.BytesType && len(f.bytes) <= MaxShortString {
			return f.bytes
		}
		if f.number == fieldRecord {
			return nil
		}
	}
	return nil
}

// DecodeResponses appends the responses of a batch to responses; after an error it appends
// none. Only the ids of calls and server refer to the memory of body.
func DecodeResponses(body []byte, redelivered bool, responses []Response) ([]Response, error) {
	var room [64][]byte
	records, err := AppendRecords(room[:0], body)
	if err != nil {
		return responses, err
	}
	server := serverOf(body)
	for _, record := range records {
		responses = append(responses, Response{Redelivered: redelivered, Server: server})
		responses[len(responses)-1].decode(record)
	}
	return responses, nil
}

// decode decodes a record into the response.
func (r *Response) decode(record []byte) {
	var body, code, contentType []byte
	var f Failure
	var details detailList
	for len(record) > 0 {
		var fd field
		fd, record = nextField(record)
		switch {
		case fd.kind == protowire.VarintType:
			r.setNumber(&f, fd)
		case fd.kind != protowire.BytesType:
		case fd.number == responseID:
			r.ID = fd.bytes
		case fd.number == responseBody:
			body = fd.bytes
		case fd.number == responseCode:
			code = fd.bytes
		case fd.number == responseContentType:
			contentType = fd.bytes
		case fd.number >= responseEncoding && fd.number <= responseTrailer:
			r.setProperty(fd)
		case fd.number == responseDetail:
			details.add(fd.bytes)
		}
	}
	if contentType != nil {
		r.setContentType(contentType)
	}
	if len(code) == 0 {
		r.Body = bytes.Clone(body)
		return
	}
	failure := f // so that f stays on the stack in the absence of a failure
	failure.Code, failure.Message, failure.Details = string(code), string(body), details.details
	r.Failure = &failure
}

// setContentType decodes a content type, after all other properties.
func (r *Response) setContentType(text []byte) {
	if r.Properties == nil {
		if r.Properties = commonProperties[string(text)]; r.Properties != nil {
			return
		}
		r.Properties = &Properties{}
	}
	r.Properties.ContentType = commonText(text)
}

// setProperty decodes a content encoding or a header. It ignores a malformed header.
func (r *Response) setProperty(f field) {
	if r.Properties == nil {
		r.Properties = &Properties{}
	}
	p := r.Properties
	switch f.number {
	case responseEncoding:
		p.ContentEncoding = commonText(f.bytes)
	case responseHeader:
		if name, value, ok := readHeader(f.bytes); ok && !strings.HasPrefix(name, HeaderPrefix) {
			addBounded(&p.Header, name, value)
		}
	case responseTrailer:
		if name, value, ok := readHeader(f.bytes); ok && name != "" {
			addBounded(&p.Trailer, name, value)
		}
	}
}

// addBounded adds a header, unless there are maxResponseHeaders headers.
func addBounded(header *map[string]any, name string, value any) {
	if len(*header) >= maxResponseHeaders {
		return
	}
	if *header == nil {
		*header = make(map[string]any)
	}
	(*header)[name] = value
}

// setNumber decodes a numeric field of a record, into r or, for a failure, into failure.
func (r *Response) setNumber(failure *Failure, f field) {
	switch f.number {
	case responseRan:
		if f.value == uint64(RanNo) || f.value == uint64(RanYes) {
			failure.Ran = Ran(f.value)
		} else {
			failure.Ran = RanUnknown
		}
	case responseRetry:
		r.Round, r.Echoed = int64(min(f.value, 1<<62)), true
	case responseRetryAfter:
		failure.RetryAfter = boundedDuration(f.value, time.Millisecond)
	case responseQueueTime:
		r.Times.Queue = boundedDuration(f.value, time.Microsecond)
	case responseHandler:
		r.Times.Handler = boundedDuration(f.value, time.Microsecond)
	}
}
