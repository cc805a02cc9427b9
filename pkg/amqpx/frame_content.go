package amqpx

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// contentLimits bounds the message bodies that a connection reads into memory. Its zero
// value bounds nothing.
type contentLimits struct {
	// maxBody bounds the body of one message in bytes; 0 is no bound.
	maxBody int
	// inHand counts the bodies of the requests that a server has; nil counts nothing.
	inHand *bytesInHand
}

const (
	// smallBody is the body size up to which a request is ordinary: no batch of this
	// package is larger. A batch may have it whatever maxBody is, as maxBody bounds the
	// requests in it.
	smallBody = batchBytes + 4<<10
	// controlBody bounds the body of a message of the control plane.
	controlBody = smallBody
	// largeShare is the share of the bytes in hand that only small requests may use: one
	// eighth.
	largeShare = 8
)

// bytesInHand counts the bytes of the requests that were delivered to a server and are not
// acknowledged. Safe for concurrent use.
type bytesInHand struct {
	limit int64
	held  atomic.Int64
}

// take counts a body of size bytes if there is room for it. A body always has room while
// nothing else is counted.
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

// room returns how many bytes a large body may have now.
func (b *bytesInHand) room() int64 { return b.boundOf(smallBody+1) - b.held.Load() }

// boundOf returns how many bytes may be counted together with a body of n bytes.
func (b *bytesInHand) boundOf(n int64) int64 {
	if n > smallBody {
		return b.limit - b.limit/largeShare
	}
	return b.limit
}

// unclaimedBodies counts the bytes of the bodies that a connection has counted and that no
// consumer has yet received: amqp091-go may forget deliveries when the connection ends.
// Safe for concurrent use.
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

// close releases what no consumer received, and what the connection still counts. It is
// called when no consumer receives any more.
func (u *unclaimedBodies) close(b *bytesInHand) {
	u.closed.Store(true)
	b.release(u.bytes.Swap(0))
}

// contentKind says which bounds the content after a method has.
type contentKind uint8

const (
	contentRequest  contentKind = iota // counted
	contentOther                       // not counted: the retry queue
	contentControl                     // a message of the control plane
	contentReturned                    // a message that came back: only a batch is read
)

// maxMethodFrame is how much of a method's arguments is looked at: class, method and the
// consumer's tag.
const maxMethodFrame = 4 + 1 + maxShortString

// methodPrefix returns how many bytes of a method frame must have arrived before it is
// handed on.
func (f *frameReader) methodPrefix(size int) int {
	if f.limits.inHand == nil {
		return frameHeaderBytes
	}
	return frameHeaderBytes + min(size, maxMethodFrame)
}

// noteMethod looks at a method frame, which is next: one with content says of which kind
// the content is. Where nothing is counted all content is alike.
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

// kindOfConsumer returns the kind of what is delivered to the consumer with this tag,
// which the server chose.
func kindOfConsumer(tag []byte) contentKind {
	switch {
	case len(tag) > len(retrySuffix) && string(tag[len(tag)-len(retrySuffix):]) == retrySuffix:
		return contentOther
	case string(tag) == controlConsumer:
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

// bounded returns a content header as it is if its body may be read. Otherwise it has the
// body discarded and returns a header of the same message without a body.
func (f *frameReader) bounded(channel uint16, frame []byte) []byte {
	if len(frame) < flagsAt+2+1 {
		return frame
	}
	size := binary.BigEndian.Uint64(frame[bodySizeAt:])
	kind := f.kinds[channel]
	delete(f.kinds, channel)
	drop := droppedBody{size: size, limit: f.limits.maxBody}
	switch kind {
	case contentControl:
		drop.limit = controlBody
	case contentReturned:
		drop.limit = smallBody
	case contentRequest, contentOther:
	}
	switch {
	case size == 0:
		return frame
	case drop.limit > 0 && size > uint64(drop.limit) && (size > smallBody || !isBatch(frame)):
	case kind != contentRequest || f.limits.inHand == nil:
		return frame
	case f.limits.inHand.take(size):
		f.unclaimed.add(f.limits.inHand, size)
		return frame
	default:
		drop.noRoom = true
	}
	if f.dropping == nil {
		f.dropping = make(map[uint16]uint64)
	}
	f.dropping[channel] = size
	return drop.mark(frame)
}

// isBatch reports whether a content header says that its body is a batch.
func isBatch(frame []byte) bool {
	if binary.BigEndian.Uint16(frame[flagsAt:])&flagContentType == 0 {
		return false
	}
	at := flagsAt + 3
	contentType := string(frame[at:min(at+int(frame[at-1]), len(frame))])
	return contentType == contentTypeCalls || contentType == contentTypeAnswers
}

// heartbeatFrame takes the place of a frame that is discarded, so that amqp091-go does
// not take a broker that sends a large body over a slow network for dead.
var heartbeatFrame = []byte{frameTypes, 0, 0, 0, 0, 0, 0, 0xCE} //nolint:gochecknoglobals // constant.

// dropped has a body frame discarded if its body is. Another frame on the channel means
// that the rest of the body does not come.
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

// droppedBody tells of a message whose body was not read.
type droppedBody struct {
	size   uint64 // of the body
	limit  int    // of one body
	noRoom bool   // the body is within the limit, and there was no room for it
}

// dropNonce is what the value of headerDropped begins with. It is random, so that no other
// program can make a message look as if its body had been dropped here.
var dropNonce = func() string { //nolint:gochecknoglobals // made once, constant.
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}()

// minFrameMax is the smallest frame size that a peer may negotiate (AMQP 0-9-1 section
// 4.2.3): a content header may grow up to it.
const minFrameMax = 4096

// mark returns a content header with body size 0 and headerDropped added to its table. If
// the header would no longer fit in a frame, or could no longer be read, its table is
// replaced, which headerUnreadable tells.
func (d droppedBody) mark(frame []byte) []byte {
	lengthAt, begin, end, ok := tableOf(frame)
	if !ok {
		return frame // amqp091-go refuses it
	}
	value := d.value()
	entry := append(appendShortString(nil, headerDropped), 'S')
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

// value is the value of headerDropped.
func (d droppedBody) value() string {
	return fmt.Sprintf("%s %t %d %d", dropNonce, d.noRoom, d.size, d.limit)
}

// tooLarge describes a body beyond the limit.
func (d droppedBody) tooLarge() string {
	return fmt.Sprintf("%v: body of %d bytes, limit %d", ErrTooLarge, d.size, d.limit)
}

// droppedBodyOf reports whether a message's body was dropped when it arrived, and of
// which kind it was.
func droppedBodyOf(h amqp.Table) (d droppedBody, ok bool) {
	value, ok := h[headerDropped].(string)
	if !ok || !strings.HasPrefix(value, dropNonce) {
		return d, false
	}
	_, err := fmt.Sscanf(value[len(dropNonce):], "%t %d %d", &d.noRoom, &d.size, &d.limit)
	return d, err == nil
}

// A message's properties travel in one frame, whose size the broker and the client have
// negotiated. The broker ends the connection of whoever sends a larger one (501). Bodies
// are cut into as many frames as they need.

const (
	// frameOverhead is what a frame has beside its payload.
	frameOverhead = frameHeaderBytes + 1
	// contentHeaderBytes are the class, weight, body size and flags of a content header.
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

// tracingHeaders are the W3C headers of a request in the order in which they are left out of
// one that does not fit a frame.
func tracingHeaders() []string { return []string{"baggage", "tracestate", "traceparent"} }

// fitFrame leaves tracing headers out of a message whose properties do not fit a frame of the
// connection, as many as it takes. It refuses a message that does not fit without them.
func fitFrame(msg *amqp.Publishing, frameSize int) error {
	tooLarge := checkFrame(msg, frameSize)
	if tooLarge == nil {
		return nil
	}
	fitting := *msg
	fitting.Headers = maps.Clone(msg.Headers) // those of the request are not changed
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

// mayExceedFrame reports whether headers that fit a batch may not fit a frame of the
// connection.
func mayExceedFrame(frameSize int) bool { return frameSize > 0 && frameSize < 2*batchBytes }

// propertiesSize returns the size of a content header, encoded as amqp091-go does it.
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
