package rig

import (
	"encoding/binary"
	"fmt"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
)

// Content types of batches.
const (
	CallsType     = "application/vnd.amqpx.calls.v1"
	ResponsesType = "application/vnd.amqpx.answers.v1"
)

// Field numbers of a call.
const (
	CallID         = 1
	CallMethod     = 2
	CallBody       = 3
	CallTimeout    = 4
	CallKey        = 5
	CallIdempotent = 6
	CallRetry      = 8
	CallHeader     = 9
)

// Field numbers of a response.
const (
	ResponseID   = 1
	ResponseBody = 2
	ResponseCode = 3
	ResponseRan  = 4
)

// Field is one field of a record: text, bytes or a number. This is a second implementation of
// the wire format and shares no code with the library under test.
type Field struct {
	Number uint64
	Value  any // string, []byte or uint64
}

// Wire types of protocol buffers.
const (
	varint   = 0
	counted  = 2
	kindBits = 3
)

// Record encodes fields, in their order.
func Record(fields ...Field) []byte {
	var b []byte
	for _, f := range fields {
		switch v := f.Value.(type) {
		case uint64:
			b = binary.AppendUvarint(b, f.Number<<kindBits|varint)
			b = binary.AppendUvarint(b, v)
		case string:
			b = appendCounted(b, f.Number, []byte(v))
		case []byte:
			b = appendCounted(b, f.Number, v)
		default:
			panic(fmt.Sprintf("field %d holds a %T", f.Number, v))
		}
	}
	return b
}

func appendCounted(b []byte, number uint64, text []byte) []byte {
	b = binary.AppendUvarint(b, number<<kindBits|counted)
	b = binary.AppendUvarint(b, uint64(len(text)))
	return append(b, text...)
}

// BatchOf encodes records as the body of a batch.
func BatchOf(records ...[]byte) []byte {
	var b []byte
	for _, r := range records {
		b = appendCounted(b, 1, r)
	}
	return b
}

// RawCall encodes a call with further fields.
func RawCall(id, method, body string, more ...Field) []byte {
	return Record(append([]Field{{CallID, id}, {CallMethod, method}, {CallBody, body}}, more...)...)
}

// Fields decodes a record or a batch. Byte fields stay []byte.
func Fields(t testing.TB, b []byte) []Field {
	t.Helper()
	var all []Field
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			t.Fatalf("%d bytes before the end of a record, no number", len(b))
		}
		b = b[n:]
		return v
	}
	for len(b) > 0 {
		tag := next()
		f := Field{Number: tag >> kindBits}
		v := next()
		switch kind := tag & (1<<kindBits - 1); kind {
		case varint:
			f.Value = v
		case counted:
			if v > uint64(len(b)) {
				t.Fatalf("field %d has %d bytes, %d are left", f.Number, v, len(b))
			}
			f.Value, b = b[:v:v], b[v:]
		default:
			t.Fatalf("field %d is of wire type %d", f.Number, kind)
		}
		all = append(all, f)
	}
	return all
}

// Text returns the text of a record's field, or "" if the field is absent.
func Text(fields []Field, number uint64) string {
	for _, f := range fields {
		if b, ok := f.Value.([]byte); ok && f.Number == number {
			return string(b)
		}
	}
	return ""
}

// Number returns the number in a record's field, or 0 if the field is absent.
func Number(fields []Field, number uint64) uint64 {
	for _, f := range fields {
		if n, ok := f.Value.(uint64); ok && f.Number == number {
			return n
		}
	}
	return 0
}

// Records decodes the records of a batch.
func Records(t testing.TB, body []byte) [][]Field {
	t.Helper()
	var all [][]Field
	for _, f := range Fields(t, body) {
		if b, ok := f.Value.([]byte); ok && f.Number == 1 {
			all = append(all, Fields(t, b))
		}
	}
	return all
}

// BatchQueue returns the name of the rig's batch queue.
func (r *Rig) BatchQueue() string { return r.Queue.Name + ".batch" }

// SendBatch sends a raw batch of calls.
func (r *Rig) SendBatch(replyTo string, records ...[]byte) {
	r.t.Helper()
	r.Publish(r.BatchQueue(), amqp.Publishing{ContentType: CallsType, ReplyTo: replyTo, Body: BatchOf(records...)})
}

// RawResponse is a response, received in a batch or alone.
type RawResponse struct {
	Body, Code string
	// Ran is "yes", "no", or "" if the server did not know.
	Ran string
	// Together is true if the response came in a batch.
	Together bool
}

// ResponsesTo receives responses until every call has a response. It returns the first response
// of each call and counts the repeated ones, because a redelivered call may be answered again.
func (b *Inbox) ResponsesTo(ids ...string) map[string]RawResponse {
	b.t.Helper()
	got := make(map[string]RawResponse)
	add := func(id string, a RawResponse) {
		if _, again := got[id]; !again {
			got[id] = a
			return
		}
		// Each server that dies may already have answered all calls.
		if b.Repeated++; b.Repeated > amqpx.DefaultDeliveryLimit*len(ids) {
			b.t.Fatalf("call %q is answered again and again", id)
		}
	}
	for missing(got, ids) {
		d := b.Next()
		if d.ContentType != ResponsesType {
			add(d.CorrelationId, alone(&d))
			continue
		}
		for _, fields := range Records(b.t, d.Body) {
			add(Text(fields, ResponseID), RawResponse{
				Body: Text(fields, ResponseBody), Code: Text(fields, ResponseCode),
				Ran: []string{"", "no", "yes"}[min(Number(fields, ResponseRan), 2)], Together: true,
			})
		}
	}
	return got
}

func missing(got map[string]RawResponse, ids []string) bool {
	for _, id := range ids {
		if _, ok := got[id]; !ok {
			return true
		}
	}
	return false
}

func alone(d *amqp.Delivery) RawResponse {
	a := RawResponse{Body: string(d.Body)}
	a.Code, _ = d.Headers["rpc-code"].(string)
	if ran, told := d.Headers["rpc-ran"].(bool); told {
		a.Ran = map[bool]string{true: "yes", false: "no"}[ran]
	}
	return a
}
