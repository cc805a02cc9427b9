package amqpx

import (
	"fmt"
	"maps"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

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
