package wire

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire/wiretest"
)

func TestRequestOnTheWire(t *testing.T) {
	t.Parallel()
	header := map[string]any{"traceparent": "00-abc"}
	req := Request{Method: "b", Body: []byte("request"), ID: "id", Key: "key", Idempotent: true, Header: header}
	want := amqp.Publishing{
		Headers: amqp.Table{"traceparent": "00-abc"}, Type: "rpc.v1.idempotent",
		AppId: "b", ReplyTo: "reply", CorrelationId: "id", MessageId: "key", Expiration: "2",
		DeliveryMode: amqp.Persistent, Body: []byte("request"),
	}
	if got := req.Publishing("reply", 1500*time.Microsecond, true); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	req.Resent, req.Retry, req.WantsTimes = true, 2, true
	want.Headers = amqp.Table{"traceparent": "00-abc", HeaderResent: true, HeaderRetry: int64(2), HeaderTimes: true}
	if got := req.Publishing("reply", 1500*time.Microsecond, true); !reflect.DeepEqual(got, want) {
		t.Errorf("sent again: got %+v, want %+v", got, want)
	}
	req.Unsampled = true
	want.Timestamp = time.Unix(0, 0)
	if got := req.Publishing("reply", 1500*time.Microsecond, true); !reflect.DeepEqual(got, want) {
		t.Errorf("unsampled: got %+v, want %+v", got, want)
	}
	if !maps.Equal(header, map[string]any{"traceparent": "00-abc"}) {
		t.Errorf("the caller's header was changed: %v", header)
	}
}

func TestRequestRoundTrip(t *testing.T) {
	t.Parallel()
	header := map[string]any{"h": int32(1), "nested": map[string]any{"x": []any{nil, map[string]any{"y": "z"}}}}
	encoded, err := EncodeHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	req := Request{
		Method: "m", Body: []byte{0, 1}, ID: "id", Key: "key", Idempotent: true, Header: encoded,
		ContentType: "text/plain", ContentEncoding: "gzip", Resent: true, Retry: 7, WantsTimes: true, Unsampled: true,
	}
	if err := req.Check(100); err != nil {
		t.Fatal(err)
	}
	var got Request
	if err := got.Decode(wiretest.Delivered(req.Publishing("reply", time.Minute, false)), ""); err != nil {
		t.Fatal(err)
	}
	req.Header = header
	req.ReplyTo, req.Budget, req.FollowsContract, req.Redelivered = "reply", time.Minute, true, true
	if !reflect.DeepEqual(got, req) {
		t.Errorf("got %+v, want %+v", got, req)
	}
}

// An idempotent request whose key is its id does not carry the key, in a message as in a record, if
// the id is unique; its decoder takes the id. Callers that may use an id again have no key.
func TestKeyThatIsTheID(t *testing.T) {
	t.Parallel()
	const long, short = "0123456789abcdef", "0123456789abcde"
	for _, c := range []struct {
		name               string
		id, key            string
		idempotent         bool
		onWire, decodedKey string
	}{
		{"the id", long, long, true, "", long},
		{"another key", long, "key", true, "key", "key"},
		{"an id that others may use", short, short, true, short, short},
		{"no key for such an id", short, "", true, "", ""},
		{"no key for an id", long, "", true, "", long},
		{"no idempotent request", long, long, false, long, long},
		{"no idempotent request without a key", long, "", false, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			req := Request{Method: "m", ID: c.id, Key: c.key, Idempotent: c.idempotent}
			p := req.Publishing("reply", NoBudget, false)
			wantSame(t, "message_id", p.MessageId, c.onWire)
			var got Request
			if err := got.Decode(wiretest.Delivered(p), ""); err != nil {
				t.Fatal(err)
			}
			wantSame(t, "key of a message", got.Key, c.decodedKey)
			body := req.AppendTo(nil, NoBudget)
			wantSame(t, "ids in a record", bytes.Count(body, []byte(c.id)), 1+strings.Count(c.onWire, c.id))
			all, _, err := readRequests(body, "reply")
			if err != nil || len(all) != 1 {
				t.Fatalf("%d requests, error %v", len(all), err)
			}
			wantSame(t, "key of a record", all[0].Key, c.decodedKey)
		})
	}
	for name, d := range map[string]*amqp.Delivery{
		"plain client":               {AppId: "m", CorrelationId: long},
		"plain client with a header": {AppId: "m", CorrelationId: long, Headers: amqp.Table{HeaderIdempotent: true}},
	} {
		var got Request
		if err := got.Decode(d, ""); err != nil {
			t.Fatal(err)
		}
		wantSame(t, name, got.Key, "")
	}
	var got Request
	d := amqp.Delivery{AppId: "m", CorrelationId: long, Headers: amqp.Table{HeaderIdempotent: true, HeaderTimeout: int64(5)}}
	if err := got.Decode(&d, ""); err != nil {
		t.Fatal(err)
	}
	wantSame(t, "caller with headers alone", got.Key, long)
}

func TestBudgetFitsAnExpiration(t *testing.T) {
	t.Parallel()
	p := (&Request{}).Publishing("", math.MaxInt64, false)
	wantSame(t, "expiration", p.Expiration, "4294967295")
	wantSame(t, "headers", len(p.Headers), 0)
	wantSame(t, "type", p.Type, "rpc.v1")
}

// The mark of a request that is not sampled counts only if the caller follows the contract.
func TestUnsampledMark(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind string
		at   time.Time
		want bool
	}{
		{TypeRequest, time.Unix(0, 0), true},
		{TypeIdempotentRequest, time.Unix(0, 0).UTC(), true},
		{TypeRequest, time.Time{}, false},
		{TypeRequest, time.Unix(1, 0), false},
		{TypeRequest, time.Unix(-1, 0), false},
		{TypeRequest, time.Unix(math.MaxInt64, 0), false},
		{"", time.Unix(0, 0), false},
		{"other", time.Unix(0, 0), false},
	} {
		var r Request
		if err := r.Decode(&amqp.Delivery{AppId: "b", Type: c.kind, Timestamp: c.at}, ""); err != nil || r.Unsampled != c.want {
			t.Errorf("type %q, timestamp %v: unsampled %v, error %v", c.kind, c.at, r.Unsampled, err)
		}
	}
}

func TestRequestsOfAnyClient(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		d      amqp.Delivery
		fails  string // part of the text
		oneWay bool
		budget time.Duration
	}{
		{name: "of a plain client", d: amqp.Delivery{AppId: "b", ReplyTo: "r", CorrelationId: "id"}, budget: NoBudget},
		{name: "one-way", d: amqp.Delivery{AppId: "b"}, oneWay: true, budget: NoBudget},
		{name: "no method", d: amqp.Delivery{ReplyTo: "r", CorrelationId: "id"}, fails: "app_id is empty", budget: NoBudget},
		{name: "no correlation id", d: amqp.Delivery{AppId: "b", ReplyTo: "r"}, budget: NoBudget},
		{name: "budget by expiration", d: amqp.Delivery{AppId: "b", Type: TypeRequest, Expiration: "1500"}, budget: 1500 * time.Millisecond, oneWay: true},
		{name: "expiration of a plain client", d: amqp.Delivery{AppId: "b", Expiration: "1500"}, budget: NoBudget, oneWay: true},
		{name: "expiration that is no number", d: amqp.Delivery{AppId: "b", Type: TypeIdempotentRequest, Expiration: "soon"}, budget: NoBudget, oneWay: true},
		{name: "budget as text", d: withHeader(HeaderTimeout, "1500"), budget: 1500 * time.Millisecond, oneWay: true},
		{name: "budget of zero", d: withHeader(HeaderTimeout, int32(0)), oneWay: true},
		{name: "negative budget", d: withHeader(HeaderTimeout, int64(-1)), fails: "rpc-timeout-ms: want 0 or more, got int64 -1", oneWay: true, budget: NoBudget},
		{name: "negative budget as text", d: withHeader(HeaderTimeout, "-1"), fails: `want 0 or more, got "-1"`, oneWay: true, budget: NoBudget},
		{name: "huge budget", d: withHeader(HeaderTimeout, uint64(math.MaxUint64)), budget: MaxBudget, oneWay: true},
		{name: "budget of a wrong type", d: withHeader(HeaderTimeout, true), fails: "rpc-timeout-ms: want a whole number, got bool", oneWay: true, budget: NoBudget},
		{name: "budget that is no number", d: withHeader(HeaderTimeout, "soon"), fails: `want a whole number, got "soon"`, oneWay: true, budget: NoBudget},
		{name: "fractional budget", d: withHeader(HeaderTimeout, 1.5), fails: "got float64 1.5", oneWay: true, budget: NoBudget},
		{name: "idempotent of a wrong type", d: withHeader(HeaderIdempotent, "yes"), fails: `rpc-idempotent: want true or false, got "yes"`, oneWay: true, budget: NoBudget},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var r Request
			failed := r.Decode(&c.d, "")
			if (failed != nil) != (c.fails != "") {
				t.Fatalf("error %v", failed)
			}
			if failed != nil && (!isFormatError(failed) || !strings.Contains(failed.Error(), c.fails)) {
				t.Errorf("error %v", failed)
			}
			wantSame(t, "one-way", r.OneWay, c.oneWay)
			wantSame(t, "budget", r.Budget, c.budget)
		})
	}
}

func withHeader(name string, v any) amqp.Delivery {
	return amqp.Delivery{AppId: "b", Headers: amqp.Table{name: v}}
}

func TestReservedHeadersDoNotReachTheHandler(t *testing.T) {
	t.Parallel()
	var r Request
	if err := r.Decode(&amqp.Delivery{AppId: "b", Headers: amqp.Table{HeaderTimeout: int64(1), "rpc-later": "x", "mine": "y"}}, ""); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(r.Header, map[string]any{"mine": "y"}) {
		t.Errorf("header %v", r.Header)
	}
	r = Request{}
	if err := r.Decode(&amqp.Delivery{AppId: "b", Headers: amqp.Table{HeaderTimeout: int64(1)}}, ""); err != nil || r.Header != nil {
		t.Errorf("header %v, want none; error %v", r.Header, err)
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
		{"longest names", Request{Method: strings.Repeat("m", 255), Key: strings.Repeat("k", 255)}, ""},
		{"no method", Request{}, "method name of 0 bytes"},
		{"long method", Request{Method: strings.Repeat("m", 256)}, "method name of 256 bytes"},
		{"long key", Request{Method: "m", Key: strings.Repeat("k", 256)}, "idempotency key of 256 bytes"},
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
			err := c.req.Check(10)
			if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %q in it", err, c.text)
			}
		})
	}
	if err := (&Request{Method: "m", Body: make([]byte, 11)}).Check(10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("error %v does not match ErrTooLarge", err)
	}
}

func nested(v any) Request { return Request{Method: "m", Header: map[string]any{"h": v}} }
