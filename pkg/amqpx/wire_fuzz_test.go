package amqpx

import (
	"cmp"
	"encoding/binary"
	"maps"
	"math"
	"net"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
)

// seed derives values from the bytes of a fuzzer.
type seed []byte

func (s *seed) byte() byte {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return b
}

func (s *seed) number() int64 {
	var b [8]byte
	n := copy(b[:], *s)
	*s = (*s)[n:]
	return int64(binary.LittleEndian.Uint64(b[:]))
}

func (s *seed) text() string {
	n := min(int(s.byte())*2, len(*s))
	text := string((*s)[:n])
	*s = (*s)[n:]
	return text
}

// value returns a value of any type of AMQP.
func (s *seed) value(depth int) any {
	kind := s.byte() % 19
	if depth > 20 {
		kind = 0
	}
	switch kind {
	case 1:
		return s.byte()%2 == 1
	case 2:
		return s.byte()
	case 3:
		return int8(s.byte())
	case 4:
		return int16(s.number())
	case 5:
		return uint16(s.number())
	case 6:
		return int32(s.number())
	case 7:
		return uint32(s.number())
	case 8:
		return s.number()
	case 9:
		return int(s.number())
	case 10:
		return math.Float32frombits(uint32(s.number()))
	case 11:
		return math.Float64frombits(uint64(s.number()))
	case 12:
		return s.text()
	case 13:
		return []byte(s.text())
	case 14:
		return amqp.Decimal{Scale: s.byte(), Value: int32(s.number())}
	case 15:
		return time.Unix(s.number()%1e10, 0)
	case 16:
		return s.table(depth + 1)
	case 17:
		var all []any
		for range s.byte() % 5 {
			all = append(all, s.value(depth+1))
		}
		return all
	default:
		return nil
	}
}

func (s *seed) table(depth int) amqp.Table {
	t := amqp.Table{}
	for range s.byte() % 5 {
		t[s.text()] = s.value(depth)
	}
	return t
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add("b", "reply", "id", "", []byte("request"), byte(0), []byte{})
	f.Add("", "", "", "key", []byte{}, byte(1), []byte{12, 2, '1', '0', '0', '0'})
	f.Add("b", directReplyTo+".g1h3AWEAAAABAAAAAgAAAAM=.1", "id", "", []byte{}, byte(4), []byte{8, 255, 255, 255, 255, 255, 255, 255, 127})
	f.Add("b", "", "id", "", []byte{}, byte(3), []byte{8, 255, 255, 255, 255, 255, 255, 255, 127, 1, 1})
	f.Fuzz(func(t *testing.T, method, replyTo, id, key string, body []byte, which byte, raw []byte) {
		s := seed(raw)
		headers := amqp.Table{}
		if which&1 != 0 {
			headers[headerTimeout] = s.value(0)
		}
		if which&2 != 0 {
			headers[headerIdempotent] = s.value(0)
		}
		if which&4 != 0 {
			headers[headerDeliveries] = s.value(0)
		}
		if which&8 != 0 {
			headers[headerResent] = s.value(0)
		}
		if which&64 != 0 {
			headers[headerMethod] = s.value(0)
		}
		maps.Copy(headers, s.table(0))
		in, failed := decodeRequest(&amqp.Delivery{
			AppId: method, ReplyTo: replyTo, CorrelationId: id, MessageId: key, Body: body, Headers: headers,
			Type: typeOf(which >> 4), Expiration: s.text(),
		}, "")
		if in.budget != noBudget && (in.budget < 0 || in.budget > maxBudget) {
			t.Errorf("budget %v", in.budget)
		}
		named, _ := headers[headerMethod].(string)
		if failed == nil && in.Method != cmp.Or(method, named) || in.CorrelationID != cmp.Or(id, key) || in.replyTo != replyTo ||
			in.OneWay != (replyTo == "" || !safeReplyTo(replyTo)) {
			t.Errorf("got %+v", in)
		}
		_, timed := headers[headerTimeout]
		_, says := headers[headerIdempotent]
		if knows := in.followsContract || timed || says; !knows && in.IdempotencyKey != "" || in.IdempotencyKey != "" && in.IdempotencyKey != key {
			t.Errorf("idempotency key %q of message_id %q", in.IdempotencyKey, key)
		}
		if in.lostDeliveries < 0 || in.lostDeliveries > 0 && !in.Redelivered {
			t.Errorf("%d lost deliveries, redelivered %v", in.lostDeliveries, in.Redelivered)
		}
		if failed != nil && (failed.code != CodeInvalidArgument || failed.outcome != DidNotRun || !utf8.ValidString(failed.message)) {
			t.Errorf("error %+v", failed)
		}
		if failed == nil && (in.Method == "" || len(in.Method) > max(len(method), maxShortString)) {
			t.Errorf("a request for method %q was taken", in.Method)
		}
		for name := range in.Header {
			if strings.HasPrefix(name, headerPrefix) {
				t.Errorf("reserved header %q reached the handler", name)
			}
		}
	})
}

// typeOf returns a value for the type property of a request.
func typeOf(n byte) string { return []string{"", typeCall, typeIdempotentCall, "other"}[n%4] }

// FuzzCopy republishes requests of any sender: the copy must be valid, and must be the same
// request.
func FuzzCopy(f *testing.F) {
	f.Add("b", "id", "1000", []byte("request"), int64(time.Millisecond), []byte{1, 1, 'x', 12, 1, 'y', 'z'})
	f.Add("", "", "-1", []byte{}, int64(0), []byte{1, 2, 'C', 'C', 17, 1, 12, 1, 'q'})
	f.Fuzz(func(t *testing.T, method, id, expiration string, body []byte, held int64, raw []byte) {
		s := seed(raw)
		d := amqp.Delivery{AppId: method, CorrelationId: id, Expiration: expiration, Body: body, Headers: s.table(0)}
		if n := s.byte(); n%2 == 1 {
			d.Headers[headerTimeout] = s.value(0)
			d.Type = typeOf(n >> 1)
		}
		before := maps.Clone(d.Headers)
		j := &job{delivery: &d, arrived: time.Now().Add(-time.Duration(max(held, 0)))}
		j.in, _ = decodeRequest(&d, "")
		msg, err := clonePublishing(j)
		if !reflect.DeepEqual(before, d.Headers) && !hasNaN(before) {
			t.Errorf("the original changed from %v to %v", before, d.Headers)
		}
		if err != nil {
			return
		}
		if err := checkTable(msg.Headers); err != nil {
			t.Errorf("cannot be sent: %v", err)
		}
		d.Headers, d.Expiration = msg.Headers, msg.Expiration
		again, _ := decodeRequest(&d, "")
		if again.Method != j.in.Method || again.CorrelationID != j.in.CorrelationID || string(again.Body) != string(j.in.Body) ||
			again.Idempotent != j.in.Idempotent || again.budget > max(j.in.budget, time.Millisecond) {
			t.Errorf("%+v became %+v", j.in, again)
		}
		if n, err := strconv.ParseInt(msg.Expiration, 10, 64); msg.Expiration != "" && (err != nil || n < 1) {
			t.Errorf("expiration %q of %q", msg.Expiration, expiration)
		}
	})
}

// hasNaN reports whether a table contains NaN, which differs from itself.
func hasNaN(t amqp.Table) bool { return !reflect.DeepEqual(t, maps.Clone(t)) }

func FuzzDecodeAnswer(f *testing.F) {
	f.Add([]byte("b"), byte(0), []byte{})
	f.Add([]byte("text"), byte(255), []byte{12, 5, 'a', 'b', 'o', 'r', 't', 'e', 'd'})
	f.Add([]byte{}, byte(1), []byte{12, 7, 'u', 'n', 'i', 'm', 'p', 'l', 'e', 'm', 'e', 'n', 't', 'e', 'd'})
	names := []string{headerCode, headerMessage, headerRan, headerRetryAfter, headerQueueTime, headerHandler, headerRetry}
	f.Fuzz(func(t *testing.T, body []byte, which byte, raw []byte) {
		s := seed(raw)
		d := &amqp.Delivery{Body: body, Headers: amqp.Table{}}
		for i, name := range names {
			if which&(1<<i) != 0 {
				d.Headers[name] = s.value(0)
			}
		}
		answer, took, failed := decodeAnswer(d)
		if took.queue < 0 || took.handler < 0 || took.queue > maxBudget || took.handler > maxBudget {
			t.Errorf("timing %+v", took)
		}
		if _, says := d.Headers[headerCode]; says != (failed != nil) {
			t.Fatalf("error %v with headers %v", failed, d.Headers)
		}
		if failed == nil {
			if string(answer) != string(body) {
				t.Errorf("answer %q", answer)
			}
			return
		}
		if !failed.code.Valid() || !failed.remote || failed.outcome != outcomeSaid(d.Headers) || answer != nil ||
			failed.retryAfter < 0 || failed.retryAfter > maxBudget {
			t.Errorf("error %+v", failed)
		}
		if a := receive(d); a.outdated(0) || a.outdated(1) && failed.outcome != DidNotRun {
			t.Errorf("outdated: %+v", failed)
		}
	})
}

func outcomeSaid(h amqp.Table) Outcome {
	switch ran, said := h[headerRan].(bool); {
	case said && ran:
		return Ran
	case said:
		return DidNotRun
	default:
		return MayHaveRun
	}
}

func FuzzRequestRoundTrip(f *testing.F) {
	f.Add("b", "id", "key", []byte("request"), int64(time.Second), true, []byte{1, 1, 'x', 12, 1, 'y', 'z'})
	f.Fuzz(func(t *testing.T, method, id, key string, body []byte, budget int64, idempotent bool, raw []byte) {
		s := seed(raw)
		req := Request{Method: method, CorrelationID: id, IdempotencyKey: key, Body: body, Idempotent: idempotent, Header: s.table(0)}
		if len(req.Header) == 0 {
			req.Header = nil
		}
		left := time.Duration(max(budget, 0))
		sent, err := sendable(&req, math.MaxInt)
		if id == "" || err != nil {
			return
		}
		in, failed := decodeRequest(delivered(encodeRequest(sent, "reply", left, false)), "")
		if failed != nil {
			t.Fatal(failed)
		}
		req.Header = applicationHeader(sent.Header)
		if !reflect.DeepEqual(in.Request, req) {
			t.Errorf("got %+v, want %+v", in.Request, req)
		}
		if want := min(left, maxBudget); in.budget < want || in.budget > want+time.Millisecond {
			t.Errorf("budget %v, want %v", in.budget, want)
		}
	})
}

func FuzzAnswerRoundTrip(f *testing.F) {
	f.Add("not_found", "no such thing", byte(1), int64(1500))
	f.Add("aborted", strings.Repeat("ä", 600), byte(2), int64(-1))
	f.Fuzz(func(t *testing.T, code, message string, outcome byte, retryAfter int64) {
		e := &Error{
			code: Code(code), message: message, outcome: []Outcome{DidNotRun, Ran}[outcome%2],
			retryAfter: min(max(time.Duration(retryAfter), 0), maxBudget).Truncate(time.Millisecond),
		}
		p := encodeError(&incoming{}, e, timing{}, false)
		if h, _ := p.Headers[headerMessage].(string); len(h) > maxMessageHeader || !utf8.ValidString(h) {
			t.Errorf("header %q", h)
		}
		_, _, got := decodeAnswer(delivered(p))
		if !e.code.Valid() {
			e.code = CodeUnknown
		}
		if got.code != e.code || got.message != e.message || got.outcome != e.outcome || got.retryAfter != e.retryAfter {
			t.Errorf("got %+v, want %+v", got, e)
		}
	})
}

// FuzzHeaders compares the check of headers with the real encoder: accepted headers must
// encode without error, within the estimated size.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte{4, 1, 'a', 'b', 16, 1, 1, 'c', 'd', 12, 2, 'x', 'y', 'z', 'z'})
	f.Add([]byte{1, 1, 'n', 'n', 9, 0, 0, 0, 0, 1, 0, 0, 0})
	f.Add(append([]byte{1, 1, 'n', 'n', 16, 1, 200}, make([]byte, 500)...))
	near, far := net.Pipe()
	p := servePeer(far, &peer{})
	conn, err := amqp.Open(near, amqp.Config{SASL: []amqp.Authentication{&amqp.PlainAuth{}}, Vhost: "/", Locale: "en_US"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close(); <-p.ended })
	ch, err := conn.Channel()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := seed(raw)
		header := s.table(0)
		encoded, err := encodeHeader(header)
		if len(header) == 0 || err != nil || checkHeader(encoded) != nil {
			return
		}
		header = encoded
		if err := ch.PublishWithContext(t.Context(), "", "q", false, false, amqp.Publishing{Headers: header}); err != nil {
			t.Fatalf("the encoder refused %#v: %v", header, err)
		}
		written := <-p.headers
		if size, _ := headerSize(header, 0); len(written) > maxHeaderBytes || len(written) > size {
			t.Errorf("%d bytes, taken for %d", len(written), size)
		}
	})
}

func FuzzURL(f *testing.F) {
	for _, u := range append(badURLs(), testURL, "amqps://app:s%40cret@[::1]:1/%2f", "amqp://:@") {
		f.Add(u)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		_, err := newClientConfig(raw, nil)
		if err != nil {
			return
		}
		for u := range strings.SplitSeq(raw, ",") {
			if strings.TrimSpace(u) == "" {
				continue
			}
			if target := parseTarget(strings.TrimSpace(u)); target.address == "?" {
				t.Errorf("a URL that was accepted cannot be read: %q", u)
			}
		}
	})
}
