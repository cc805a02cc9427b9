package amqpx

import (
	"encoding/binary"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// contentLimits bounds the message bodies that a connection reads into memory. The zero value
// has no bounds.
type contentLimits struct {
	// maxBody bounds the body of a message in bytes; 0 is no bound.
	maxBody int
	// inHand counts the bodies of the requests in a server; nil counts nothing.
	inHand *bytesInHand
}

// maxBatchBody bounds the body of a batch.
const maxBatchBody = 64 << 10

const (
	// smallBody is the body size up to which a request counts as small: no batch of this
	// package is larger. The bound applies to batches even if maxBody is smaller, because
	// maxBody bounds the single requests in a batch.
	smallBody = maxBatchBody + 4<<10
	// controlBody bounds the body of a message of the control plane.
	controlBody = smallBody
	// largeShare is the share of the bytes in hand that is reserved for small requests: one
	// eighth.
	largeShare = 8
)

// bytesInHand counts the bytes of the requests that were delivered to a server and are not yet
// acknowledged. Safe for concurrent use.
type bytesInHand struct {
	limit int64
	held  atomic.Int64
}

// take counts a body of size bytes if there is room. There is always room if nothing else is
// counted.
func (b *bytesInHand) take(size uint64) bool {
	n := int64(min(size, 1<<62))
	held := b.held.Add(n)
	if held <= b.boundOf(n) || held == n {
		return true
	}
	b.held.Add(-n)
	return false
}

func (b *bytesInHand) release(n int64) { b.held.Add(-n) }

// room returns the number of bytes available for a large body now.
func (b *bytesInHand) room() int64 { return b.boundOf(smallBody+1) - b.held.Load() }

// boundOf returns the bound of all counted bytes including a body of n bytes.
func (b *bytesInHand) boundOf(n int64) int64 {
	if n > smallBody {
		return b.limit - b.limit/largeShare
	}
	return b.limit
}

// unclaimedBodies counts the bytes of bodies that a connection has counted and no consumer has
// received yet: amqp091-go may discard deliveries when the connection ends. Safe for
// concurrent use.
type unclaimedBodies struct {
	bytes  atomic.Int64
	closed atomic.Bool
}

func (u *unclaimedBodies) add(b *bytesInHand, size uint64) {
	u.bytes.Add(int64(size)) //nolint:gosec // it fits, or would not have been taken.
	if u.closed.Load() {
		b.release(u.bytes.Swap(0))
	}
}

// close releases the unclaimed bytes, and from now on all bytes that the connection still
// counts. It is called when no consumer receives deliveries any more.
func (u *unclaimedBodies) close(b *bytesInHand) {
	u.closed.Store(true)
	b.release(u.bytes.Swap(0))
}

// contentKind selects the bounds for the content after a method.
type contentKind uint8

const (
	contentRequest  contentKind = iota // counted
	contentOther                       // not counted: the retry queue
	contentControl                     // a message of the control plane
	contentReturned                    // a returned message: only a batch is read
)

// maxMethodFrame is the number of inspected bytes of a method: class, method and the
// consumer's tag.
const maxMethodFrame = 4 + 1 + wire.MaxShortString

// methodPrefix returns the number of bytes of a method frame that must have arrived before the
// frame is passed on.
func (f *frameReader) methodPrefix(size int) int {
	if f.limits.inHand == nil {
		return frameHeaderBytes
	}
	return frameHeaderBytes + min(size, maxMethodFrame)
}

// noteMethod inspects the next frame, which is a method, and records the kind of its content,
// if the method has content. Without a count of bytes in hand all content is of one kind.
func (f *frameReader) noteMethod(channel uint16, size int) error {
	const basic, deliver, returned, got = 60, 60, 50, 71
	if f.limits.inHand == nil {
		return nil
	}
	head, err := f.r.Peek(f.methodPrefix(size))
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
		f.setKind(channel, kindOfConsumer(tag))
	case returned:
		f.setKind(channel, contentReturned)
	case got:
		f.setKind(channel, contentOther)
	}
	return nil
}

// The tags of a server's consumers tell the frame reader the kind of a delivery.
const (
	// retryTagSuffix ends the tag of the consumer of redelivered requests.
	retryTagSuffix = ".retry"
	// controlTag is the tag of the consumer of control messages.
	controlTag = "control"
)

// kindOfConsumer returns the kind of a delivery to the consumer with this tag. The server
// chose the tag.
func kindOfConsumer(tag []byte) contentKind {
	switch {
	case len(tag) > len(retryTagSuffix) && string(tag[len(tag)-len(retryTagSuffix):]) == retryTagSuffix:
		return contentOther
	case string(tag) == controlTag:
		return contentControl
	default:
		return contentRequest
	}
}

func (f *frameReader) setKind(channel uint16, kind contentKind) {
	switch {
	case kind != contentRequest:
		if f.kinds == nil {
			f.kinds = make(map[uint16]contentKind)
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
	drop := wire.DroppedBody{Size: size, Limit: f.limits.maxBody}
	switch kind {
	case contentControl:
		drop.Limit = controlBody
	case contentReturned:
		drop.Limit = smallBody
	case contentRequest, contentOther:
	}
	switch {
	case size == 0:
		return frame
	case drop.Limit > 0 && size > uint64(drop.Limit) && (size > smallBody || !isBatch(frame)):
	case kind != contentRequest || f.limits.inHand == nil:
		return frame
	case f.limits.inHand.take(size):
		f.unclaimed.add(f.limits.inHand, size)
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

// checkFrame refuses a message whose properties do not fit a frame of the connection.
func checkFrame(msg *amqp.Publishing, frameSize int) error {
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

// fitFrame removes as many tracing headers as necessary from a message whose properties do not
// fit a frame of the connection. It refuses a message that does not fit without them.
func fitFrame(msg *amqp.Publishing, frameSize int) error {
	tooLarge := checkFrame(msg, frameSize)
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
		if checkFrame(&fitting, frameSize) == nil {
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
