package wire

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Batches on the wire: several requests (request.go), or several responses (response.go), in
// one body, in the wire format of protocol buffers
// (https://protobuf.dev/programming-guides/encoding/), which any language can read. batch.proto
// and docs/protocol.md define the messages. A record's fields have the meaning of the
// properties and headers of a message outside a batch.

// Content types of batches, and of cancellations, which have the format of a batch of requests.
const (
	ContentTypeRequests  = "application/vnd.amqpx.calls.v1"
	ContentTypeResponses = "application/vnd.amqpx.answers.v1"
)

// IsBatch reports whether a content type is the type of a batch.
func IsBatch(contentType string) bool {
	return contentType == ContentTypeRequests || contentType == ContentTypeResponses
}

// maxBatchRecords bounds the records of a batch; a reader refuses more.
const maxBatchRecords = 4096

// fieldRecord is the only field of a batch.
const fieldRecord = 1

// recordOverhead bounds the size of the numbers, tags and lengths of a record.
const recordOverhead = 64

var errBatchFormat = errors.New("not a batch")

// lengthSize is the size of a record's length, which is written before the length is known: a
// varint may have more bytes than necessary.
const lengthSize = 4

func beginRecord(b []byte) (_ []byte, start int) {
	b = protowire.AppendTag(b, fieldRecord, protowire.BytesType)
	return append(b, 0, 0, 0, 0), len(b) + lengthSize
}

func endRecord(b []byte, start int) []byte {
	n := len(b) - start
	for i := range lengthSize {
		b[start-lengthSize+i] = byte(n>>(7*i)&0x7f) | 0x80
	}
	b[start-1] &= 0x7f
	return b
}

func appendText(b []byte, number protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendString(b, text)
}

// appendUUID appends the text of a UUID.
func appendUUID(b []byte, number protowire.Number, id *[16]byte) []byte {
	const length = 36
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, length)
	for i, part := range [...]int{0, 4, 6, 8, 10} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, id[part:[...]int{4, 6, 8, 10, 16}[i]])
	}
	return b
}

func appendBlob(b []byte, number protowire.Number, blob []byte) []byte {
	if len(blob) == 0 {
		return b
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendBytes(b, blob)
}

func appendNumber(b []byte, number protowire.Number, n uint64) []byte {
	b = protowire.AppendTag(b, number, protowire.VarintType)
	return protowire.AppendVarint(b, n)
}

// field is one field of a record: a number or bytes. A field of another type has no value.
type field struct {
	number int32
	kind   protowire.Type
	value  uint64
	bytes  []byte
}

// nextField reads the first field of b; rest is nil if b is malformed.
func nextField(b []byte) (f field, rest []byte) {
	number, kind, n := protowire.ConsumeTag(b)
	if n < 0 {
		return f, nil
	}
	f.number, f.kind = int32(number), kind
	b = b[n:]
	switch kind {
	case protowire.VarintType:
		f.value, n = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(b)
	default:
		n = protowire.ConsumeFieldValue(number, kind, b)
	}
	if n < 0 {
		return f, nil
	}
	return f, b[n:]
}

// isMessage reports whether b is a sequence of fields.
func isMessage(b []byte) bool {
	for len(b) > 0 {
		if _, b = nextField(b); b == nil {
			return false
		}
	}
	return true
}

// AppendRecords appends the records of a batch, as slices of body. It returns an error if any
// part is malformed, or if there are more than maxBatchRecords records.
func AppendRecords(records [][]byte, body []byte) ([][]byte, error) {
	for b := body; len(b) > 0; {
		var f field
		if f, b = nextField(b); b == nil {
			return nil, errBatchFormat
		}
		if f.number != fieldRecord || f.kind != protowire.BytesType {
			continue
		}
		if !isMessage(f.bytes) {
			return nil, errBatchFormat
		}
		if len(records) == maxBatchRecords {
			return nil, fmt.Errorf("%w: more than %d records", errBatchFormat, maxBatchRecords)
		}
		records = append(records, f.bytes)
	}
	return records, nil
}

// boundedDuration returns n units, at most MaxBudget.
func boundedDuration(n uint64, unit time.Duration) time.Duration {
	return time.Duration(min(n, uint64(MaxBudget/unit))) * unit //nolint:gosec // bounded.
}
