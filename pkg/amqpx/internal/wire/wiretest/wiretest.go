// Package wiretest has what tests of package wire share with tests of its users.
package wiretest

import (
	"encoding/binary"
	"math"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Delivered returns the delivery of a published message.
func Delivered(p amqp.Publishing) *amqp.Delivery {
	return &amqp.Delivery{
		Headers: p.Headers, CorrelationId: p.CorrelationId, ReplyTo: p.ReplyTo, Expiration: p.Expiration,
		MessageId: p.MessageId, AppId: p.AppId, Type: p.Type, Body: p.Body, DeliveryMode: p.DeliveryMode, Timestamp: p.Timestamp,
		ContentType: p.ContentType, ContentEncoding: p.ContentEncoding,
	}
}

// Seed derives values from the bytes of a fuzzer.
type Seed []byte

// Byte returns the next byte; 0 at the end.
func (s *Seed) Byte() byte {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return b
}

func (s *Seed) number() int64 {
	var b [8]byte
	n := copy(b[:], *s)
	*s = (*s)[n:]
	return int64(binary.LittleEndian.Uint64(b[:]))
}

// Text returns a text of up to 510 bytes.
func (s *Seed) Text() string {
	n := min(int(s.Byte())*2, len(*s))
	text := string((*s)[:n])
	*s = (*s)[n:]
	return text
}

// Value returns a value of any type of AMQP; depth is the depth of its nesting.
func (s *Seed) Value(depth int) any {
	kind := s.Byte() % 19
	if depth > 20 {
		kind = 0
	}
	switch kind {
	case 1:
		return s.Byte()%2 == 1
	case 2:
		return s.Byte()
	case 3:
		return int8(s.Byte())
	case 4:
		return int16(s.number())
	case 5:
		return uint16(s.number())
	case 6:
		return int32(s.number())
	case 7:
		return uint32(s.number())
	case 8:
		return s.number()
	case 9:
		return int(s.number())
	case 10:
		return math.Float32frombits(uint32(s.number()))
	case 11:
		return math.Float64frombits(uint64(s.number()))
	case 12:
		return s.Text()
	case 13:
		return []byte(s.Text())
	case 14:
		return amqp.Decimal{Scale: s.Byte(), Value: int32(s.number())}
	case 15:
		return time.Unix(s.number()%1e10, 0)
	case 16:
		return s.Table(depth + 1)
	case 17:
		var all []any
		for range s.Byte() % 5 {
			all = append(all, s.Value(depth+1))
		}
		return all
	default:
		return nil
	}
}

// Table returns a table of headers with up to four entries; depth is the depth of its nesting.
func (s *Seed) Table(depth int) amqp.Table {
	t := amqp.Table{}
	for range s.Byte() % 5 {
		t[s.Text()] = s.Value(depth)
	}
	return t
}

// TypeOf returns a value for the property type of a request.
func TypeOf(n byte) string { return []string{"", "rpc.v1", "rpc.v1.idempotent", "other"}[n%4] }
