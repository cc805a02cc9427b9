package amqpx

import (
	"math"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

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
		sent  any    // of a type that AMQP has
		got   any    // by the other side, if that differs
		fails string // part of the error
	}{
		{name: "nothing", value: nil, sent: nil},
		{name: "text", value: "x", sent: "x"},
		{name: "true", value: true, sent: true},
		{name: "bytes", value: []byte{1}, sent: []byte{1}},
		{name: "small int", value: 7, sent: 7},
		{name: "int beyond 32 bits", value: 1 << 40, sent: int64(1 << 40)},
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
		{name: "map", value: map[string]any{"x": []int{1 << 40}}, sent: amqp.Table{"x": []any{int64(1 << 40)}}, got: map[string]any{"x": []any{int64(1 << 40)}}},
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
			req, err := sendable(&Request{Method: "m", Header: map[string]any{"h": c.value}}, 1)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("error %v, want %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(req.Header["h"], c.sent) {
				t.Errorf("sent as %#v, want %#v", req.Header["h"], c.sent)
			}
			want := c.sent
			if c.got != nil {
				want = c.got
			}
			if got := applicationHeader(req.Header)["h"]; !reflect.DeepEqual(got, want) {
				t.Errorf("received as %#v, want %#v", got, want)
			}
		})
	}
}

// The caller's containers are its own again when the call has returned.
func TestHeadersAreCopied(t *testing.T) {
	t.Parallel()
	inner := map[string]any{"x": "y"}
	header := map[string]any{"h": inner, "n": 1 << 40}
	req, err := sendable(&Request{Method: "m", Header: header}, 1)
	if err != nil {
		t.Fatal(err)
	}
	inner["x"] = "changed"
	table, _ := req.Header["h"].(amqp.Table)
	wantSame(t, "inner value", table["x"], any("y"))
	wantSame(t, "the caller's header", header["n"], any(1<<40))
}

func TestHeaderThatCannotBeSentFailsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		got := <-goCall(r.client, within(t, time.Minute), "m", nil, WithHeader(map[string]any{"age": time.Second}))
		wantSame(t, "code", CodeOf(got.err), CodeInvalidArgument)
		wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		wantSame(t, "time", got.took, 0)
		if !strings.Contains(got.err.Error(), `header "age": a time.Duration has no unit`) {
			t.Errorf("error %v", got.err)
		}
		wantSame(t, "requests", len(r.broker.messagesTo(DefaultQueue)), 0)
	})
}
