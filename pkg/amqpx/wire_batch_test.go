package amqpx

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// readCalls decodes a batch of calls as a server does.
func readCalls(body []byte, replyTo string) (all []*incoming, failed []*Error, err error) {
	records, err := appendRecords(nil, body)
	for _, record := range records {
		in := &incoming{}
		failed = append(failed, decodeCall(in, record, replyTo, func(name []byte) string { return string(name) }))
		all = append(all, in)
	}
	return all, failed, err
}

func TestCallsInABatchOnTheWire(t *testing.T) {
	t.Parallel()
	all := []Request{
		{Method: "b", CorrelationID: "one", Body: []byte("request")},
		{Method: "m", CorrelationID: "two", Idempotent: true, IdempotencyKey: "two"},
		{Method: "m", CorrelationID: "three", Idempotent: true, IdempotencyKey: "key", Body: bytes.Repeat([]byte{0xff}, 20_000)},
		{Method: "m", CorrelationID: "four", Header: map[string]any{"traceparent": "00-1-2-03", "": "no name", "empty": ""}},
	}
	var body []byte
	for i := range all {
		before := len(body)
		body = appendCall(body, &all[i], time.Duration(i)*time.Second, i == 1, int64(i))
		if took, bound := len(body)-before, callSize(&all[i]); took > bound {
			t.Errorf("call %d takes %d bytes, more than %d", i, took, bound)
		}
	}
	got, failed, err := readCalls(body, "reply")
	if err != nil {
		t.Fatal(err)
	}
	for i := range body {
		body[i] = 0 // the decoded calls must not refer to body
	}
	wantSame(t, "calls", len(got), len(all))
	for i, in := range got {
		if failed[i] != nil {
			t.Errorf("call %d: %v", i, failed[i])
		}
		want := all[i]
		want.Redelivered = i == 1
		if !reflect.DeepEqual(in.Request, want) {
			t.Errorf("call %d: got %+v, want %+v", i, in.Request, want)
		}
		wantSame(t, "budget", in.budget, time.Duration(i)*time.Second)
		wantSame(t, "resent", in.resent, i == 1)
		wantSame(t, "retry", in.retry, int64(i))
		wantSame(t, "reply_to", in.replyTo, "reply")
		wantSame(t, "reads our extras", in.followsContract, true)
	}
}

// The bytes are the contract with programs in other languages.
func TestABatchIsTheseBytes(t *testing.T) {
	t.Parallel()
	call := appendCall(nil, &Request{Method: "b", CorrelationID: "id", Body: []byte("x"), Idempotent: true, IdempotencyKey: "k"}, time.Second, true, 3)
	wantSame(t, "call", hex.EncodeToString(call),
		"0a96808000"+"0a026964"+"120162"+"1a0178"+"20e807"+"2a016b"+"3001"+"3801"+"4003")
	in := &incoming{Request: Request{CorrelationID: "id"}, retry: 2}
	e := Errorf(CodeNotFound, "no")
	e.outcome, e.retryAfter = DidNotRun, time.Second
	answers := appendAnswer(nil, in, reply{body: []byte("x"), timing: timing{queue: time.Millisecond, handler: time.Microsecond}})
	answers = appendAnswer(answers, in, reply{failed: e})
	wantSame(t, "answers", hex.EncodeToString(answers),
		"0a8c808000"+"0a026964"+"38e807"+"4001"+"120178"+
			"0a9e808000"+"0a026964"+"3800"+"4000"+"12026e6f"+"1a096e6f745f666f756e64"+"2001"+"2802"+"30e807")
}

// record encodes fields in the way of another program.
func record(fields ...[]byte) []byte {
	return appendBlob(nil, fieldRecord, bytes.Join(fields, nil))
}

func TestCallsOfOtherPrograms(t *testing.T) {
	t.Parallel()
	id, method := appendText(nil, callID, "id"), appendText(nil, callMethod, "m")
	header := func(name, value string) []byte {
		return appendBlob(nil, callHeader, append(appendText(nil, headerName, name), appendText(nil, headerValue, value)...))
	}
	for _, c := range []struct {
		name    string
		record  []byte
		replyTo string
		refused string // part of the refusal
	}{
		{"the least", record(id, method), "reply", ""},
		{"one-way", record(method), "", ""},
		{"fields of later versions", record(id, method, appendNumber(nil, 99, 7), appendText(nil, 98, "x"), protowire.AppendFixed64(protowire.AppendTag(nil, 97, protowire.Fixed64Type), 1)), "reply", ""},
		{"a field of another type", record(id, method, appendText(nil, callTimeout, "soon")), "reply", ""},
		{"no id", record(method), "reply", "no id"},
		{"no method", record(id), "reply", "method name of 0 bytes"},
		{"long method", record(id, appendText(nil, callMethod, strings.Repeat("m", 256))), "reply", "method name of 256 bytes"},
		{"method that is no text", record(id, appendText(nil, callMethod, "\xff")), "reply", ""},
		{"id that is no text", record(appendText(nil, callID, "\xff"), method), "reply", ""},
		{"long id", record(appendText(nil, callID, strings.Repeat("i", 256)), method), "reply", "id of 256 bytes"},
		{"long key", record(id, method, appendText(nil, callMessageID, strings.Repeat("k", 256))), "reply", "message_id of 256 bytes"},
		{"header that is no message", record(id, method, appendText(nil, callHeader, "\xff")), "reply", "a header cannot be read"},
		{"header with a long name", record(id, method, header(strings.Repeat("h", 256), "")), "reply", "a header cannot be read"},
		{"headers beyond a frame", record(id, method, header("h", strings.Repeat("v", maxHeaderBytes+1))), "reply", "headers of more than"},
		{"header that is ours", record(id, method, header("rpc-deliveries", "9")), "reply", ""},
		{"made-up address", record(id, method), directReplyTo + ".made-up", "direct reply-to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			all, failed, err := readCalls(c.record, c.replyTo)
			if err != nil || len(all) != 1 {
				t.Fatalf("%d calls, error %v", len(all), err)
			}
			switch {
			case c.refused == "" && failed[0] != nil:
				t.Errorf("refused: %v", failed[0])
			case c.refused != "" && (failed[0] == nil || !strings.Contains(failed[0].Error(), c.refused)):
				t.Errorf("got %v, want a refusal with %q", failed[0], c.refused)
			case failed[0] != nil:
				wantSame(t, "code", failed[0].code, CodeInvalidArgument)
				wantSame(t, "outcome", failed[0].outcome, DidNotRun)
			}
			wantSame(t, "budget", all[0].budget, noBudget)
			wantSame(t, "headers", len(all[0].Header), 0)
		})
	}
}

func TestWhatIsNoBatch(t *testing.T) {
	t.Parallel()
	one := record(appendText(nil, callID, "id"))
	many := bytes.Repeat(one, maxBatchCalls)
	for _, c := range []struct {
		name string
		body []byte
		ok   bool
	}{
		{"nothing", nil, true},
		{"as many records as may be", many, true},
		{"one more", append(bytes.Clone(many), one...), false},
		{"no records", appendNumber(nil, fieldRecord, 1), true},
		{"text", []byte("no batch"), false},
		{"cut off", record([]byte{1, 2, 3})[:3], false},
		{"record that is no message", record([]byte{0xff}), false},
		{"a good one before it", append(bytes.Clone(one), record([]byte{0xff})...), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			records, err := appendRecords(nil, c.body)
			wantSame(t, "readable", err == nil, c.ok)
			if err != nil && (!errors.Is(err, errBatchFormat) || records != nil) {
				t.Errorf("%d records, error %v", len(records), err)
			}
			if _, err := decodeAnswers(c.body, false, nil); (err == nil) != c.ok {
				t.Errorf("as answers: %v", err)
			}
		})
	}
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(appendCall(nil, &Request{Method: "m", CorrelationID: "id", Header: map[string]any{"a": "b"}}, time.Second, true, 1), "reply")
	f.Add(appendAnswer(nil, &incoming{Request: Request{CorrelationID: "id"}}, reply{failed: Errorf(CodeAborted, "no")}), "")
	f.Add(appendAnswer(nil, &incoming{Request: Request{CorrelationID: "id"}}, reply{props: &properties{
		contentType: "text/plain", contentEncoding: "gzip", header: map[string]any{"a": "b"},
	}}), "")
	f.Add([]byte{0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80}, "reply")
	f.Fuzz(func(t *testing.T, body []byte, replyTo string) {
		all, failed, err := readCalls(body, replyTo)
		if len(all) > maxBatchCalls || err != nil && len(all) > 0 {
			t.Fatalf("%d calls, error %v", len(all), err)
		}
		for i, in := range all {
			if failed[i] == nil && (in.Method == "" || in.CorrelationID == "" && replyTo != "") {
				t.Errorf("accepted %+v", in)
			}
			if in.budget < noBudget || in.budget > maxBudget || in.retry < 0 {
				t.Errorf("budget %v, retry %d", in.budget, in.retry)
			}
		}
		answers, again := decodeAnswers(body, true, nil)
		if (err == nil) != (again == nil) || len(answers) != len(all) {
			t.Fatalf("%d calls with %v, %d answers with %v", len(all), err, len(answers), again)
		}
		for _, a := range answers {
			if a.timing.queue < 0 || a.timing.handler < 0 || a.timing.queue > maxBudget || a.timing.handler > maxBudget || a.round < 0 {
				t.Errorf("answer %+v", a.received)
			}
			for name := range a.props.response(nil).Header {
				if strings.HasPrefix(name, headerPrefix) || len(name) > maxShortString {
					t.Errorf("header %q", name)
				}
			}
			if e := a.failed; e != nil && (!e.code.Valid() || !e.remote || a.body != nil || e.retryAfter < 0 || e.retryAfter > maxBudget) {
				t.Errorf("error %+v", e)
			}
		}
	})
}

func FuzzCallInABatchRoundTrip(f *testing.F) {
	f.Add("m", "id", "key", []byte("body"), int64(time.Second), true, "name", "value")
	f.Fuzz(func(t *testing.T, method, id, key string, body []byte, budget int64, idempotent bool, name, value string) {
		if key != "" {
			idempotent = true // as with the CallOptions
		}
		if idempotent && key == "" {
			key = id
		}
		req := Request{Method: method, CorrelationID: id, IdempotencyKey: key, Idempotent: idempotent, Body: body, ContentType: name, ContentEncoding: value}
		if name != "" {
			req.Header = map[string]any{name: value}
		}
		if id == "" || checkRequest(&req, math.MaxInt) != nil {
			return
		}
		if len(body) == 0 {
			req.Body = nil
		}
		left := time.Duration(max(budget, 0))
		record := appendCall(nil, &req, left, false, 0)
		if len(record) > callSize(&req) {
			t.Errorf("%d bytes, more than %d", len(record), callSize(&req))
		}
		all, failed, err := readCalls(record, "reply")
		if err != nil || len(all) != 1 || failed[0] != nil {
			t.Fatalf("%d calls, %v, %v", len(all), failed, err)
		}
		if !reflect.DeepEqual(all[0].Request, req) {
			t.Errorf("got %+v, want %+v", all[0].Request, req)
		}
		if want := min(left, maxBudget); all[0].budget < want || all[0].budget > want+time.Millisecond {
			t.Errorf("budget %v, want %v", all[0].budget, want)
		}
	})
}

// TestHeadersOfABatchAreCounted: a record with many tiny headers must not create a large map.
//
//nolint:paralleltest // it counts allocations
func TestHeadersOfABatchAreCounted(t *testing.T) {
	record := appendText(appendText(nil, callID, "id"), callMethod, "m")
	for i := range 1 << 20 {
		header := appendText(nil, headerName, strconv.Itoa(i))
		record = appendBlob(record, callHeader, header)
	}
	var in incoming
	allocated := testing.AllocsPerRun(1, func() {
		in = incoming{}
		failed := decodeCall(&in, record, "reply", func(name []byte) string { return string(name) })
		if failed == nil || failed.Code() != CodeInvalidArgument {
			t.Errorf("error %v", failed)
		}
	})
	if allocated > 20_000 || len(in.Header) > 4096 || in.CorrelationID != "id" {
		t.Errorf("%v allocations, %d headers", allocated, len(in.Header))
	}
}
