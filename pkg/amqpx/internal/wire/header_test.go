package wire

import (
	"encoding/base64"
	"math"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestDeeplyNestedHeaderIsRefused(t *testing.T) {
	t.Parallel()
	deep := amqp.Table{}
	for range 100 {
		deep = amqp.Table{"x": deep}
	}
	if err := CheckHeader(deep); err == nil {
		t.Error("accepted")
	}
}

func TestWholeNumber(t *testing.T) {
	t.Parallel()
	for _, v := range []any{int8(7), uint8(7), int16(7), uint16(7), int32(7), uint32(7), int64(7), uint64(7), 7, "7"} {
		n, ok := WholeNumber(v)
		if n != 7 || !ok {
			t.Errorf("%T: %d, %v", v, n, ok)
		}
	}
	if n, ok := WholeNumber(uint64(math.MaxUint64)); n != math.MaxInt64 || !ok {
		t.Errorf("largest: %d, %v", n, ok)
	}
	for _, v := range []any{nil, true, 7.0, float32(7), "7.0", "", " 7", []byte("7"), time.Time{}, amqp.Decimal{}, amqp.Table{}} {
		if n, ok := WholeNumber(v); ok {
			t.Errorf("%T %v is taken for %d", v, v, n)
		}
	}
}

func TestMillisecondsRoundUp(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]int64{0: 0, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, time.Second: 1000} {
		wantSame(t, d.String(), Milliseconds(d), want)
	}
}

type (
	label   string
	level   int8
	labels  map[label]label
	holders []labels
)

func TestHeaderValuesOfGoTypes(t *testing.T) {
	t.Parallel()
	moment := time.Unix(1_700_000_000, 0)
	n := 7
	circle := map[string]any{}
	circle["again"] = circle
	for _, c := range []struct {
		name  string
		value any
		sent  any    // in a type of AMQP
		got   any    // at the receiver, if different
		fails string // part of the error
	}{
		{name: "nothing", value: nil, sent: nil},
		{name: "text", value: "x", sent: "x"},
		{name: "true", value: true, sent: true},
		{name: "bytes", value: []byte{1}, sent: []byte{1}},
		{name: "small int", value: 7, sent: 7},
		{name: "largest int", value: math.MaxInt, sent: sentInt(math.MaxInt)},
		{name: "uint", value: uint(7), sent: int64(7)},
		{name: "uint64", value: uint64(math.MaxInt64), sent: int64(math.MaxInt64)},
		{name: "uint64 out of range", value: uint64(math.MaxInt64) + 1, fails: `header "h": uint64 9223372036854775808 is more than the largest whole number`},
		{name: "moment", value: moment, sent: moment},
		{name: "decimal", value: amqp.Decimal{Scale: 2, Value: 314}, sent: amqp.Decimal{Scale: 2, Value: 314}},
		{name: "named text", value: label("x"), sent: "x"},
		{name: "named number", value: level(-7), sent: int64(-7)},
		{name: "named bytes", value: net.IP{127, 0, 0, 1}, sent: []byte{127, 0, 0, 1}},
		{name: "texts", value: []string{"x", "y"}, sent: []any{"x", "y"}},
		{name: "no texts", value: []string(nil), sent: []any{}},
		{name: "array", value: [2]uint{1, 2}, sent: []any{int64(1), int64(2)}},
		{name: "map", value: map[string]any{"x": []int{math.MaxInt}}, sent: amqp.Table{"x": []any{sentInt(math.MaxInt)}}, got: map[string]any{"x": []any{sentInt(math.MaxInt)}}},
		{name: "table of the codec", value: amqp.Table{"x": amqp.Table{}}, sent: amqp.Table{"x": amqp.Table{}}, got: map[string]any{"x": map[string]any{}}},
		{name: "named containers", value: holders{{"x": "y"}}, sent: []any{amqp.Table{"x": "y"}}, got: []any{map[string]any{"x": "y"}}},
		{name: "duration", value: time.Second, fails: `header "h": a time.Duration has no unit in a header`},
		{name: "pointer", value: &n, fails: `header "h": a value of type *int cannot be sent`},
		{name: "struct", value: struct{}{}, fails: "a value of type struct {} cannot be sent"},
		{name: "function", value: func() {}, fails: "a value of type func() cannot be sent"},
		{name: "complex", value: 1i, fails: "a value of type complex128 cannot be sent"},
		{name: "map with other keys", value: map[int]string{1: "x"}, fails: "a value of type map[int]string cannot be sent"},
		{name: "pointer inside", value: map[string]any{"x": []any{1, &n}}, fails: `header "h": in "x": in element 1: a value of type *int cannot be sent`},
		{name: "infinite", value: math.Inf(1), fails: "not a number that RabbitMQ reads"},
		{name: "circle", value: circle, fails: "nested deeper than 16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			header, err := EncodeHeader(map[string]any{"h": c.value})
			if err == nil {
				err = CheckHeader(header)
			}
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("error %v, want %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(header["h"], c.sent) {
				t.Errorf("sent as %#v, want %#v", header["h"], c.sent)
			}
			want := c.sent
			if c.got != nil {
				want = c.got
			}
			if got := ApplicationHeader(header)["h"]; !reflect.DeepEqual(got, want) {
				t.Errorf("received as %#v, want %#v", got, want)
			}
		})
	}
}

// sentInt returns n in the type in which a header of type int is sent: int64 if n needs more
// than 32 bits.
func sentInt(n int) any {
	if n > math.MaxInt32 {
		return int64(n)
	}
	return n
}

// After the call has returned, the caller may change its containers.
func TestHeadersAreCopied(t *testing.T) {
	t.Parallel()
	inner := map[string]any{"x": "y"}
	header := map[string]any{"h": inner, "n": math.MaxInt}
	sent, err := EncodeHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	inner["x"] = "changed"
	table, _ := sent["h"].(amqp.Table)
	wantSame(t, "inner value", table["x"], any("y"))
	wantSame(t, "the caller's header", header["n"], any(math.MaxInt))
}

func TestSafeReplyTo(t *testing.T) {
	t.Parallel()
	process := func(term string) string {
		return DirectReplyTo + "." + base64.StdEncoding.EncodeToString([]byte(term)) + "."
	}
	const tail = "\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03"
	for replyTo, want := range map[string]bool{
		"queue":     true,
		"":          true,
		"amq.gen-x": true,
		process("\x83\x58\x77\x01a"+tail) + "key==":      true,
		process("\x83\x58\x64\x00\x01a"+tail) + "key":    true,
		process("\x83\x67\x73\x01a"+tail[:9]) + "key":    true,
		process("\x83\x58\x77\x01a" + tail):              false,
		process("\x83\x58\x77\x01a"+tail) + "a.b":        false,
		process("\x83\x58\x77\x01a"+tail+"\x00") + "key": false,
		process("\x83\x58\x77\xffa"+tail) + "key":        false,
		process("\x83\x58\x76\x00") + "key":              false,
		process("\x83\x61\x01\x00\x00") + "key":          false,
		process("\x00\x58\x77\x01a"+tail) + "key":        false,
		process("") + "key":                              false,
		DirectReplyTo:                                    true,
		DirectReplyTo + ".":                              false,
		DirectReplyTo + ".garbage":                       false,
		DirectReplyTo + ".g1h2!!.~~":                     false,
		DirectReplyTo + "s":                              false,
	} {
		if got := SafeReplyTo(replyTo); got != want {
			t.Errorf("%q: got %v, want %v", replyTo, got, want)
		}
	}
}
