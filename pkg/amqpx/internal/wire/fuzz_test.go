package wire

import (
	"bytes"
	"cmp"
	"errors"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire/wiretest"
)

func FuzzDecodeRequest(f *testing.F) {
	f.Add("b", "reply", "id", "", []byte("request"), byte(0), []byte{})
	f.Add("", "", "", "key", []byte{}, byte(1), []byte{12, 2, '1', '0', '0', '0'})
	f.Add("b", DirectReplyTo+".g1h3AWEAAAABAAAAAgAAAAM=.1", "id", "", []byte{}, byte(4), []byte{8, 255, 255, 255, 255, 255, 255, 255, 127})
	f.Add("b", "", "id", "", []byte{}, byte(3), []byte{8, 255, 255, 255, 255, 255, 255, 255, 127, 1, 1})
	f.Fuzz(func(t *testing.T, method, replyTo, id, key string, body []byte, which byte, raw []byte) {
		s := wiretest.Seed(raw)
		headers := amqp.Table{}
		if which&1 != 0 {
			headers[HeaderTimeout] = s.Value(0)
		}
		if which&2 != 0 {
			headers[HeaderIdempotent] = s.Value(0)
		}
		if which&4 != 0 {
			headers[HeaderDeliveries] = s.Value(0)
		}
		if which&8 != 0 {
			headers[HeaderResent] = s.Value(0)
		}
		if which&64 != 0 {
			headers[HeaderMethod] = s.Value(0)
		}
		maps.Copy(headers, s.Table(0))
		var r Request
		failed := r.Decode(&amqp.Delivery{
			AppId: method, ReplyTo: replyTo, CorrelationId: id, MessageId: key, Body: body, Headers: headers,
			Type: wiretest.TypeOf(which >> 4), Expiration: s.Text(),
		}, "")
		if r.Budget != NoBudget && (r.Budget < 0 || r.Budget > MaxBudget) {
			t.Errorf("budget %v", r.Budget)
		}
		named, _ := headers[HeaderMethod].(string)
		if failed == nil && r.Method != cmp.Or(method, named) || r.ID != cmp.Or(id, key) || r.ReplyTo != replyTo ||
			r.OneWay != (replyTo == "" || !SafeReplyTo(replyTo)) {
			t.Errorf("got %+v", r)
		}
		_, timed := headers[HeaderTimeout]
		_, says := headers[HeaderIdempotent]
		if knows := r.FollowsContract || timed || says; !knows && r.Key != "" || r.Key != "" && r.Key != key {
			t.Errorf("idempotency key %q of message_id %q", r.Key, key)
		}
		if r.LostDeliveries < 0 || r.LostDeliveries > 0 && !r.Redelivered {
			t.Errorf("%d lost deliveries, redelivered %v", r.LostDeliveries, r.Redelivered)
		}
		if failed != nil && (!isFormatError(failed) || !utf8.ValidString(failed.Error())) {
			t.Errorf("error %#v", failed)
		}
		if failed == nil && (r.Method == "" || len(r.Method) > max(len(method), MaxShortString)) {
			t.Errorf("a request for method %q was taken", r.Method)
		}
		for name := range r.Header {
			if strings.HasPrefix(name, HeaderPrefix) {
				t.Errorf("reserved header %q reached the handler", name)
			}
		}
	})
}

func isFormatError(err error) bool {
	_, ok := errors.AsType[*FormatError](err)
	return ok
}

func FuzzRequestRoundTrip(f *testing.F) {
	f.Add("b", "id", "key", []byte("request"), int64(time.Second), true, []byte{1, 1, 'x', 12, 1, 'y', 'z'})
	f.Fuzz(func(t *testing.T, method, id, key string, body []byte, budget int64, idempotent bool, raw []byte) {
		s := wiretest.Seed(raw)
		left := time.Duration(max(budget, 0))
		header, err := EncodeHeader(s.Table(0))
		if err != nil {
			return
		}
		req := Request{Method: method, ID: id, Key: key, Body: body, Idempotent: idempotent, Header: header}
		if id == "" || req.Check(math.MaxInt) != nil {
			return
		}
		var got Request
		if err := got.Decode(wiretest.Delivered(req.Publishing("reply", left, false)), ""); err != nil {
			t.Fatal(err)
		}
		if want := min(left, MaxBudget); got.Budget < want || got.Budget > want+time.Millisecond {
			t.Errorf("budget %v, want %v", got.Budget, want)
		}
		req.Header = ApplicationHeader(header)
		req.ReplyTo, req.FollowsContract, req.Budget = "reply", true, got.Budget
		if !reflect.DeepEqual(got, req) {
			t.Errorf("got %+v, want %+v", got, req)
		}
	})
}

func FuzzBatchedRequestRoundTrip(f *testing.F) {
	f.Add("m", "id", "key", []byte("body"), int64(time.Second), true, "name", "value")
	f.Fuzz(func(t *testing.T, method, id, key string, body []byte, budget int64, idempotent bool, name, value string) {
		if key != "" {
			idempotent = true // as with the options of a call
		}
		if idempotent && key == "" {
			key = id
		}
		req := Request{Method: method, ID: id, Key: key, Idempotent: idempotent, Body: body, ContentType: name, ContentEncoding: value}
		if name != "" {
			req.Header = map[string]any{name: value}
		}
		if id == "" || req.Check(math.MaxInt) != nil {
			return
		}
		if len(body) == 0 {
			req.Body = nil
		}
		left := time.Duration(max(budget, 0))
		record := req.AppendTo(nil, left)
		if len(record) > req.BatchSize() {
			t.Errorf("%d bytes, more than %d", len(record), req.BatchSize())
		}
		all, failed, err := readRequests(record, "reply")
		if err != nil || len(all) != 1 || failed[0] != nil {
			t.Fatalf("%d requests, %v, %v", len(all), failed, err)
		}
		if want := min(left, MaxBudget); all[0].Budget < want || all[0].Budget > want+time.Millisecond {
			t.Errorf("budget %v, want %v", all[0].Budget, want)
		}
		if want := decodedFrom(req, "reply", all[0].Budget); !reflect.DeepEqual(sentFields(all[0]), want) {
			t.Errorf("got %+v, want %+v", all[0], want)
		}
	})
}

func FuzzDecodeDetails(f *testing.F) {
	f.Add([]byte{})
	f.Add(EncodeDetails([]Detail{{"type.googleapis.com/google.rpc.ErrorInfo", []byte{0x0a, 1, 'r'}}, {}, {Value: []byte{1}}}))
	f.Add([]byte{0x1a, 0x80, 0x00})
	f.Add(bytes.Repeat([]byte{0x1a, 0x00}, maxDetails+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		details := DecodeDetails(b)
		if DetailsSize(details) > len(b) || len(b) > MaxDetailsBytes && details != nil || len(details) > maxDetails {
			t.Fatalf("%d details of %d bytes in %d bytes", len(details), DetailsSize(details), len(b))
		}
		encoded := EncodeDetails(details)
		if len(encoded) != DetailsSize(details) {
			t.Errorf("%d bytes, the size is %d", len(encoded), DetailsSize(details))
		}
		again := DecodeDetails(encoded)
		if !slices.EqualFunc(details, again, func(a, b Detail) bool { return a.TypeURL == b.TypeURL && bytes.Equal(a.Value, b.Value) }) {
			t.Errorf("got %q, want %q", again, details)
		}
		r := Response{Failure: &Failure{Code: "aborted", Details: details}}
		record := r.AppendTo(nil, &Request{ID: "id"})
		if len(record) > r.BatchSize(&Request{ID: "id"}) {
			t.Errorf("%d bytes, more than %d", len(record), r.BatchSize(&Request{ID: "id"}))
		}
		batched, err := DecodeResponses(record, false, nil)
		if err != nil || len(batched) != 1 || !reflect.DeepEqual(batched[0].Failure.Details, again) {
			t.Errorf("in a batch: got %+v, %v, want %+v", batched, err, again)
		}
	})
}

func FuzzDecodeResponse(f *testing.F) {
	f.Add([]byte("b"), byte(0), []byte{})
	f.Add([]byte("text"), byte(255), []byte{12, 5, 'a', 'b', 'o', 'r', 't', 'e', 'd'})
	f.Add([]byte{}, byte(1), []byte{12, 7, 'u', 'n', 'i', 'm', 'p', 'l', 'e', 'm', 'e', 'n', 't', 'e', 'd'})
	names := []string{HeaderCode, HeaderMessage, HeaderRan, HeaderRetryAfter, HeaderQueueTime, HeaderHandler, HeaderRetry, HeaderDetails}
	f.Fuzz(func(t *testing.T, body []byte, which byte, raw []byte) {
		s := wiretest.Seed(raw)
		d := &amqp.Delivery{Body: body, Headers: amqp.Table{}}
		for i, name := range names {
			if which&(1<<i) != 0 {
				d.Headers[name] = s.Value(0)
			}
		}
		r := DecodeResponse(d)
		if r.Times.Queue < 0 || r.Times.Handler < 0 || r.Times.Queue > MaxBudget || r.Times.Handler > MaxBudget {
			t.Errorf("times %+v", r.Times)
		}
		if _, says := d.Headers[HeaderCode]; says != (r.Failure != nil) {
			t.Fatalf("failure %+v with headers %v", r.Failure, d.Headers)
		}
		if r.Failure == nil {
			if string(r.Body) != string(body) {
				t.Errorf("body %q", r.Body)
			}
			return
		}
		if r.Failure.TooLarge || r.Failure.Ran != ranSaid(d.Headers) || r.Body != nil || r.Failure.RetryAfter < 0 || r.Failure.RetryAfter > MaxBudget {
			t.Errorf("failure %+v", r.Failure)
		}
		if len(r.Failure.Details) > maxDetails || DetailsSize(r.Failure.Details) > MaxDetailsBytes {
			t.Errorf("%d details", len(r.Failure.Details))
		}
		if r.Outdated(0) || r.Outdated(1) && r.Failure.Ran != RanNo {
			t.Errorf("outdated: %+v", r.Failure)
		}
	})
}

func ranSaid(h amqp.Table) Ran {
	ran, said := h[HeaderRan].(bool)
	if text, ok := h[HeaderRan].(string); ok {
		ran, said = strings.EqualFold(text, "true"), strings.EqualFold(text, "true") || strings.EqualFold(text, "false")
	}
	switch {
	case said && ran:
		return RanYes
	case said:
		return RanNo
	default:
		return RanUnknown
	}
}

func FuzzResponseRoundTrip(f *testing.F) {
	f.Add("not_found", "no such thing", byte(1), int64(1500))
	f.Add("aborted", strings.Repeat("ä", 600), byte(2), int64(-1))
	f.Fuzz(func(t *testing.T, code, message string, ran byte, retryAfter int64) {
		want := Failure{
			Code: code, Message: message, Ran: []Ran{RanNo, RanYes}[ran%2],
			RetryAfter: min(max(time.Duration(retryAfter), 0), MaxBudget).Truncate(time.Millisecond),
		}
		r := Response{Failure: &want}
		p := r.Publishing(&Request{}, false)
		if h, _ := p.Headers[HeaderMessage].(string); len(h) > maxMessageHeader || !utf8.ValidString(h) {
			t.Errorf("header %q", h)
		}
		got := DecodeResponse(wiretest.Delivered(p)).Failure
		if got == nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		record := r.AppendTo(nil, &Request{ID: "id"})
		if len(record) > r.BatchSize(&Request{ID: "id"}) {
			t.Errorf("%d bytes, more than %d", len(record), r.BatchSize(&Request{ID: "id"}))
		}
		batched, err := DecodeResponses(record, false, nil)
		if err != nil || len(batched) != 1 {
			t.Fatalf("%d responses, %v", len(batched), err)
		}
		if code == "" { // a record without a code is a result
			return
		}
		if got := batched[0].Failure; got == nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("in a batch: got %+v, want %+v", got, want)
		}
	})
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add((&Request{Method: "m", ID: "id", Header: map[string]any{"a": "b"}, Resent: true, Retry: 1}).AppendTo(nil, time.Second), "reply")
	f.Add((&Response{Failure: &Failure{Code: "aborted", Message: "no", Ran: RanYes}}).AppendTo(nil, &Request{ID: "id"}), "")
	f.Add((&Response{Properties: &Properties{
		ContentType: "text/plain", ContentEncoding: "gzip", Header: map[string]any{"a": "b", "c": []byte{0, 255}}, Trailer: map[string]any{"t": "u"},
	}}).AppendTo(nil, &Request{ID: "id"}), "")
	f.Add((&Response{Failure: &Failure{Code: "aborted", Details: []Detail{{"t/n", []byte("v")}, {}}}}).AppendTo(BeginResponses(nil, []byte("server")), &Request{ID: "id"}), "")
	f.Add([]byte{0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80}, "reply")
	f.Fuzz(func(t *testing.T, body []byte, replyTo string) {
		all, failed, err := readRequests(body, replyTo)
		if len(all) > maxBatchRecords || err != nil && len(all) > 0 {
			t.Fatalf("%d requests, error %v", len(all), err)
		}
		for i, r := range all {
			if failed[i] == nil && (r.Method == "" || r.ID == "" && replyTo != "") {
				t.Errorf("accepted %+v", r)
			}
			if r.Budget < NoBudget || r.Budget > MaxBudget || r.Retry < 0 {
				t.Errorf("budget %v, retry %d", r.Budget, r.Retry)
			}
		}
		responses, again := DecodeResponses(body, true, nil)
		if (err == nil) != (again == nil) || len(responses) != len(all) {
			t.Fatalf("%d requests with %v, %d responses with %v", len(all), err, len(responses), again)
		}
		for _, r := range responses {
			if r.Times.Queue < 0 || r.Times.Handler < 0 || r.Times.Queue > MaxBudget || r.Times.Handler > MaxBudget || r.Round < 0 || !r.Redelivered {
				t.Errorf("response %+v", r)
			}
			if r.Failure != nil && (DetailsSize(r.Failure.Details) > MaxDetailsBytes || len(r.Failure.Details) > maxDetails) {
				t.Errorf("%d details", len(r.Failure.Details))
			}
			if r.Properties != nil {
				for name := range r.Properties.Trailer {
					if name == "" || len(name) > MaxShortString {
						t.Errorf("trailer %q", name)
					}
				}
				for name := range r.Properties.Header {
					if strings.HasPrefix(name, HeaderPrefix) || len(name) > MaxShortString {
						t.Errorf("header %q", name)
					}
				}
			}
			if e := r.Failure; e != nil && (e.Code == "" || e.TooLarge || e.Ran > RanYes || r.Body != nil || e.RetryAfter < 0 || e.RetryAfter > MaxBudget) {
				t.Errorf("failure %+v", e)
			}
		}
	})
}
