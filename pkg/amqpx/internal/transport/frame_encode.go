package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// The frames of a channel's hot path, basic.publish, basic.ack and basic.nack, are written by
// this package and not by amqp091-go (docs/adr/0019). The encoding is the library's own
// (AMQP 0-9-1 section 4.2, with RabbitMQ's field types,
// https://www.rabbitmq.com/docs/amqp-0-9-1-errata#section_3).

// Classes and methods (AMQP 0-9-1 section 1.2 and RabbitMQ's extension basic.nack).
const (
	classChannel  = 20
	channelOpenOK = 11

	classBasic   = 60
	basicPublish = 40
	basicDeliver = 60
	basicAck     = 80
	basicNack    = 120
)

// frameEnd is the last octet of a frame.
const frameEnd = 0xCE

// The flags of the properties in a content header, in the order of the properties. The first
// three are beside tableOf.
const (
	flagDeliveryMode  = 1 << 12
	flagPriority      = 1 << 11
	flagCorrelationID = 1 << 10
	flagReplyTo       = 1 << 9
	flagExpiration    = 1 << 8
	flagMessageID     = 1 << 7
	flagTimestamp     = 1 << 6
	flagType          = 1 << 5
	flagUserID        = 1 << 4
	flagAppID         = 1 << 3
	flagReserved      = 1 << 2
)

// errShortString refuses a property or a name of more than 255 bytes.
var errShortString = errors.New("a property or name is longer than 255 bytes")

// beginFrame appends a frame's header, whose size endFrame sets.
func beginFrame(b []byte, kind byte, channel uint16) []byte {
	return append(b, kind, byte(channel>>8), byte(channel), 0, 0, 0, 0) //nolint:gosec // the lower byte.
}

// endFrame completes the frame that begins at start.
func endFrame(b []byte, start int) []byte {
	binary.BigEndian.PutUint32(b[start+3:], uint32(len(b)-start-frameHeaderBytes)) //nolint:gosec // a frame's payload.
	return append(b, frameEnd)
}

func beginMethod(b []byte, channel, method uint16) []byte {
	return append(beginFrame(b, frameMethod, channel), 0, classBasic, byte(method>>8), byte(method)) //nolint:gosec // the lower byte.
}

// appendAck appends basic.ack.
func appendAck(b []byte, channel uint16, tag uint64, multiple bool) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(beginMethod(b, channel, basicAck), tag)
	return endFrame(append(b, bit(multiple, 0)), start)
}

// appendNack appends basic.nack.
func appendNack(b []byte, channel uint16, tag uint64, multiple, requeue bool) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(beginMethod(b, channel, basicNack), tag)
	return endFrame(append(b, bit(multiple, 0)|bit(requeue, 1)), start)
}

func bit(set bool, at int) byte {
	if set {
		return 1 << at
	}
	return 0
}

// appendMessage appends a message without its body: basic.publish and the content header. If
// err is not nil, b ends with an incomplete message.
func appendMessage(b []byte, channel uint16, exchange, key string, mandatory bool, msg *amqp.Publishing) (_ []byte, err error) {
	if max(len(exchange), len(key)) > wire.MaxShortString {
		return b, errShortString
	}
	start := len(b)
	b = append(beginMethod(b, channel, basicPublish), 0, 0) // a reserved field
	b = appendShortString(appendShortString(b, exchange), key)
	b = endFrame(append(b, bit(mandatory, 0)), start)
	start = len(b)
	b = append(beginFrame(b, frameContent, channel), 0, classBasic, 0, 0) // the class, and a weight of 0
	b = binary.BigEndian.AppendUint64(b, uint64(len(msg.Body)))
	if b, err = appendProperties(b, msg); err != nil {
		return b, err
	}
	return endFrame(b, start), nil
}

// appendBody appends a frame of a body; an empty body has no frame.
func appendBody(b []byte, channel uint16, body []byte) []byte {
	if len(body) == 0 {
		return b
	}
	start := len(b)
	return endFrame(append(beginFrame(b, frameBody, channel), body...), start)
}

// appendProperties appends the flags and the properties of msg.
func appendProperties(b []byte, msg *amqp.Publishing) ([]byte, error) {
	at, flags := len(b), uint16(0)
	b = append(b, 0, 0)
	var err error
	text := func(flag uint16, value string) {
		if value == "" {
			return
		}
		if len(value) > wire.MaxShortString {
			err = errShortString
			return
		}
		flags |= flag
		b = appendShortString(b, value)
	}
	octet := func(flag uint16, value uint8) {
		if value > 0 {
			flags |= flag
			b = append(b, value)
		}
	}
	text(flagContentType, msg.ContentType)
	text(flagContentEncoding, msg.ContentEncoding)
	if len(msg.Headers) > 0 {
		flags |= flagHeaders
		var failed error
		if b, failed = appendTable(b, msg.Headers); failed != nil {
			return b, failed
		}
	}
	octet(flagDeliveryMode, msg.DeliveryMode)
	octet(flagPriority, msg.Priority)
	text(flagCorrelationID, msg.CorrelationId)
	text(flagReplyTo, msg.ReplyTo)
	text(flagExpiration, msg.Expiration)
	text(flagMessageID, msg.MessageId)
	if !msg.Timestamp.IsZero() {
		flags |= flagTimestamp
		b = binary.BigEndian.AppendUint64(b, uint64(msg.Timestamp.Unix())) //nolint:gosec // as amqp091-go.
	}
	text(flagType, msg.Type)
	text(flagUserID, msg.UserId)
	text(flagAppID, msg.AppId)
	binary.BigEndian.PutUint16(b[at:], flags)
	return b, err
}

// AppendContent appends the properties and the body of a message, as they travel. [ReadContent] reads
// them. It returns an error for headers and properties that cannot be encoded.
func AppendContent(b []byte, msg *amqp.Publishing) ([]byte, error) {
	b, err := appendProperties(b, msg)
	return append(b, msg.Body...), err
}

// appendTable appends a field table.
func appendTable(b []byte, table amqp.Table) (_ []byte, err error) {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	for name, value := range table {
		if len(name) > wire.MaxShortString {
			return b, errShortString
		}
		if b, err = appendField(appendShortString(b, name), value); err != nil {
			return b, fmt.Errorf("header %q: %w", name, err)
		}
	}
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4)) //nolint:gosec // bounded by the frame's size.
	return b, nil
}

// appendField appends a value with its type, for the types of amqp.Table.
func appendField(b []byte, value any) ([]byte, error) {
	switch v := value.(type) {
	case nil:
		return append(b, 'V'), nil
	case bool:
		return append(b, 't', bit(v, 0)), nil
	case byte:
		return append(b, 'B', v), nil
	case int8:
		return append(b, 'b', byte(v)), nil //nolint:gosec // two's complement.
	case int16:
		return binary.BigEndian.AppendUint16(append(b, 's'), uint16(v)), nil //nolint:gosec // two's complement.
	case uint16:
		return binary.BigEndian.AppendUint16(append(b, 'u'), v), nil
	case int:
		return binary.BigEndian.AppendUint32(append(b, 'I'), uint32(v)), nil //nolint:gosec // as amqp091-go: 32 bits.
	case int32:
		return binary.BigEndian.AppendUint32(append(b, 'I'), uint32(v)), nil //nolint:gosec // two's complement.
	case uint32:
		return binary.BigEndian.AppendUint32(append(b, 'i'), v), nil
	case int64:
		return binary.BigEndian.AppendUint64(append(b, 'l'), uint64(v)), nil //nolint:gosec // two's complement.
	case float32:
		return binary.BigEndian.AppendUint32(append(b, 'f'), math.Float32bits(v)), nil
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 'd'), math.Float64bits(v)), nil
	case amqp.Decimal:
		return binary.BigEndian.AppendUint32(append(b, 'D', v.Scale), uint32(v.Value)), nil //nolint:gosec // two's complement.
	case time.Time:
		return binary.BigEndian.AppendUint64(append(b, 'T'), uint64(v.Unix())), nil //nolint:gosec // as amqp091-go.
	case string:
		return append(binary.BigEndian.AppendUint32(append(b, 'S'), uint32(len(v))), v...), nil //nolint:gosec // bounded by the frame's size.
	case []byte:
		return append(binary.BigEndian.AppendUint32(append(b, 'x'), uint32(len(v))), v...), nil //nolint:gosec // bounded by the frame's size.
	case amqp.Table:
		return appendTable(append(b, 'F'), v)
	case []any:
		return appendArray(append(b, 'A'), v)
	default:
		return b, amqp.ErrFieldType
	}
}

func appendArray(b []byte, values []any) (_ []byte, err error) {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	for _, value := range values {
		if b, err = appendField(b, value); err != nil {
			return b, err
		}
	}
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4)) //nolint:gosec // bounded by the frame's size.
	return b, nil
}
