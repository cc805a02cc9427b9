package transport

import (
	"bytes"
	"encoding/binary"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// deliverAs returns the method frame of a delivery on channel 1.
func deliverAs(consumer string, tag uint64, redelivered bool, exchange, key string) []byte {
	args := binary.BigEndian.AppendUint64(appendShortString([]byte{0, classBasic, 0, basicDeliver}, consumer), tag)
	args = append(args, bit(redelivered, 0))
	return frameOf(frameMethod, appendShortString(appendShortString(args, exchange), key))
}

// headerOf returns the content header of msg on channel 1.
func headerOf(t testing.TB, msg amqp.Publishing) []byte {
	t.Helper()
	payload := binary.BigEndian.AppendUint64([]byte{0, classBasic, 0, 0}, uint64(len(msg.Body)))
	payload, err := appendProperties(payload, &msg)
	if err != nil {
		t.Fatal(err)
	}
	return frameOf(frameContent, payload)
}

// deliveryOf returns the frames of a delivery of msg on channel 1, with bodies of chunk bytes.
func deliveryOf(t testing.TB, consumer string, tag uint64, chunk int, msg amqp.Publishing) []byte {
	t.Helper()
	b := append(deliverAs(consumer, tag, false, "", "q"), headerOf(t, msg)...)
	for part := range slices.Chunk(msg.Body, chunk) {
		b = append(b, frameOf(frameBody, part)...)
	}
	return b
}

// rawHeader returns a content header with flags and properties.
func rawHeader(flags uint16, properties string) []byte {
	payload := append([]byte{0, classBasic, 0, 0}, make([]byte, 8)...)
	return frameOf(frameContent, append(binary.BigEndian.AppendUint16(payload, flags), properties...))
}

// receive returns the first n deliveries of a consumer, without their Acknowledger.
func receive(t *testing.T, deliveries <-chan amqp.Delivery, err error, n int) (got []amqp.Delivery) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		d, ok := <-deliveries
		if !ok {
			t.Fatalf("%d deliveries, want %d", len(got), n)
		}
		d.Acknowledger = nil
		got = append(got, d)
	}
	return got
}

func TestDeliveriesAreReadAsByTheLibrary(t *testing.T) {
	t.Parallel()
	var stream []byte
	var names []string
	add := func(name string, frames ...[]byte) {
		names = append(names, name)
		stream = append(stream, slices.Concat(frames...)...)
	}
	all := messages()
	for tag, name := range slices.Sorted(maps.Keys(all)) {
		add(name, deliveryOf(t, "t", uint64(tag), 3, all[name]))
	}
	add("large", deliveryOf(t, "t", 1, 100_000, amqp.Publishing{Body: []byte(strings.Repeat("body", 100_000))}))
	add("redelivered", deliverAs("t", math.MaxUint64, true, strings.Repeat("e", 255), strings.Repeat("k", 255)), rawHeader(0, ""))
	add("same again", deliverAs("t", 1, false, strings.Repeat("e", 255), strings.Repeat("k", 255)), rawHeader(0, ""))
	add("other key", deliverAs("t", 1, false, "", "k"), rawHeader(0, ""))
	add("empty table", deliverAs("t", 1, false, "", "k"), rawHeader(flagHeaders, "\x00\x00\x00\x00"))
	add("empty containers", deliverAs("t", 1, false, "", "k"),
		rawHeader(flagHeaders, "\x00\x00\x00\x15\x01aA\x00\x00\x00\x00\x01fF\x00\x00\x00\x00\x01sS\x00\x00\x00\x00"))
	add("name twice", deliverAs("t", 1, false, "", "k"), rawHeader(flagHeaders, "\x00\x00\x00\x08\x01at\x01\x01at\x00"))
	add("true of 2", deliverAs("t", 1, false, "", "k"), rawHeader(flagHeaders, "\x00\x00\x00\x04\x01at\x02"))
	add("reserved", deliverAs("t", 1, false, "", "k"), rawHeader(flagAppID|flagReserved, "\x01a\x01r"))
	add("bytes after the properties", deliverAs("t", 1, false, "", "k"), rawHeader(flagAppID, "\x01apadding"))
	add("unknown flags", deliverAs("t", 1, false, "", "k"), rawHeader(flagAppID|3, "\x01a"))
	add("unreadable table", deliverAs("t", 1, false, "", "k"), contentHeader(deepTable(40)))

	library, _ := openLink(t, &peer{frames: stream}, amqp.Config{})
	plain, err := library.conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	deliveries, err := plain.Consume("q", "t", true, false, false, false, nil)
	want := receive(t, deliveries, err, len(names))

	l, _ := openLink(t, &peer{frames: stream}, amqp.Config{})
	ch := openOwn(t, l)
	deliveries, err = ch.Consume("q", "t", true, false, false, false, nil)
	got := receive(t, deliveries, err, len(names))
	for i, name := range names {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("%s: %#v\nwant %#v", name, got[i], want[i])
		}
	}
}

// A delivery is acknowledged through the channel that it came from.
func TestDeliveriesAreAcknowledged(t *testing.T) {
	t.Parallel()
	var w writtenFrames
	l, _ := openLink(t, &peer{seen: w.seen, frames: deliveryOf(t, "t", 5, 10, amqp.Publishing{})}, amqp.Config{})
	ch := openOwn(t, l)
	deliveries, err := ch.Consume("q", "t", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := <-deliveries
	got := writes(t, ch, &w, func() error { return d.Ack(true) })
	wantSame(t, "written", string(got), string(appendAck(nil, 1, 5, true)))
}

func TestMalformedFields(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]string{
		"no length": "\x00\x00", "cut off": "\x00\x00\x00\x09\x01a", "negative length": "\xff\xff\xff\xff", "no value": "\x00\x00\x00\x02\x01a",
		"unknown type": "\x00\x00\x00\x03\x01a?", "short value": "\x00\x00\x00\x05\x01al\x00\x00", "short array": "\x00\x00\x00\x09\x01aA\x00\x00\x00\x01l",
		"short nested table": "\x00\x00\x00\x09\x01aF\x00\x00\x00\x02\x01b",
	} {
		r := fieldReader{b: []byte(b)}
		r.table()
		wantSame(t, name, r.bad, true)
		wantSame(t, name+": next field", r.uint64(), 0)
	}
}

// TestContentIsReadAsItWasAppended: the content of a message is the same after both ways.
func TestContentIsReadAsItWasAppended(t *testing.T) {
	t.Parallel()
	for name, msg := range messages() {
		b, err := AppendContent(nil, &msg)
		if err != nil {
			t.Fatal(err)
		}
		d, err := ReadContent(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		again, err := AppendContent(nil, &amqp.Publishing{
			Headers: d.Headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode, Priority: d.Priority,
			CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration, MessageId: d.MessageId, Timestamp: d.Timestamp,
			Type: d.Type, UserId: d.UserId, AppId: d.AppId, Body: d.Body,
		})
		if err != nil || !bytes.Equal(again, b) || string(d.Body) != string(msg.Body) {
			t.Errorf("%s: appended %q, and read %q, %v", name, b, again, err)
		}
	}
}

func TestMalformedContent(t *testing.T) {
	t.Parallel()
	whole, err := AppendContent(nil, &amqp.Publishing{ContentType: "text/plain", Headers: amqp.Table{"a": "b"}, MessageId: "id"})
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if d, err := ReadContent(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes: read %+v", n, len(whole), d)
		}
	}
	var deep any = "bottom"
	for range wire.ReadableDepth + 2 {
		deep = amqp.Table{"a": deep}
	}
	b, err := AppendContent(nil, &amqp.Publishing{Headers: amqp.Table{"a": deep}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadContent(b); err == nil {
		t.Error("a table was read that is nested deeper than those of deliveries")
	}
}
