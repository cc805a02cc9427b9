package wire

import (
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire/wiretest"
)

// wantResponse compares a decoded response with the sent one.
func wantResponse(t *testing.T, what string, got, want Response) {
	t.Helper()
	got.ID = nil // only of a response in a batch
	if want.Failure != nil {
		want.Body = nil
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v (%+v), want %+v (%+v)", what, got, got.Failure, want, want.Failure)
	}
}

func TestResponseRoundTrip(t *testing.T) {
	t.Parallel()
	times := Times{Queue: 7 * time.Microsecond, Handler: 9 * time.Second}
	for name, r := range map[string]Response{
		"result":             {Body: []byte("result"), Times: times},
		"failure":            {Failure: &Failure{Code: "not_found", Message: "no ä", Ran: RanYes}, Times: times},
		"failure, no text":   {Failure: &Failure{Code: "aborted", Ran: RanYes}, Times: times},
		"failure, may have":  {Failure: &Failure{Code: "aborted", Message: "perhaps"}, Times: times},
		"refusal":            {Failure: &Failure{Code: "invalid_argument", Message: "bad", Ran: RanNo}, Times: times, Round: 3, Echoed: true},
		"with a hint":        {Failure: &Failure{Code: "resource_exhausted", RetryAfter: 1500 * time.Millisecond}, Times: times},
		"long text":          {Failure: &Failure{Code: "internal", Message: strings.Repeat("ä", 3000), Ran: RanYes}, Times: times},
		"result, properties": {Body: []byte("b"), Times: times, Properties: &Properties{ContentType: "text/plain", ContentEncoding: "gzip", Header: map[string]any{"h": "x"}}},
		"bytes, trailers": {Body: []byte("b"), Times: times, Properties: &Properties{
			Header: map[string]any{"h": []byte{0, 255}, "empty": []byte{}}, Trailer: map[string]any{"rpc-code": "t", "b": []byte("\x00")},
		}},
		"failure, trailers": {Failure: &Failure{Code: "aborted", Ran: RanYes}, Times: times, Properties: &Properties{Trailer: map[string]any{"t": "u"}}},
		"details": {Failure: &Failure{Code: "aborted", Ran: RanYes, Details: []Detail{
			{"type.googleapis.com/a.B", []byte{1, 0, 255}}, {"a/b", nil}, {"", []byte("x")}, {"a/b", []byte("twice")},
		}}, Times: times},
		"names its server":    {Body: []byte("b"), Times: times, Server: []byte("server-1")},
		"failure, properties": {Failure: &Failure{Code: "aborted", Ran: RanYes}, Times: times, Properties: &Properties{Header: map[string]any{"h": "x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to := &Request{ID: "id", FollowsContract: true, WantsTimes: true, Retry: 3}
			p := r.Publishing(to, true)
			if h, _ := p.Headers[HeaderMessage].(string); len(h) > maxMessageHeader || !utf8.ValidString(h) {
				t.Errorf("header of %d bytes", len(h))
			}
			wantSame(t, "correlation id", p.CorrelationId, "id")
			wantSame(t, "delivery mode", p.DeliveryMode, amqp.Persistent)
			wantResponse(t, "alone", DecodeResponse(wiretest.Delivered(p)), r)

			record := r.AppendTo(nil, to)
			if len(r.Server) > 0 {
				record = append(BeginResponses(nil, r.Server), record...)
			}
			if len(record) > r.BatchSize(to) {
				t.Errorf("%d bytes, more than %d", len(record), r.BatchSize(to))
			}
			batched, err := DecodeResponses(record, false, nil)
			if err != nil || len(batched) != 1 {
				t.Fatalf("%d responses, %v", len(batched), err)
			}
			wantSame(t, "id", string(batched[0].ID), "id")
			wantResponse(t, "in a batch", batched[0], r)
		})
	}
}

// A response in a batch does not say which server refused; alone it does.
func TestRefusalNamesItsServer(t *testing.T) {
	t.Parallel()
	r := Response{Failure: &Failure{Code: "unimplemented", Ran: RanNo, Server: "server-1"}}
	for _, follows := range []bool{true, false} {
		got := DecodeResponse(wiretest.Delivered(r.Publishing(&Request{FollowsContract: follows, Retry: 1}, false)))
		wantSame(t, "has a server", got.Failure.Server == "server-1", follows)
		wantSame(t, "echoes", got.Echoed, follows)
	}
}

func TestResponseToAPlainClientHasNoExtras(t *testing.T) {
	t.Parallel()
	to := &Request{ID: "id"}
	r := Response{Body: []byte("b"), Times: Times{Queue: time.Second}}
	want := amqp.Publishing{CorrelationId: "id", DeliveryMode: amqp.Transient, Body: []byte("b")}
	if got := r.Publishing(to, false); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	r = Response{Failure: &Failure{Code: "not_found", Message: "text", Ran: RanYes}}
	want = amqp.Publishing{
		CorrelationId: "id", DeliveryMode: amqp.Transient, Body: []byte("text"),
		Headers: amqp.Table{HeaderCode: "not_found", HeaderMessage: "text", HeaderRan: true},
	}
	if got := r.Publishing(to, false); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestResponsesOfAnyServer(t *testing.T) {
	t.Parallel()
	dropped := func(h amqp.Table) amqp.Table {
		h[HeaderDropped] = DroppedBody{Size: 20, Limit: 10}.HeaderValue()
		return h
	}
	tooLarge := func(ran Ran) *Failure {
		return &Failure{
			Code: "resource_exhausted", Message: "response: message exceeds the size limit: body of 20 bytes, limit 10", Ran: ran, TooLarge: true,
		}
	}
	for _, c := range []struct {
		name string
		d    amqp.Delivery
		want *Failure // nil: a result with body "b"
	}{
		{"only a body", amqp.Delivery{Body: []byte("b")}, nil},
		{"foreign headers", amqp.Delivery{Headers: amqp.Table{"x": "y", HeaderQueueTime: true}, Body: []byte("b")}, nil},
		{"code outside the set", amqp.Delivery{Headers: amqp.Table{HeaderCode: "teapot"}, Body: []byte("m")}, &Failure{Code: "teapot", Message: "m"}},
		{"code of a wrong type", amqp.Delivery{Headers: amqp.Table{HeaderCode: int32(5)}}, &Failure{}},
		{"text in the header only", amqp.Delivery{Headers: amqp.Table{HeaderCode: "aborted", HeaderMessage: "m"}}, &Failure{Code: "aborted", Message: "m"}},
		{"text of a wrong type", amqp.Delivery{Headers: amqp.Table{HeaderCode: "aborted", HeaderMessage: 1.5}}, &Failure{Code: "aborted"}},
		{"says that it ran", amqp.Delivery{Headers: amqp.Table{HeaderCode: "aborted", HeaderRan: true}}, &Failure{Code: "aborted", Ran: RanYes}},
		{"says neither", amqp.Delivery{Headers: amqp.Table{HeaderCode: "aborted", HeaderRan: "no"}}, &Failure{Code: "aborted"}},
		{"says in text that it ran", amqp.Delivery{Headers: amqp.Table{HeaderCode: "aborted", HeaderRan: "true"}}, &Failure{Code: "aborted", Ran: RanYes}},
		{"says in text that it did not run", amqp.Delivery{Headers: amqp.Table{HeaderCode: "aborted", HeaderRan: "false"}}, &Failure{Code: "aborted", Ran: RanNo}},
		{"headers that cannot be read", amqp.Delivery{Headers: amqp.Table{HeaderUnreadable: true}}, &Failure{Code: "data_loss", Message: "the response's headers cannot be read"}},
		{"unimplemented there, perhaps not elsewhere", amqp.Delivery{Headers: amqp.Table{HeaderCode: "unimplemented"}}, &Failure{Code: "unimplemented"}},
		{"a handler says unimplemented", amqp.Delivery{Headers: amqp.Table{HeaderCode: "unimplemented", HeaderRan: true}}, &Failure{Code: "unimplemented", Ran: RanYes}},
		{"says that it did not run", amqp.Delivery{Headers: amqp.Table{HeaderCode: "aborted", HeaderRan: false}}, &Failure{Code: "aborted", Ran: RanNo}},
		{"failure by its type", amqp.Delivery{Type: typeError, Body: []byte("m")}, &Failure{Code: "unknown", Message: "m", Ran: RanYes}},
		{"result beyond the limit", amqp.Delivery{Headers: dropped(amqp.Table{})}, tooLarge(RanYes)},
		{"failure beyond the limit", amqp.Delivery{Headers: dropped(amqp.Table{HeaderCode: "aborted"})}, tooLarge(RanUnknown)},
		{"refusal beyond the limit", amqp.Delivery{Headers: dropped(amqp.Table{HeaderCode: "aborted", HeaderRan: false})}, tooLarge(RanNo)},
		{"unreadable beyond the limit", amqp.Delivery{Headers: dropped(amqp.Table{HeaderUnreadable: true})}, tooLarge(RanUnknown)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := DecodeResponse(&c.d)
			if !reflect.DeepEqual(got.Failure, c.want) {
				t.Errorf("got %+v, want %+v", got.Failure, c.want)
			}
			if c.want == nil && string(got.Body) != "b" || c.want != nil && got.Body != nil {
				t.Errorf("body %q", got.Body)
			}
		})
	}
}

func TestOutdatedRefusal(t *testing.T) {
	t.Parallel()
	refusal := &Failure{Ran: RanNo}
	for name, c := range map[string]struct {
		r     Response
		round int64
		want  bool
	}{
		"first round":             {Response{Failure: refusal, Redelivered: true}, 0, false},
		"of this round":           {Response{Failure: refusal, Round: 2, Echoed: true}, 2, false},
		"of an earlier round":     {Response{Failure: refusal, Round: 1, Echoed: true}, 2, true},
		"no echo":                 {Response{Failure: refusal}, 2, false},
		"no echo, redelivered":    {Response{Failure: refusal, Redelivered: true}, 2, true},
		"earlier, may have run":   {Response{Failure: &Failure{}, Round: 1, Echoed: true}, 2, false},
		"result of earlier round": {Response{Redelivered: true}, 2, false},
	} {
		wantSame(t, name, c.r.Outdated(c.round), c.want)
	}
}

func TestMarkOfADroppedBody(t *testing.T) {
	t.Parallel()
	want := DroppedBody{Size: 1 << 40, Limit: 10, NoRoom: true}
	got, ok := DroppedBodyOf(amqp.Table{HeaderDropped: want.HeaderValue()})
	if !ok || got != want {
		t.Errorf("got %+v, %v", got, ok)
	}
	for _, forged := range []any{nil, true, "", "false 1000 10", want.HeaderValue()[1:]} {
		if _, ok := DroppedBodyOf(amqp.Table{HeaderDropped: forged}); ok {
			t.Errorf("%v counts", forged)
		}
	}
}

// Details beyond a bound, and malformed ones, are left out whole; the failure itself is read.
func TestDetailsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	good := EncodeDetails([]Detail{{"t/n", []byte("v")}})
	for name, value := range map[string]any{
		"malformed":       append(append([]byte{}, good...), 0x1a, 0x05),
		"malformed Any":   []byte{0x1a, 0x01, 0x0a},
		"too large":       EncodeDetails([]Detail{{"t/n", make([]byte, MaxDetailsBytes)}}),
		"too many":        EncodeDetails(make([]Detail, maxDetails+1)),
		"of a wrong type": int64(5),
	} {
		f := DecodeResponse(&amqp.Delivery{Headers: amqp.Table{HeaderCode: "aborted", HeaderDetails: value}}).Failure
		if f == nil || f.Code != "aborted" || f.Details != nil {
			t.Errorf("%s: got %+v", name, f)
		}
	}
	f := DecodeResponse(&amqp.Delivery{Headers: amqp.Table{HeaderCode: "aborted", HeaderDetails: string(good)}}).Failure
	if want := []Detail{{"t/n", []byte("v")}}; !reflect.DeepEqual(f.Details, want) {
		t.Errorf("as text: got %v, want %v", f.Details, want)
	}
	for name, details := range map[string][]Detail{"too large": {{"t/n", make([]byte, MaxDetailsBytes)}}, "too many": make([]Detail, maxDetails+1)} {
		r := Response{Failure: &Failure{Code: "aborted", Details: details}}
		batched, err := DecodeResponses(r.AppendTo(nil, &Request{ID: "id"}), false, nil)
		if err != nil || len(batched) != 1 || batched[0].Failure == nil || batched[0].Failure.Details != nil {
			t.Errorf("%s, in a batch: got %+v, %v", name, batched, err)
		}
	}
}

// A reader of an earlier version takes bytes for text: the value itself is not lost.
func TestBytesInABatchAreInTheFieldOfText(t *testing.T) {
	t.Parallel()
	b := appendHeaders(nil, requestHeader, map[string]any{"h": []byte("v")})
	f, _ := nextField(b)
	var value string
	for record := f.bytes; len(record) > 0; {
		if f, record = nextField(record); f.number == headerValue {
			value = string(f.bytes)
		}
	}
	wantSame(t, "value", value, "v")
}

// Every response of a method repeats its content type: a common one takes no memory.
//
//nolint:paralleltest // it counts allocations
func TestCommonContentTypeTakesNoMemory(t *testing.T) {
	to := &Request{ID: "id"}
	for _, contentType := range []string{"", "application/json", "application/protobuf"} {
		r := Response{Body: []byte("b"), Properties: &Properties{ContentType: contentType}}
		record := r.AppendTo(nil, to)
		all := make([]Response, 0, 1)
		if n := testing.AllocsPerRun(100, func() { all, _ = DecodeResponses(record, false, all[:0]) }); n > 1 { // the body
			t.Errorf("%q in a batch: %v allocations", contentType, n)
		}
		d := wiretest.Delivered(r.Publishing(to, false))
		if n := testing.AllocsPerRun(100, func() { all = append(all[:0], DecodeResponse(d)) }); n > 0 {
			t.Errorf("%q alone: %v allocations", contentType, n)
		}
	}
}

// A response with more than a content type has properties of its own, in whatever order they arrive.
func TestFurtherPropertiesAreOfOneResponse(t *testing.T) {
	t.Parallel()
	contentType, encoding := appendText(nil, responseContentType, "application/json"), appendText(nil, responseEncoding, "gzip")
	header := appendHeaders(nil, responseHeader, map[string]any{"h": "x"})
	plain := &Properties{ContentType: "application/json"}
	for name, c := range map[string]struct {
		fields [][]byte
		want   *Properties
	}{
		"content type first": {[][]byte{contentType, encoding, header}, &Properties{ContentType: "application/json", ContentEncoding: "gzip", Header: map[string]any{"h": "x"}}},
		"content type last":  {[][]byte{header, contentType}, &Properties{ContentType: "application/json", Header: map[string]any{"h": "x"}}},
		"alone":              {[][]byte{contentType}, plain},
		"uncommon":           {[][]byte{appendText(nil, responseContentType, "text/x")}, &Properties{ContentType: "text/x"}},
		"empty":              {[][]byte{appendBlob(nil, responseContentType, nil), {responseContentType<<3 | 2, 0}}, &Properties{}},
	} {
		for _, again := range []bool{false, true} {
			all, err := DecodeResponses(record(c.fields...), false, nil)
			if err != nil || len(all) != 1 || !reflect.DeepEqual(all[0].Properties, c.want) {
				t.Errorf("%s, again %v: %+v, %v, want %+v", name, again, all[0].Properties, err, c.want)
			}
		}
		all, err := DecodeResponses(record(contentType), false, nil)
		if err != nil || !reflect.DeepEqual(all[0].Properties, plain) {
			t.Errorf("after %s: %+v, %v, want %+v", name, all[0].Properties, err, plain)
		}
	}
}
