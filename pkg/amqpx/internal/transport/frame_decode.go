package transport

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// errFrame ends a connection whose peer sends a malformed frame.
var errFrame = errors.New("malformed frame")

// fieldReader reads the fields of a frame. After the first field that does not fit, bad is set
// and all values are zero.
type fieldReader struct {
	b   []byte
	bad bool
}

func (r *fieldReader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *fieldReader) octet() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *fieldReader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *fieldReader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *fieldReader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *fieldReader) shortString() []byte { return r.take(int(r.octet())) }

func (r *fieldReader) longString() []byte {
	return r.take(int(min(r.uint32(), math.MaxInt32)))
}

// table reads a field table. The frame reader has checked the table (withReadableTable), so its
// depth and its number of entries are bounded.
func (r *fieldReader) table() amqp.Table {
	fields := fieldReader{b: r.longString()}
	table := make(amqp.Table)
	for len(fields.b) > 0 {
		name := string(fields.shortString())
		table[name] = fields.field()
	}
	r.bad = r.bad || fields.bad
	return table
}

func (r *fieldReader) array() []any {
	fields := fieldReader{b: r.longString()}
	var values []any // nil if empty, as in amqp091-go
	for len(fields.b) > 0 {
		values = append(values, fields.field())
	}
	r.bad = r.bad || fields.bad
	return values
}

// field reads a value with its type.
func (r *fieldReader) field() any {
	switch r.octet() {
	case 'V':
		return nil
	case 't':
		return r.octet() != 0
	case 'B':
		return r.octet()
	case 'b':
		return int8(r.octet()) //nolint:gosec // two's complement.
	case 's':
		return int16(r.uint16()) //nolint:gosec // two's complement.
	case 'u':
		return r.uint16()
	case 'I':
		return int32(r.uint32()) //nolint:gosec // two's complement.
	case 'i':
		return r.uint32()
	case 'l':
		return int64(r.uint64()) //nolint:gosec // two's complement.
	case 'f':
		return math.Float32frombits(r.uint32())
	case 'd':
		return math.Float64frombits(r.uint64())
	case 'D':
		return amqp.Decimal{Scale: r.octet(), Value: int32(r.uint32())} //nolint:gosec // two's complement.
	case 'T':
		return time.Unix(int64(r.uint64()), 0) //nolint:gosec // two's complement.
	case 'S':
		return string(r.longString())
	case 'x':
		return append([]byte{}, r.longString()...)
	case 'A':
		return r.array()
	case 'F':
		return r.table()
	default:
		r.bad, r.b = true, nil
		return nil
	}
}

// delivery reads the arguments of basic.deliver after the consumer's tag. It keeps the last
// exchange and routing key, because the messages of a consumer often have the same.
func (r *fieldReader) delivery(d *amqp.Delivery, last *recentStrings) {
	d.DeliveryTag = r.uint64()
	d.Redelivered = r.octet()&1 != 0
	d.Exchange = last.exchange.of(r.shortString())
	d.RoutingKey = last.key.of(r.shortString())
}

// properties reads the flags and the properties of a content header.
func (r *fieldReader) properties(d *amqp.Delivery, last *recentStrings) {
	flags := r.uint16()
	text := func(flag uint16) (s []byte) {
		if flags&flag != 0 {
			s = r.shortString()
		}
		return s
	}
	d.ContentType = last.contentType.of(text(flagContentType))
	d.ContentEncoding = string(text(flagContentEncoding))
	if flags&flagHeaders != 0 {
		d.Headers = r.table()
	}
	if flags&flagDeliveryMode != 0 {
		d.DeliveryMode = r.octet()
	}
	if flags&flagPriority != 0 {
		d.Priority = r.octet()
	}
	d.CorrelationId = string(text(flagCorrelationID))
	d.ReplyTo = last.replyTo.of(text(flagReplyTo))
	d.Expiration = last.expiration.of(text(flagExpiration))
	d.MessageId = string(text(flagMessageID))
	if flags&flagTimestamp != 0 {
		d.Timestamp = time.Unix(int64(r.uint64()), 0) //nolint:gosec // two's complement.
	}
	d.Type = last.kind.of(text(flagType))
	d.UserId = last.user.of(text(flagUserID))
	d.AppId = last.app.of(text(flagAppID))
	text(flagReserved)
}

// ReadContent reads what [AppendContent] has appended. The body refers to the memory of b. It returns an
// error for anything else, and for a table of headers beyond the bounds of deliveries.
func ReadContent(b []byte) (d amqp.Delivery, err error) {
	// tableOf expects a frame: a header, class, weight and size before the properties, and its end.
	frame := slices.Concat(make([]byte, flagsAt), b[:min(len(b), maxProperties)], []byte{frameEnd})
	if _, begin, end, ok := tableOf(frame); !ok || !readableTable(frame[begin:end]) {
		return d, errFrame
	}
	r := fieldReader{b: b}
	r.properties(&d, new(recentStrings))
	if r.bad {
		return amqp.Delivery{}, errFrame
	}
	if len(r.b) > 0 {
		d.Body = r.b
	}
	return d, nil
}

// maxProperties bounds the properties that ReadContent reads, in bytes: headers and trailers of 64
// KiB each, details, and the properties of this package.
const maxProperties = 256 << 10

// recentStrings are the last values of properties that are often the same, which saves their
// allocation. They belong to one channel.
type recentStrings struct {
	exchange, key, contentType, replyTo, expiration, kind, user, app recentString
}

type recentString string

// of returns b as a string.
func (s *recentString) of(b []byte) string {
	if string(b) != string(*s) {
		*s = recentString(b)
	}
	return string(*s)
}
