package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Frames on the wire. The messages of streams have frames of any streams between two peers, in
// the wire format of protocol buffers like batches. frames.proto and docs/protocol.md define the
// messages.

// ContentTypeFrames is the content type of the messages of streams.
const ContentTypeFrames = "application/vnd.amqpx.frames.v1"

// Bounds of the messages of streams. A reader refuses a message beyond them.
const (
	// maxFrames bounds the frames of a message.
	maxFrames = maxBatchRecords
	// maxStreamHeaders bounds the headers of a frame, and the trailers of an end, in number; their
	// bytes are bounded by MaxHeaderBytes.
	maxStreamHeaders = 1024
)

// Numbers of the fields of a frame.
const (
	frameStream          = 1
	frameSeq             = 2
	frameItems           = 3
	frameHalfClose       = 4
	frameCreditItems     = 5
	frameCreditBytes     = 6
	frameTaken           = 7
	frameHeaders         = 8
	frameAccept          = 9
	frameEndField        = 10
	frameReset           = 11
	framePing            = 12
	framePong            = 13
	frameOpen            = 14
	frameHeadersDone     = 15
	frameTimeout         = 16
	frameContentType     = 17
	frameContentEncoding = 18
	frameBlocked         = 19
)

// Numbers of the fields of a stream's header and of an end.
const (
	streamHeaderName   = 1
	streamHeaderValue  = 2
	streamHeaderBinary = 3

	endCode       = 1
	endMessage    = 2
	endDetails    = 3
	endTrailers   = 4
	endItems      = 5
	endTaken      = 6
	endRan        = 7
	endRetryAfter = 8
)

// Frame is one frame of a stream. The zero value of a field means that the frame does not have
// the field, except where the comment says otherwise.
type Frame struct {
	// Stream is the number of the stream; 0 in pings and pongs.
	Stream uint64
	// Seq is the number of the first item or, without items, of the next item.
	Seq uint64
	// Items are the items.
	Items Items
	// CreditItems and CreditBytes are what the reader of the frame may send since the beginning.
	CreditItems, CreditBytes uint64
	// Taken is how many items the application of the sender has taken.
	Taken uint64
	// Headers are the headers of an opening, or of a server.
	Headers []StreamHeader
	// End is the end of a server's stream, Reset the reset of either side; nil if absent.
	End, Reset *End
	// Ping and Pong are numbers of pings; 0 if absent.
	Ping, Pong uint64
	// Timeout is, in an opening, the time until the deadline; NoBudget: there is no deadline.
	Timeout time.Duration
	// ContentType and ContentEncoding describe, in an opening, the items.
	ContentType, ContentEncoding string

	HalfClose, Accept, Open, HeadersDone bool
	// Blocked is true if further items of the sender wait for credit.
	Blocked bool
}

// StreamHeader is a value of a header of a stream. A name may have several values.
type StreamHeader struct {
	Name  string
	Value string
	// Binary is true if the value is bytes, and no text.
	Binary bool
}

// End is the end of a stream.
type End struct {
	// Failure is nil for success.
	Failure *Failure
	// Trailers are the trailers of the server.
	Trailers []StreamHeader
	// Items is how many items the sender of the end has sent, Taken how many its application has taken.
	Items, Taken uint64
}

// Items are encoded items: fields of a frame, perhaps with other fields between them.
type Items struct {
	fields []byte
	// Count is the number of items, Bytes their size without the encoding.
	Count, Bytes int
	// Last is the size of the last item of a decoded frame.
	Last   int
	copied bool
}

// Copy returns a copy of the items with memory of its own, to which AppendAll may add.
func (it *Items) Copy() Items {
	own := Items{fields: make([]byte, 0, it.Size()), copied: true}
	own.AppendAll(*it)
	return own
}

// Copied reports whether the items were made by Copy.
func (it *Items) Copied() bool { return it.copied }

// tagItem is the encoded tag of an item.
const tagItem = frameItems<<3 | byte(protowire.BytesType)

// itemAt reads an item if the first field of b is one. ok is false for any other field, and for a
// malformed field.
func itemAt(b []byte) (item, rest []byte, ok bool) {
	if len(b) < 2 || b[0] != tagItem {
		return nil, nil, false
	}
	size, start := uint64(b[1]), 2
	if size >= 0x80 {
		var n int
		if size, n = binary.Uvarint(b[1:]); n <= 0 {
			return nil, nil, false
		}
		start = 1 + n
	}
	if size > uint64(len(b)-start) { //nolint:gosec // start is at most len(b).
		return nil, nil, false
	}
	end := start + int(size) //nolint:gosec // below len(b).
	return b[start:end:end], b[end:], true
}

// Append appends an item.
func (it *Items) Append(item []byte) {
	it.fields = append(it.fields, tagItem)
	it.fields = binary.AppendUvarint(it.fields, uint64(len(item)))
	it.fields = append(it.fields, item...)
	it.Count++
	it.Bytes += len(item)
}

// AppendAll appends copies of the items of other.
func (it *Items) AppendAll(other Items) {
	for b := other.fields; len(b) > 0; {
		item, rest, ok := itemAt(b)
		if ok {
			it.Append(item)
			b = rest
		} else if _, b = nextField(b); b == nil {
			return
		}
	}
}

// Next removes the first item and returns it. The item refers to the memory of the items. ok is
// false if there is none.
func (it *Items) Next() (item []byte, ok bool) {
	for len(it.fields) > 0 {
		item, rest, ok := itemAt(it.fields)
		if ok {
			it.fields = rest
			it.Count--
			it.Bytes -= len(item)
			return item, true
		}
		if _, it.fields = nextField(it.fields); it.fields == nil {
			break
		}
	}
	it.fields = nil
	return nil, false
}

// Cut removes and returns the first items: at most count, and no more items once there are bytes
// bytes. If share is reached, at least one item was taken; share counts the encoded size. The items
// must have been made by Append.
func (it *Items) Cut(count, bytes uint64, share int) Items {
	var first Items
	b := it.fields
	for len(b) > 0 && uint64(first.Count) < count && uint64(first.Bytes) < bytes { //nolint:gosec // never negative.
		item, rest, ok := itemAt(b)
		taken := len(it.fields) - len(rest)
		if !ok || first.Count > 0 && taken > share {
			break
		}
		b = rest
		first.Count++
		first.Bytes += len(item)
	}
	n := len(it.fields) - len(b)
	first.fields = it.fields[:n:n]
	it.fields = b
	it.Count -= first.Count
	it.Bytes -= first.Bytes
	return first
}

// Size is the encoded size.
func (it *Items) Size() int { return len(it.fields) }

// Rewind moves the items to the beginning of buffer, which may be their own memory, and returns
// how much memory they have.
func (it *Items) Rewind(buffer []byte) int {
	it.fields = append(buffer[:0], it.fields...)
	return cap(it.fields)
}

// Fields returns the memory of the items.
func (it *Items) Fields() []byte { return it.fields }

// AppendTo appends the record of the frame to the body of a message.
func (f *Frame) AppendTo(b []byte) []byte {
	b, start := beginRecord(b)
	b = appendNonZero(b, frameStream, f.Stream)
	b = appendNonZero(b, frameSeq, f.Seq)
	b = append(b, f.Items.fields...)
	b = appendTrue(b, frameHalfClose, f.HalfClose)
	b = appendNonZero(b, frameCreditItems, f.CreditItems)
	b = appendNonZero(b, frameCreditBytes, f.CreditBytes)
	b = appendNonZero(b, frameTaken, f.Taken)
	b = appendStreamHeaders(b, frameHeaders, f.Headers)
	b = appendTrue(b, frameAccept, f.Accept)
	b = f.End.appendTo(b, frameEndField)
	b = f.Reset.appendTo(b, frameReset)
	b = appendNonZero(b, framePing, f.Ping)
	b = appendNonZero(b, framePong, f.Pong)
	b = appendTrue(b, frameOpen, f.Open)
	b = appendTrue(b, frameHeadersDone, f.HeadersDone)
	if f.Open && f.Timeout != NoBudget {
		b = appendNumber(b, frameTimeout, uint64(Milliseconds(min(max(f.Timeout, 0), MaxBudget)))) //nolint:gosec // never negative.
	}
	b = appendText(b, frameContentType, f.ContentType)
	b = appendText(b, frameContentEncoding, f.ContentEncoding)
	b = appendTrue(b, frameBlocked, f.Blocked)
	return endRecord(b, start)
}

func appendNonZero(b []byte, number protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return appendNumber(b, number, n)
}

func appendTrue(b []byte, number protowire.Number, on bool) []byte {
	if !on {
		return b
	}
	return appendNumber(b, number, 1)
}

func appendStreamHeaders(b []byte, number protowire.Number, headers []StreamHeader) []byte {
	for i := range headers {
		h := &headers[i]
		size := protowire.SizeTag(streamHeaderName) + protowire.SizeBytes(len(h.Name)) +
			protowire.SizeTag(streamHeaderValue) + protowire.SizeBytes(len(h.Value))
		if h.Binary {
			size += protowire.SizeTag(streamHeaderBinary) + 1
		}
		b = protowire.AppendTag(b, number, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size)) //nolint:gosec // never negative.
		b = protowire.AppendTag(b, streamHeaderName, protowire.BytesType)
		b = protowire.AppendString(b, h.Name)
		b = protowire.AppendTag(b, streamHeaderValue, protowire.BytesType)
		b = protowire.AppendString(b, h.Value)
		b = appendTrue(b, streamHeaderBinary, h.Binary)
	}
	return b
}

// appendTo appends the end as a field of a frame; nil appends nothing.
func (e *End) appendTo(b []byte, number protowire.Number) []byte {
	if e == nil {
		return b
	}
	var own []byte
	if f := e.Failure; f != nil {
		own = appendText(own, endCode, f.Code)
		own = appendText(own, endMessage, f.Message)
		own = appendDetails(own, endDetails, f.Details)
		own = appendNonZero(own, endRan, uint64(f.Ran))
		if f.RetryAfter > 0 {
			own = appendNumber(own, endRetryAfter, uint64(Milliseconds(f.RetryAfter))) //nolint:gosec // never negative.
		}
	}
	own = appendStreamHeaders(own, endTrailers, e.Trailers)
	own = appendNonZero(own, endItems, e.Items)
	own = appendNonZero(own, endTaken, e.Taken)
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendBytes(b, own)
}

// errFrameFormat is the error of a message that has no frames in the format of this package.
var errFrameFormat = errors.New("not a message of streams")

// DecodeFrames decodes a message and calls each for every frame, in order, until each returns
// false. Items refer to body; everything else is copied. f belongs to the caller of each only
// during the call.
func DecodeFrames(body []byte, each func(f *Frame) bool) error {
	frames := 0
	for b := body; len(b) > 0; {
		var record field
		if record, b = nextField(b); b == nil {
			return errFrameFormat
		}
		if record.number != fieldRecord || record.kind != protowire.BytesType {
			continue
		}
		if frames++; frames > maxFrames {
			return fmt.Errorf("%w: more than %d frames", errFrameFormat, maxFrames)
		}
		f := Frame{Timeout: NoBudget}
		if err := f.decode(record.bytes); err != nil {
			return err
		}
		if !each(&f) {
			return nil
		}
	}
	return nil
}

// decode decodes the record of a frame.
func (f *Frame) decode(record []byte) error {
	headerBytes := 0
	firstItem, lastItem := -1, 0
	for b := record; len(b) > 0; {
		item, rest, ok := itemAt(b)
		if ok {
			if firstItem < 0 {
				firstItem = len(record) - len(b)
			}
			b, lastItem = rest, len(record)-len(rest)
			f.Items.Count++
			f.Items.Bytes += len(item)
			f.Items.Last = len(item)
			continue
		}
		var v field
		if v, b = nextField(b); b == nil {
			return errFrameFormat
		}
		switch v.kind {
		case protowire.VarintType:
			f.setNumber(&v)
		case protowire.BytesType:
			if err := f.setBytes(&v, &headerBytes); err != nil {
				return err
			}
			if v.number == frameItems { // with a tag of more bytes than necessary
				return errFrameFormat
			}
		default:
		}
	}
	if firstItem >= 0 {
		f.Items.fields = record[firstItem:lastItem:lastItem]
	}
	return nil
}

func (f *Frame) setNumber(v *field) {
	switch v.number {
	case frameStream:
		f.Stream = v.value
	case frameSeq:
		f.Seq = v.value
	case frameHalfClose:
		f.HalfClose = v.value != 0
	case frameCreditItems:
		f.CreditItems = v.value
	case frameCreditBytes:
		f.CreditBytes = v.value
	case frameTaken:
		f.Taken = v.value
	case frameAccept:
		f.Accept = v.value != 0
	case framePing:
		f.Ping = v.value
	case framePong:
		f.Pong = v.value
	case frameOpen:
		f.Open = v.value != 0
	case frameHeadersDone:
		f.HeadersDone = v.value != 0
	case frameBlocked:
		f.Blocked = v.value != 0
	case frameTimeout:
		f.Timeout = boundedDuration(v.value, time.Millisecond)
	default:
	}
}

func (f *Frame) setBytes(v *field, headerBytes *int) (err error) {
	switch v.number {
	case frameHeaders:
		f.Headers, err = appendStreamHeader(f.Headers, v.bytes, headerBytes)
	case frameEndField:
		f.End, err = decodeEnd(v.bytes)
	case frameReset:
		f.Reset, err = decodeEnd(v.bytes)
	case frameContentType:
		f.ContentType = Truncate(string(v.bytes), MaxShortString)
	case frameContentEncoding:
		f.ContentEncoding = Truncate(string(v.bytes), MaxShortString)
	default:
	}
	return err
}

// appendStreamHeader decodes a header. size is the size of all headers so far.
func appendStreamHeader(to []StreamHeader, record []byte, size *int) ([]StreamHeader, error) {
	if *size += len(record); *size > MaxHeaderBytes || len(to) == maxStreamHeaders {
		return nil, fmt.Errorf("%w: headers of more than %d bytes, or more than %d of them", errFrameFormat, MaxHeaderBytes, maxStreamHeaders)
	}
	var h StreamHeader
	for len(record) > 0 {
		var v field
		if v, record = nextField(record); record == nil {
			return nil, errFrameFormat
		}
		switch {
		case v.kind == protowire.VarintType && v.number == streamHeaderBinary:
			h.Binary = v.value != 0
		case v.kind != protowire.BytesType:
		case v.number == streamHeaderName:
			h.Name = string(v.bytes)
		case v.number == streamHeaderValue:
			h.Value = string(v.bytes)
		}
	}
	if h.Name == "" || len(h.Name) > MaxShortString {
		return nil, fmt.Errorf("%w: a header's name of %d bytes", errFrameFormat, len(h.Name))
	}
	return append(to, h), nil
}

// decodeEnd decodes an end.
func decodeEnd(record []byte) (*End, error) {
	e := &End{}
	var f Failure
	headerBytes := 0
	var details detailList
	for len(record) > 0 {
		var v field
		if v, record = nextField(record); record == nil {
			return nil, errFrameFormat
		}
		switch v.kind {
		case protowire.VarintType:
			e.setNumber(&f, &v)
		case protowire.BytesType:
			var err error
			switch v.number {
			case endCode:
				f.Code = string(v.bytes)
			case endMessage:
				f.Message = string(v.bytes)
			case endDetails:
				details.add(v.bytes)
			case endTrailers:
				e.Trailers, err = appendStreamHeader(e.Trailers, v.bytes, &headerBytes)
			default:
			}
			if err != nil {
				return nil, err
			}
		default:
		}
	}
	if f.Code != "" {
		f.Details = details.details
		e.Failure = &f
	}
	return e, nil
}

func (e *End) setNumber(f *Failure, v *field) {
	switch v.number {
	case endItems:
		e.Items = v.value
	case endTaken:
		e.Taken = v.value
	case endRan:
		if v.value <= uint64(RanYes) {
			f.Ran = Ran(v.value)
		}
	case endRetryAfter:
		f.RetryAfter = boundedDuration(v.value, time.Millisecond)
	default:
	}
}
