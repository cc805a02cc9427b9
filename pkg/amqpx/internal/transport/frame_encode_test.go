package transport

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// messages are messages of every property, and of every type of header. Their tables have a
// single entry, because the order of entries is random.
func messages() map[string]amqp.Publishing {
	at := time.Unix(1_700_000_000, 5)
	all := map[string]amqp.Publishing{
		"empty":            {},
		"content type":     {ContentType: "a"},
		"content encoding": {ContentEncoding: "b"},
		"delivery mode":    {DeliveryMode: 2},
		"priority":         {Priority: 9},
		"correlation id":   {CorrelationId: "c"},
		"reply to":         {ReplyTo: "r"},
		"expiration":       {Expiration: "60000"},
		"message id":       {MessageId: "m"},
		"timestamp":        {Timestamp: at},
		"old timestamp":    {Timestamp: time.Unix(-5, 0)},
		"type":             {Type: "t"},
		"user id":          {UserId: "u"},
		"app id":           {AppId: "a"},
		"no headers":       {Headers: amqp.Table{}},
		"longest property": {MessageId: strings.Repeat("m", 255)},
		"longest name":     {Headers: amqp.Table{strings.Repeat("n", 255): true}},
		"everything": {
			Headers: amqp.Table{"h": "v"}, ContentType: "ct", ContentEncoding: "ce", DeliveryMode: 1, Priority: 1,
			CorrelationId: "id", ReplyTo: "to", Expiration: "1", MessageId: "m", Timestamp: at, Type: "t", UserId: "u", AppId: "a",
			Body: []byte("body"),
		},
	}
	for _, value := range []any{
		nil, true, false, byte(200), int8(-1), int16(-2), uint16(65535), -3, int32(-4), uint32(1 << 31), int64(-5), float32(0.5),
		-0.25,
		amqp.Decimal{Scale: 2, Value: -314},
		at, "", "text",
		[]byte{},
		[]byte{0, 1},
		amqp.Table{},
		[]any{},
		amqp.Table{"n": amqp.Table{"m": []any{int64(1), amqp.Table{"o": nil}, []any{[]any{}}}}},
		[]any{nil, true, byte(1), int8(1), int16(1), uint16(1), 1, int32(1), uint32(1), int64(1), float32(1), 1.0, at, "s", []byte("b")},
	} {
		all[fmt.Sprintf("header of type %T %v", value, value)] = amqp.Publishing{Headers: amqp.Table{"name": value}, Body: []byte("b")}
	}
	return all
}

// writes returns the frames that publish writes.
func writes(t *testing.T, ch *netChannel, w *writtenFrames, publish func() error) []byte {
	t.Helper()
	if err := publish(); err != nil {
		t.Fatal(err)
	}
	if err := ch.Barrier(); err != nil { // peer has read all frames before
		t.Fatal(err)
	}
	return w.take(t)
}

func TestMessagesAreEncodedAsByTheLibrary(t *testing.T) {
	t.Parallel()
	var w writtenFrames
	l, _ := openLink(t, &peer{seen: w.seen}, amqp.Config{})
	ch := openOwn(t, l)
	compare := func(name, exchange, key string, mandatory bool, msg amqp.Publishing) {
		t.Helper()
		want := writes(t, ch, &w, func() error { return ch.Publish(exchange, key, mandatory, false, msg) })
		got := writes(t, ch, &w, func() error { return ch.write(exchange, key, mandatory, &msg) })
		if len(want) == 0 || !bytes.Equal(got, want) {
			t.Errorf("%s:\n%q, want\n%q", name, got, want)
		}
	}
	for name, msg := range messages() {
		compare(name, "", "queue", true, msg)
	}
	compare("exchange", strings.Repeat("e", 255), "", true, amqp.Publishing{})
	compare("not mandatory", "e", strings.Repeat("k", 255), false, amqp.Publishing{Body: []byte("b")})

	for _, multiple := range []bool{false, true} {
		want := writes(t, ch, &w, func() error { return ch.Channel.Ack(1<<40, multiple) })
		if got := writes(t, ch, &w, func() error { return ch.Ack(1<<40, multiple) }); !bytes.Equal(got, want) {
			t.Errorf("ack %q, want %q", got, want)
		}
		for _, requeue := range []bool{false, true} {
			want := writes(t, ch, &w, func() error { return ch.Channel.Nack(7, multiple, requeue) })
			if got := writes(t, ch, &w, func() error { return ch.Nack(7, multiple, requeue) }); !bytes.Equal(got, want) {
				t.Errorf("nack %q, want %q", got, want)
			}
		}
	}
	want := writes(t, ch, &w, func() error { return ch.Nack(7, false, true) })
	if got := writes(t, ch, &w, func() error { return ch.Reject(7, true) }); !bytes.Equal(got, want) {
		t.Errorf("reject %q, want %q", got, want)
	}
}

func TestBodiesAreSplitAsByTheLibrary(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]*peer{"smallest": {frameMax: 4096}, "usual": {frameMax: 128 << 10}, "unlimited": {anySize: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var w writtenFrames
			p.seen = w.seen
			l, _ := openLink(t, p, amqp.Config{})
			wantSame(t, "frame size", l.FrameSize(), int(p.frameMax))
			ch := openOwn(t, l)
			chunk := max(l.FrameSize(), 4096) - frameOverhead
			for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 5*chunk + 7} {
				msg := amqp.Publishing{Body: make([]byte, size), MessageId: "m"}
				for i := range msg.Body {
					msg.Body[i] = byte(i % 251)
				}
				want := writes(t, ch, &w, func() error { return ch.Publish("", "q", true, false, msg) })
				if got := writes(t, ch, &w, func() error { return ch.write("", "q", true, &msg) }); !bytes.Equal(got, want) {
					t.Errorf("body of %d bytes: %d bytes written, want %d", size, len(got), len(want))
				}
			}
		})
	}
}

func TestTablesOfManyEntries(t *testing.T) {
	t.Parallel()
	table := amqp.Table{"nested": amqp.Table{"a": "b", "c": []any{"d", int64(1)}}, "text": "x", "nil": nil, "number": int32(1), "at": time.Unix(1, 0)}
	b, err := appendTable(nil, table)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "size", len(b), encodedTableSize(table))
	r := fieldReader{b: b}
	if got := r.table(); r.bad || len(r.b) > 0 || !reflect.DeepEqual(got, table) {
		t.Errorf("read %v", got)
	}
}

// A refused message writes nothing, and is not counted: the next message gets the first confirm.
func TestMessagesThatCannotBeEncoded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 256)
	for name, c := range map[string]struct {
		key  string
		msg  amqp.Publishing
		want error
	}{
		"key":              {long, amqp.Publishing{}, errShortString},
		"property":         {"q", amqp.Publishing{CorrelationId: long}, errShortString},
		"last property":    {"q", amqp.Publishing{AppId: long, Headers: amqp.Table{"a": 1}}, errShortString},
		"name":             {"q", amqp.Publishing{Headers: amqp.Table{long: 1}}, errShortString},
		"nested name":      {"q", amqp.Publishing{Headers: amqp.Table{"t": amqp.Table{long: 1}}}, errShortString},
		"type":             {"q", amqp.Publishing{Headers: amqp.Table{"n": uint64(1)}}, amqp.ErrFieldType},
		"type in an array": {"q", amqp.Publishing{Headers: amqp.Table{"n": []any{1, struct{}{}}}}, amqp.ErrFieldType},
		"type in a table":  {"q", amqp.Publishing{Headers: amqp.Table{"n": amqp.Table{"m": map[string]any{}}}}, amqp.ErrFieldType},
		"large body":       {"q", amqp.Publishing{UserId: long, Body: make([]byte, 300_000)}, errShortString},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var w writtenFrames
			p := &peer{seen: w.seen}
			l, _ := openLink(t, p, amqp.Config{})
			ch := openOwn(t, l)
			if err := ch.Confirm(false); err != nil {
				t.Fatal(err)
			}
			l.Cork()
			if _, err := ch.PublishTo("", c.key, true, c.msg); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if err := ch.PublishFanout("e", c.msg); c.key == "q" && !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			l.Uncork()
			if got := writes(t, ch, &w, func() error { return nil }); c.key == "q" && len(got) > 0 {
				t.Errorf("wrote %q", got)
			}
			pending, err := ch.PublishTo("", "q", true, amqp.Publishing{})
			if err != nil {
				t.Fatal(err)
			}
			tag := uint64(1)
			if c.key != "q" {
				tag = 2 // after the message to the exchange
			}
			p.tags[1] = tag - 1
			p.confirm(1)
			<-pending.Done()
			wantSame(t, "confirmed", pending.Acked(), true)
		})
	}
}
