package transport

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// ContentLimits bounds the message bodies that a connection reads into memory. The zero value
// has no bounds.
type ContentLimits struct {
	// MaxBody bounds the body of a message in bytes; 0 is no bound.
	MaxBody int
	// InHand counts the bodies of the requests in a server; nil counts nothing.
	InHand *BytesInHand
}

const (
	// MaxBatchBody bounds the body of a batch.
	MaxBatchBody = 256 << 10
	// MinBatchBody is the body of a batch, or of a control message, that every client and server
	// accepts, whatever its own limit and its version.
	MinBatchBody = 64 << 10
)

const (
	// LargestBatch bounds the bodies of batches if MaxBody is smaller, because MaxBody bounds the
	// single requests in a batch. No batch of this package is larger.
	LargestBatch = MaxBatchBody + 4<<10
	// SmallBody is the body size up to which a request or a batch counts as small.
	SmallBody = MinBatchBody + 4<<10
	// controlBody bounds the body of a message of the control plane.
	controlBody = MinBatchBody + 4<<10
	// largeShare is the share of the bytes in hand that is reserved for small requests: one
	// eighth.
	largeShare = 8
)

// BytesInHand counts the bytes of the requests that were delivered to a server and are not yet
// acknowledged. Safe for concurrent use.
type BytesInHand struct {
	Limit int64
	Held  atomic.Int64
}

// Take counts a body of size bytes if there is room. There is always room if nothing else is
// counted.
func (b *BytesInHand) Take(size uint64) bool {
	n := int64(min(size, 1<<62))
	held := b.Held.Add(n)
	if held <= b.boundOf(n) || held == n {
		return true
	}
	b.Held.Add(-n)
	return false
}

// Release counts n bytes less.
func (b *BytesInHand) Release(n int64) { b.Held.Add(-n) }

// Room returns the number of bytes available for a large body now.
func (b *BytesInHand) Room() int64 { return b.boundOf(SmallBody+1) - b.Held.Load() }

// boundOf returns the bound of all counted bytes including a body of n bytes.
func (b *BytesInHand) boundOf(n int64) int64 {
	if n > SmallBody {
		return b.Limit - b.Limit/largeShare
	}
	return b.Limit
}

// UnclaimedBodies counts the bytes of bodies that a connection has counted and no consumer has
// received yet: deliveries may stay unread when the connection ends. Each byte is released
// once, by the consumer that claimed it or by Close. Safe for concurrent use.
type UnclaimedBodies struct {
	bytes atomic.Int64 // closedBodies after Close
}

// closedBodies marks closed UnclaimedBodies.
const closedBodies = math.MinInt64

// Add counts the body of a delivery that no consumer has claimed yet.
func (u *UnclaimedBodies) Add(b *BytesInHand, size uint64) {
	n := int64(size) //nolint:gosec // it fits, or would not have been taken.
	if !u.change(n) {
		b.Release(n)
	}
}

// Claim transfers n unclaimed bytes to the caller, and returns the number of bytes that the caller
// has to release: n, or 0 after Close, because Close has released all bytes.
func (u *UnclaimedBodies) Claim(n int64) int64 {
	if !u.change(-n) {
		return 0
	}
	return n
}

// change adds n, unless u is closed, and reports whether it did.
func (u *UnclaimedBodies) change(n int64) bool {
	for {
		count := u.bytes.Load()
		if count == closedBodies {
			return false
		}
		if u.bytes.CompareAndSwap(count, count+n) {
			return true
		}
	}
}

// bodyLimits bounds and counts the bodies that the channels of a connection, or of a lease, receive.
type bodyLimits struct {
	limits    ContentLimits
	unclaimed UnclaimedBodies
}

// claim transfers the count of a body of n bytes to the caller, see Conn.Claim.
func (b *bodyLimits) claim(n int64) int64 {
	if b.limits.InHand == nil {
		return 0
	}
	return b.unclaimed.Claim(n)
}

// abandon releases all counted and unclaimed bodies.
func (b *bodyLimits) abandon() {
	if b.limits.InHand != nil {
		b.unclaimed.Close(b.limits.InHand)
	}
}

// releaseUnread releases the count of a body of n bytes that the consumer with this tag will not
// receive.
func (b *bodyLimits) releaseUnread(tag string, n int64) {
	if b.limits.InHand != nil && KindOfConsumer([]byte(tag)) == ContentRequest {
		b.limits.InHand.Release(b.unclaimed.Claim(n))
	}
}

// bodiesOf returns the bounds and the count for a channel: those of its lease, or else those of
// the connection.
func (f *frameReader) bodiesOf(channel uint16) *bodyLimits {
	if f.leased.Load() {
		if ch := f.channels.get(channel); ch != nil && ch.lease != nil {
			return &ch.lease.bodies
		}
	}
	return &f.bodyLimits
}

// Bytes returns the number of unclaimed bytes.
func (u *UnclaimedBodies) Bytes() int64 { return max(u.bytes.Load(), 0) }

// Close releases the unclaimed bytes, and from now on all bytes that the connection still
// counts.
func (u *UnclaimedBodies) Close(b *BytesInHand) {
	if count := u.bytes.Swap(closedBodies); count != closedBodies {
		b.Release(count)
	}
}

// ContentKind selects the bounds for the content after a method.
type ContentKind uint8

// The kinds of content.
const (
	ContentRequest  ContentKind = iota // counted
	contentOther                       // not counted: the retry queue
	contentControl                     // a message of the control plane
	contentReturned                    // a returned message: only a batch is read
)

// maxMethodFrame is the number of inspected bytes of a method: class, method and the
// consumer's tag.
const maxMethodFrame = 4 + 1 + wire.MaxShortString

// methodPrefix returns the number of bytes of a method frame that must have arrived before the
// frame is passed on.
func (f *frameReader) methodPrefix(channel uint16, size int) int {
	if f.bodiesOf(channel).limits.InHand == nil {
		return frameHeaderBytes
	}
	return frameHeaderBytes + min(size, maxMethodFrame)
}

// noteMethod inspects the next frame, which is a method, and records the kind of its content,
// if the method has content. Without a count of bytes in hand all content is of one kind.
func (f *frameReader) noteMethod(channel uint16, size int) error {
	const basic, deliver, returned, got = 60, 60, 50, 71
	if f.bodiesOf(channel).limits.InHand == nil {
		return nil
	}
	head, err := f.r.Peek(f.methodPrefix(channel, size))
	if err != nil {
		return err
	}
	args := head[frameHeaderBytes:]
	if len(args) < 5 || binary.BigEndian.Uint16(args) != basic {
		return nil
	}
	switch binary.BigEndian.Uint16(args[2:]) {
	case deliver:
		tag := args[5:min(5+int(args[4]), len(args))]
		f.setKind(channel, KindOfConsumer(tag))
	case returned:
		f.setKind(channel, contentReturned)
	case got:
		f.setKind(channel, contentOther)
	}
	return nil
}

// The tags of a server's consumers tell the frame reader the kind of a delivery.
const (
	// RetryTagSuffix ends the tag of the consumer of redelivered requests.
	RetryTagSuffix = ".retry"
	// FramesTagSuffix ends the tag of the consumer of frames of streams, whose memory credit bounds.
	FramesTagSuffix = ".frames"
	// ControlTag is the tag of the consumer of control messages.
	ControlTag = "control"
)

// KindOfConsumer returns the kind of a delivery to the consumer with this tag. The server
// chose the tag.
func KindOfConsumer(tag []byte) ContentKind {
	switch {
	case bytes.HasSuffix(tag, []byte(RetryTagSuffix)), bytes.HasSuffix(tag, []byte(FramesTagSuffix)):
		return contentOther
	case string(tag) == ControlTag:
		return contentControl
	default:
		return ContentRequest
	}
}

func (f *frameReader) setKind(channel uint16, kind ContentKind) {
	switch {
	case kind != ContentRequest:
		if f.kinds == nil {
			f.kinds = make(map[uint16]ContentKind)
		}
		f.kinds[channel] = kind
	case len(f.kinds) > 0:
		delete(f.kinds, channel)
	}
}

// bounded returns a content header unchanged if its body may be read. Otherwise it marks the
// body as to be discarded, and returns a header of the same message without a body.
func (f *frameReader) bounded(channel uint16, frame []byte) []byte {
	if len(frame) < flagsAt+2+1 {
		return frame
	}
	size := binary.BigEndian.Uint64(frame[bodySizeAt:])
	kind := f.kinds[channel]
	delete(f.kinds, channel)
	of := f.bodiesOf(channel)
	drop := wire.DroppedBody{Size: size, Limit: of.limits.MaxBody}
	switch kind {
	case contentControl:
		drop.Limit = controlBody
	case contentReturned:
		drop.Limit = LargestBatch
	case ContentRequest, contentOther:
	}
	switch {
	case size == 0:
		return frame
	case drop.Limit > 0 && size > uint64(drop.Limit) && (size > LargestBatch || !isBatch(frame)):
	case kind != ContentRequest || of.limits.InHand == nil:
		return frame
	case of.limits.InHand.Take(size):
		of.unclaimed.Add(of.limits.InHand, size)
		return frame
	default:
		drop.NoRoom = true
	}
	if f.dropping == nil {
		f.dropping = make(map[uint16]uint64)
	}
	f.dropping[channel] = size
	return markDropped(frame, drop)
}

// isBatch reports whether the content type in a content header is the type of a batch.
func isBatch(frame []byte) bool {
	if binary.BigEndian.Uint16(frame[flagsAt:])&flagContentType == 0 {
		return false
	}
	at := flagsAt + 3
	return wire.IsBatch(string(frame[at:min(at+int(frame[at-1]), len(frame))]))
}

// heartbeatFrame replaces a discarded frame, so that amqp091-go does not consider a broker
// dead while it sends a large body over a slow network.
var heartbeatFrame = []byte{frameTypes, 0, 0, 0, 0, 0, 0, 0xCE} //nolint:gochecknoglobals // constant.

// dropped discards a body frame if its body is to be discarded, and reports whether it did. A
// frame of another type on the channel means that the rest of the body will not come.
func (f *frameReader) dropped(kind byte, channel uint16, size uint32) bool {
	left, ok := f.dropping[channel]
	if !ok {
		return false
	}
	if kind != frameBody {
		delete(f.dropping, channel)
		return false
	}
	if left -= min(left, uint64(size)); left == 0 {
		delete(f.dropping, channel)
	} else {
		f.dropping[channel] = left
	}
	f.discard = frameHeaderBytes + int(size) + 1
	f.out = heartbeatFrame
	return true
}

// minFrameMax is the smallest frame size that a peer may negotiate (AMQP 0-9-1 section 4.2.3).
// A content header may always grow to this size.
const minFrameMax = 4096

// markDropped returns a content header with body size 0 and the description of its discarded
// body, as [wire.HeaderDropped], added to its table. If the
// header would no longer fit in a frame, or could no longer be read, the table is replaced,
// with [wire.HeaderUnreadable] set.
func markDropped(frame []byte, d wire.DroppedBody) []byte {
	lengthAt, begin, end, ok := tableOf(frame)
	if !ok {
		return frame // malformed: amqp091-go refuses the frame
	}
	value := d.HeaderValue()
	entry := append(appendShortString(nil, wire.HeaderDropped), 'S')
	entry = binary.BigEndian.AppendUint32(entry, uint32(len(value))) //nolint:gosec // a few bytes.
	entry = append(entry, value...)
	table := append(append([]byte(nil), frame[begin:end]...), entry...)
	if len(frame)+4+len(entry) > minFrameMax || !readableTable(table) {
		table = append(unreadableMark(), entry...)
	}
	marked := withTable(frame, lengthAt, end, table)
	binary.BigEndian.PutUint64(marked[bodySizeAt:], 0)
	return marked
}

// A message's properties travel in a single frame, whose size the broker and the client have
// negotiated. The broker ends the connection of the sender of a larger frame (501). Bodies are
// split into as many frames as necessary.

const (
	// frameOverhead is the size of a frame without its payload.
	frameOverhead = frameHeaderBytes + 1
	// contentHeaderBytes is the size of class, weight, body size and flags in a content
	// header.
	contentHeaderBytes = 14
)

// CheckFrame refuses a message whose properties do not fit a frame of the connection.
func CheckFrame(msg *amqp.Publishing, frameSize int) error {
	if frameSize <= 0 {
		return nil // no limit
	}
	if n := frameOverhead + propertiesSize(msg); n > frameSize {
		return fmt.Errorf("properties of %d bytes: the connection's frames hold %d", n, frameSize)
	}
	return nil
}

// tracingHeaders returns the W3C headers of a request in the order of their removal from a
// message that does not fit a frame.
func tracingHeaders() []string { return []string{"baggage", "tracestate", "traceparent"} }

// FitFrame removes tracing headers from msg, in the order of tracingHeaders, until the properties
// of msg fit a frame of the connection. If the properties do not fit without tracing headers
// either, FitFrame changes nothing and returns an error.
func FitFrame(msg *amqp.Publishing, frameSize int) error {
	tooLarge := CheckFrame(msg, frameSize)
	if tooLarge == nil {
		return nil
	}
	fitting := *msg
	fitting.Headers = maps.Clone(msg.Headers) // the headers of the request stay unchanged
	for _, name := range tracingHeaders() {
		if _, ok := fitting.Headers[name]; !ok {
			continue
		}
		delete(fitting.Headers, name)
		if CheckFrame(&fitting, frameSize) == nil {
			msg.Headers = fitting.Headers
			return nil
		}
	}
	return tooLarge
}

// propertiesSize returns the size of a content header in amqp091-go's encoding.
func propertiesSize(msg *amqp.Publishing) int {
	n := contentHeaderBytes
	for _, text := range []string{
		msg.ContentType, msg.ContentEncoding, msg.CorrelationId, msg.ReplyTo, msg.Expiration,
		msg.MessageId, msg.Type, msg.UserId, msg.AppId,
	} {
		if text != "" {
			n += 1 + len(text)
		}
	}
	if len(msg.Headers) > 0 {
		n += encodedTableSize(msg.Headers)
	}
	for _, octet := range []uint8{msg.DeliveryMode, msg.Priority} {
		if octet > 0 {
			n++
		}
	}
	if !msg.Timestamp.IsZero() {
		n += 8
	}
	return n
}

// encodedTableSize returns the encoded size of a table: its length and its fields.
func encodedTableSize(t amqp.Table) int {
	n := 4
	for name, v := range t {
		n += 1 + len(name) + encodedFieldSize(v)
	}
	return n
}

// encodedFieldSize returns the encoded size of a value with its type (AMQP 0-9-1 section 4.2.1).
func encodedFieldSize(v any) int {
	const kind, length = 1, 4
	switch v := v.(type) {
	case nil:
		return kind
	case bool, byte, int8:
		return kind + 1
	case int16, uint16:
		return kind + 2
	case int, int32, uint32, float32:
		return kind + 4
	case amqp.Decimal:
		return kind + 5
	case string:
		return kind + length + len(v)
	case []byte:
		return kind + length + len(v)
	case amqp.Table:
		return kind + encodedTableSize(v)
	case []any:
		n := kind + length
		for _, e := range v {
			n += encodedFieldSize(e)
		}
		return n
	case int64, float64, time.Time:
		return kind + 8
	default:
		return kind + 8
	}
}
