package amqpx

import (
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"math"
	"net"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
)

// delivered returns the delivery of a published message.
func delivered(p amqp.Publishing) *amqp.Delivery {
	return &amqp.Delivery{
		Headers: p.Headers, CorrelationId: p.CorrelationId, ReplyTo: p.ReplyTo, Expiration: p.Expiration,
		MessageId: p.MessageId, AppId: p.AppId, Type: p.Type, Body: p.Body, DeliveryMode: p.DeliveryMode,
		ContentType: p.ContentType, ContentEncoding: p.ContentEncoding,
	}
}

func TestRequestOnTheWire(t *testing.T) {
	t.Parallel()
	header := map[string]any{"traceparent": "00-abc"}
	req := &Request{Method: "b", Body: []byte("request"), CorrelationID: "id", IdempotencyKey: "key", Idempotent: true, Header: header}
	got := encodeRequest(req, "reply", 1500*time.Microsecond, true)
	want := amqp.Publishing{
		Headers: amqp.Table{"traceparent": "00-abc"}, Type: "rpc.v1.idempotent",
		AppId: "b", ReplyTo: "reply", CorrelationId: "id", MessageId: "key", Expiration: "2",
		DeliveryMode: amqp.Persistent, Body: []byte("request"),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !maps.Equal(header, map[string]any{"traceparent": "00-abc"}) {
		t.Errorf("the caller's header was changed: %v", header)
	}
}

func TestRequestRoundTrip(t *testing.T) {
	t.Parallel()
	req := Request{
		Method: "m", Body: []byte{0, 1}, CorrelationID: "id", IdempotencyKey: "key", Idempotent: true,
		Header: map[string]any{"h": int32(1), "nested": map[string]any{"x": []any{nil, map[string]any{"y": "z"}}}},
	}
	sent, err := sendable(&req, 100)
	if err != nil {
		t.Fatal(err)
	}
	in, failed := decodeRequest(delivered(encodeRequest(sent, "reply", time.Minute, false)), "")
	if failed != nil {
		t.Fatal(failed)
	}
	if !reflect.DeepEqual(in.Request, req) {
		t.Errorf("got %+v, want %+v", in.Request, req)
	}
	wantSame(t, "reply_to", in.replyTo, "reply")
	wantSame(t, "budget", in.budget, time.Minute)
	wantSame(t, "follows the contract", in.followsContract, true)
}

func TestBudgetFitsAnExpiration(t *testing.T) {
	t.Parallel()
	p := encodeRequest(&Request{}, "", math.MaxInt64, false)
	wantSame(t, "expiration", p.Expiration, "4294967295")
	wantSame(t, "headers", len(p.Headers), 0)
	wantSame(t, "type", p.Type, "rpc.v1")
}

func TestRequestsOfAnyClient(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		d      amqp.Delivery
		fails  string // part of the text of an invalid_argument
		oneWay bool
		budget time.Duration
	}{
		{name: "of a plain client", d: amqp.Delivery{AppId: "b", ReplyTo: "r", CorrelationId: "id"}, budget: noBudget},
		{name: "one-way", d: amqp.Delivery{AppId: "b"}, oneWay: true, budget: noBudget},
		{name: "no method", d: amqp.Delivery{ReplyTo: "r", CorrelationId: "id"}, fails: "app_id is empty", budget: noBudget},
		{name: "no correlation id", d: amqp.Delivery{AppId: "b", ReplyTo: "r"}, budget: noBudget},
		{name: "budget by expiration", d: amqp.Delivery{AppId: "b", Type: typeCall, Expiration: "1500"}, budget: 1500 * time.Millisecond, oneWay: true},
		{name: "expiration of a plain client", d: amqp.Delivery{AppId: "b", Expiration: "1500"}, budget: noBudget, oneWay: true},
		{name: "expiration that is no number", d: amqp.Delivery{AppId: "b", Type: typeIdempotentCall, Expiration: "soon"}, budget: noBudget, oneWay: true},
		{name: "budget as text", d: withHeader(headerTimeout, "1500"), budget: 1500 * time.Millisecond, oneWay: true},
		{name: "budget of zero", d: withHeader(headerTimeout, int32(0)), oneWay: true},
		{name: "negative budget", d: withHeader(headerTimeout, int64(-1)), fails: "rpc-timeout-ms: want 0 or more, got int64 -1", oneWay: true, budget: noBudget},
		{name: "negative budget as text", d: withHeader(headerTimeout, "-1"), fails: `want 0 or more, got "-1"`, oneWay: true, budget: noBudget},
		{name: "huge budget", d: withHeader(headerTimeout, uint64(math.MaxUint64)), budget: maxBudget, oneWay: true},
		{name: "budget of a wrong type", d: withHeader(headerTimeout, true), fails: "rpc-timeout-ms: want a whole number, got bool", oneWay: true, budget: noBudget},
		{name: "budget that is no number", d: withHeader(headerTimeout, "soon"), fails: `want a whole number, got "soon"`, oneWay: true, budget: noBudget},
		{name: "fractional budget", d: withHeader(headerTimeout, 1.5), fails: "got float64 1.5", oneWay: true, budget: noBudget},
		{name: "idempotent of a wrong type", d: withHeader(headerIdempotent, "yes"), fails: `rpc-idempotent: want true or false, got "yes"`, oneWay: true, budget: noBudget},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in, failed := decodeRequest(&c.d, "")
			if (failed != nil) != (c.fails != "") {
				t.Fatalf("error %v", failed)
			}
			if failed != nil && (failed.code != CodeInvalidArgument || failed.outcome != DidNotRun || !strings.Contains(failed.message, c.fails)) {
				t.Errorf("error %v", failed)
			}
			wantSame(t, "one-way", in.OneWay, c.oneWay)
			wantSame(t, "budget", in.budget, c.budget)
		})
	}
}

func withHeader(name string, v any) amqp.Delivery {
	return amqp.Delivery{AppId: "b", Headers: amqp.Table{name: v}}
}

func TestReservedHeadersDoNotReachTheHandler(t *testing.T) {
	t.Parallel()
	d := amqp.Delivery{AppId: "b", Headers: amqp.Table{headerTimeout: int64(1), "rpc-later": "x", "mine": "y"}}
	in, _ := decodeRequest(&d, "")
	if !maps.Equal(in.Header, map[string]any{"mine": "y"}) {
		t.Errorf("header %v", in.Header)
	}
	in, _ = decodeRequest(&amqp.Delivery{AppId: "b", Headers: amqp.Table{headerTimeout: int64(1)}}, "")
	if in.Header != nil {
		t.Errorf("header %v, want none", in.Header)
	}
}

func TestCheckRequest(t *testing.T) {
	t.Parallel()
	big := map[string]any{}
	for i := range 300 {
		big[strings.Repeat("x", 200)+string(rune('a'+i%26))+string(rune('a'+i/26))] = strings.Repeat("v", 50)
	}
	beyond := int64(1 << 31) // as an int of 32 bits, another number
	for _, c := range []struct {
		name string
		req  Request
		text string
	}{
		{"good", Request{Method: "m", Body: make([]byte, 10)}, ""},
		{"longest names", Request{Method: strings.Repeat("m", 255), IdempotencyKey: strings.Repeat("k", 255)}, ""},
		{"no method", Request{}, "method name of 0 bytes"},
		{"long method", Request{Method: strings.Repeat("m", 256)}, "method name of 256 bytes"},
		{"long key", Request{Method: "m", IdempotencyKey: strings.Repeat("k", 256)}, "idempotency key of 256 bytes"},
		{"large body", Request{Method: "m", Body: make([]byte, 11)}, "body of 11 bytes, limit 10"},
		{"reserved header", Request{Method: "m", Header: map[string]any{"rpc-x": 1}}, `header "rpc-x"`},
		{"header by which a broker routes", Request{Method: "m", Header: map[string]any{"CC": []any{"other"}}}, `header "CC"`},
		{"header by which a broker routes unseen", Request{Method: "m", Header: map[string]any{"BCC": nil}}, `header "BCC"`},
		{"long header name", Request{Method: "m", Header: map[string]any{strings.Repeat("h", 256): 1}}, "name of 256 bytes"},
		{"long name inside a header", nested(amqp.Table{strings.Repeat("h", 256): nil}), "name of 256 bytes"},
		{"long name inside an array", nested([]any{amqp.Table{strings.Repeat("h", 256): nil}}), "name of 256 bytes"},
		{"number that the codec cuts off", nested(int(beyond)), map[bool]string{true: "use int64"}[strconv.IntSize > 32]},
		{"not a number", nested(math.NaN()), "not a number that RabbitMQ reads"},
		{"infinite number", nested([]any{float32(math.Inf(-1))}), "not a number that RabbitMQ reads"},
		{"largest number", nested(1<<31 - 1), ""},
		{"header of a type AMQP has not", Request{Method: "m", Header: map[string]any{"h": struct{}{}}}, "header: "},
		{"headers beyond a frame", Request{Method: "m", Header: big}, "headers of about"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := checkRequest(&c.req, 10)
			if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %q in it", err, c.text)
			}
		})
	}
	if err := checkRequest(&Request{Method: "m", Body: make([]byte, 11)}, 10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("error %v does not match ErrTooLarge", err)
	}
}

func nested(v any) Request { return Request{Method: "m", Header: map[string]any{"h": v}} }

func TestDeeplyNestedHeaderIsRefused(t *testing.T) {
	t.Parallel()
	deep := amqp.Table{}
	for range 100 {
		deep = amqp.Table{"x": deep}
	}
	if err := checkHeader(deep); err == nil {
		t.Error("accepted")
	}
}

func TestAnswerRoundTrip(t *testing.T) {
	t.Parallel()
	took := timing{queue: 7 * time.Microsecond, handler: 9 * time.Second}
	for _, c := range []struct {
		name string
		err  *Error
	}{
		{"result", nil},
		{"coded error", Errorf(CodeNotFound, "no %s", "ä")},
		{"error without text", Errorf(CodeAborted, "")},
		{"refusal", refusal(CodeInvalidArgument, "bad")},
		{"unknown method", refusal(CodeUnimplemented, "what")},
		{"with a hint", &Error{code: CodeResourceExhausted, outcome: DidNotRun, retryAfter: 1500 * time.Millisecond}},
		{"long text", Errorf(CodeInternal, "%s", strings.Repeat("ä", 3000))},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in := &incoming{Request: Request{CorrelationID: "id"}, followsContract: true, wantsTimes: true}
			p := encodeResult(in, []byte("answer"), took, true)
			if c.err != nil {
				p = encodeError(in, c.err, took, true)
				if h, _ := p.Headers[headerMessage].(string); len(h) > maxMessageHeader || !utf8.ValidString(h) {
					t.Errorf("header of %d bytes", len(h))
				}
			}
			wantSame(t, "correlation id", p.CorrelationId, "id")
			wantSame(t, "delivery mode", p.DeliveryMode, amqp.Persistent)
			body, gotTook, got := decodeAnswer(delivered(p))
			wantSame(t, "timing", gotTook, took)
			if c.err == nil {
				wantAnswer(t, result{answer: body}, "answer")
				return
			}
			if got == nil || got.code != c.err.code || got.message != c.err.message || got.outcome != c.err.outcome ||
				got.retryAfter != c.err.retryAfter || !got.remote || body != nil {
				t.Errorf("got %+v, want %+v", got, c.err)
			}
		})
	}
}

func TestAnswerToAPlainClientHasNoExtras(t *testing.T) {
	t.Parallel()
	in := &incoming{Request: Request{CorrelationID: "id"}}
	got := encodeResult(in, []byte("b"), timing{queue: time.Second}, false)
	want := amqp.Publishing{CorrelationId: "id", DeliveryMode: amqp.Transient, Body: []byte("b")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	failed := encodeError(in, Errorf(CodeNotFound, "text"), timing{}, false)
	wantSame(t, "body", string(failed.Body), "text")
	wantSame(t, "code", failed.Headers[headerCode], any("not_found"))
}

func TestAnswersOfAnyServer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		d       amqp.Delivery
		code    Code
		message string
		outcome Outcome
	}{
		{name: "only a body", d: amqp.Delivery{Body: []byte("b")}},
		{name: "foreign headers", d: amqp.Delivery{Headers: amqp.Table{"x": "y", headerQueueTime: true}, Body: []byte("b")}},
		{"code outside the set", amqp.Delivery{Headers: amqp.Table{headerCode: "teapot"}, Body: []byte("m")}, CodeUnknown, "m", MayHaveRun},
		{"code of a wrong type", amqp.Delivery{Headers: amqp.Table{headerCode: int32(5)}}, CodeUnknown, "", MayHaveRun},
		{"text in the header only", amqp.Delivery{Headers: amqp.Table{headerCode: "aborted", headerMessage: "m"}}, CodeAborted, "m", MayHaveRun},
		{"text of a wrong type", amqp.Delivery{Headers: amqp.Table{headerCode: "aborted", headerMessage: 1.5}}, CodeAborted, "", MayHaveRun},
		{"says that it ran", amqp.Delivery{Headers: amqp.Table{headerCode: "aborted", headerRan: true}}, CodeAborted, "", Ran},
		{"says neither", amqp.Delivery{Headers: amqp.Table{headerCode: "aborted", headerRan: "no"}}, CodeAborted, "", MayHaveRun},
		{"headers that cannot be read", amqp.Delivery{Headers: amqp.Table{headerUnreadable: true}}, CodeDataLoss, "the answer's headers cannot be read", MayHaveRun},
		{"unimplemented there, perhaps not elsewhere", amqp.Delivery{Headers: amqp.Table{headerCode: "unimplemented"}}, CodeUnimplemented, "", MayHaveRun},
		{"a handler says unimplemented", amqp.Delivery{Headers: amqp.Table{headerCode: "unimplemented", headerRan: true}}, CodeUnimplemented, "", Ran},
		{"says that it did not run", amqp.Delivery{Headers: amqp.Table{headerCode: "aborted", headerRan: false}}, CodeAborted, "", DidNotRun},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			body, _, failed := decodeAnswer(&c.d)
			if c.code == "" {
				if failed != nil || string(body) != "b" {
					t.Errorf("body %q, error %v", body, failed)
				}
				return
			}
			if failed == nil || failed.code != c.code || failed.message != c.message || failed.outcome != c.outcome {
				t.Errorf("got %+v", failed)
			}
		})
	}
}

func TestWholeNumber(t *testing.T) {
	t.Parallel()
	for _, v := range []any{int8(7), uint8(7), int16(7), uint16(7), int32(7), uint32(7), int64(7), uint64(7), 7, "7"} {
		n, ok := wholeNumber(v)
		if n != 7 || !ok {
			t.Errorf("%T: %d, %v", v, n, ok)
		}
	}
	if n, ok := wholeNumber(uint64(math.MaxUint64)); n != math.MaxInt64 || !ok {
		t.Errorf("largest: %d, %v", n, ok)
	}
	for _, v := range []any{nil, true, 7.0, float32(7), "7.0", "", " 7", []byte("7"), time.Time{}, amqp.Decimal{}, amqp.Table{}} {
		if n, ok := wholeNumber(v); ok {
			t.Errorf("%T %v is taken for %d", v, v, n)
		}
	}
}

func TestMillisecondsRoundUp(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]int64{0: 0, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, time.Second: 1000} {
		wantSame(t, d.String(), milliseconds(d), want)
	}
}

func TestRemoteDeadlineMatchesTheContexts(t *testing.T) {
	t.Parallel()
	_, _, err := decodeAnswer(&amqp.Delivery{Headers: amqp.Table{headerCode: string(CodeDeadlineExceeded)}})
	if !errors.Is(err, context.DeadlineExceeded) || !err.Remote() {
		t.Errorf("got %v", err)
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
	req, err := sendable(&Request{Method: "m", Header: header}, 1)
	if err != nil {
		t.Fatal(err)
	}
	inner["x"] = "changed"
	table, _ := req.Header["h"].(amqp.Table)
	wantSame(t, "inner value", table["x"], any("y"))
	wantSame(t, "the caller's header", header["n"], any(math.MaxInt))
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

func TestSafeReplyTo(t *testing.T) {
	t.Parallel()
	process := func(term string) string {
		return directReplyTo + "." + base64.StdEncoding.EncodeToString([]byte(term)) + "."
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
		directReplyTo:                                    true,
		directReplyTo + ".":                              false,
		directReplyTo + ".garbage":                       false,
		directReplyTo + ".g1h2!!.~~":                     false,
		directReplyTo + "s":                              false,
	} {
		if got := safeReplyTo(replyTo); got != want {
			t.Errorf("%q: got %v, want %v", replyTo, got, want)
		}
	}
}
