package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

func TestRequestsInABatchOnTheWire(t *testing.T) {
	t.Parallel()
	all := []Request{
		{Method: "b", ID: "one", Body: []byte("request")},
		{Method: "m", ID: "two", Idempotent: true, Key: "two", Resent: true, Retry: 1},
		{Method: "m", ID: "three", Idempotent: true, Key: "key", Body: bytes.Repeat([]byte{0xff}, 20_000), Retry: 2},
		{Method: "m", ID: "four", Header: map[string]any{"traceparent": "00-1-2-03", "": "no name", "empty": ""}, Retry: 3},
		{Method: "m", ID: "five", Unsampled: true},
	}
	var body []byte
	for i := range all {
		before := len(body)
		body = all[i].AppendTo(body, time.Duration(i)*time.Second)
		if took, bound := len(body)-before, all[i].BatchSize(); took > bound {
			t.Errorf("request %d takes %d bytes, more than %d", i, took, bound)
		}
	}
	got, failed, err := readRequests(body, "reply")
	if err != nil {
		t.Fatal(err)
	}
	for i := range body {
		body[i] = 0 // the decoded requests must not refer to body
	}
	wantSame(t, "requests", len(got), len(all))
	for i, r := range got {
		if failed[i] != nil {
			t.Errorf("request %d: %v", i, failed[i])
		}
		if want := decodedFrom(all[i], "reply", time.Duration(i)*time.Second); !reflect.DeepEqual(sentFields(r), want) {
			t.Errorf("request %d: got %+v, want %+v", i, *r, want)
		}
	}
}

// The bytes are the contract with programs in other languages.
func TestABatchIsTheseBytes(t *testing.T) {
	t.Parallel()
	request := (&Request{Method: "b", ID: "id", Body: []byte("x"), Idempotent: true, Key: "k", Resent: true, Retry: 3, Unsampled: true}).AppendTo(nil, time.Second)
	wantSame(t, "request", hex.EncodeToString(request),
		"0a98808000"+"0a026964"+"120162"+"1a0178"+"20e807"+"2a016b"+"3001"+"3801"+"4003"+"6001")
	to := &Request{ID: "id", Retry: 2}
	failure := &Failure{Code: "not_found", Message: "no", Ran: RanNo, RetryAfter: time.Second}
	responses := (&Response{Body: []byte("x"), Times: Times{Queue: time.Millisecond, Handler: time.Microsecond}}).AppendTo(nil, to)
	responses = (&Response{Failure: failure}).AppendTo(responses, to)
	wantSame(t, "responses", hex.EncodeToString(responses),
		"0a8c808000"+"0a026964"+"38e807"+"4001"+"120178"+
			"0a9e808000"+"0a026964"+"3800"+"4000"+"12026e6f"+"1a096e6f745f666f756e64"+"2001"+"2802"+"30e807")
	cancellations := (&Cancellation{ID: "id", Method: "b", Key: "k"}).AppendTo(nil)
	cancellations = (&Cancellation{ID: "id", Method: "b", Key: "id"}).AppendTo(cancellations)
	wantSame(t, "cancellations", hex.EncodeToString(cancellations),
		"0a8a808000"+"0a026964"+"120162"+"2a016b"+"0a87808000"+"0a026964"+"120162")
}

// record encodes fields in the way of another program.
func record(fields ...[]byte) []byte {
	return appendBlob(nil, fieldRecord, bytes.Join(fields, nil))
}

func TestRequestsInABatchOfOtherPrograms(t *testing.T) {
	t.Parallel()
	id, method := appendText(nil, requestID, "id"), appendText(nil, requestMethod, "m")
	header := func(name, value string) []byte {
		return appendBlob(nil, requestHeader, append(appendText(nil, headerName, name), appendText(nil, headerValue, value)...))
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
		{"a field of another type", record(id, method, appendText(nil, requestTimeout, "soon")), "reply", ""},
		{"unsampled as text", record(id, method, appendText(nil, requestUnsampled, "true")), "reply", ""},
		{"unsampled as zero", record(id, method, appendNumber(nil, requestUnsampled, 0)), "reply", ""},
		{"no id", record(method), "reply", "no id"},
		{"no method", record(id), "reply", "method name of 0 bytes"},
		{"long method", record(id, appendText(nil, requestMethod, strings.Repeat("m", 256))), "reply", "method name of 256 bytes"},
		{"method that is no text", record(id, appendText(nil, requestMethod, "\xff")), "reply", ""},
		{"id that is no text", record(appendText(nil, requestID, "\xff"), method), "reply", ""},
		{"long id", record(appendText(nil, requestID, strings.Repeat("i", 256)), method), "reply", "id of 256 bytes"},
		{"long key", record(id, method, appendText(nil, requestMessageID, strings.Repeat("k", 256))), "reply", "message_id of 256 bytes"},
		{"header that is no message", record(id, method, appendText(nil, requestHeader, "\xff")), "reply", "a header cannot be read"},
		{"header with a long name", record(id, method, header(strings.Repeat("h", 256), "")), "reply", "a header cannot be read"},
		{"headers beyond a frame", record(id, method, header("h", strings.Repeat("v", MaxHeaderBytes+1))), "reply", "headers of more than"},
		{"header that is ours", record(id, method, header("rpc-deliveries", "9")), "reply", ""},
		{"made-up address", record(id, method), DirectReplyTo + ".made-up", "direct reply-to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			all, failed, err := readRequests(c.record, c.replyTo)
			if err != nil || len(all) != 1 {
				t.Fatalf("%d requests, error %v", len(all), err)
			}
			switch {
			case c.refused == "" && failed[0] != nil:
				t.Errorf("refused: %v", failed[0])
			case c.refused != "" && (failed[0] == nil || !strings.Contains(failed[0].Error(), c.refused)):
				t.Errorf("got %v, want a refusal with %q", failed[0], c.refused)
			case failed[0] != nil:
				wantSame(t, "is for the caller", isFormatError(failed[0]), true)
			}
			wantSame(t, "budget", all[0].Budget, NoBudget)
			wantSame(t, "headers", len(all[0].Header), 0)
			wantSame(t, "unsampled", all[0].Unsampled, false)
		})
	}
}

func TestWhatIsNoBatch(t *testing.T) {
	t.Parallel()
	one := record(appendText(nil, requestID, "id"))
	many := bytes.Repeat(one, maxBatchRecords)
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
			records, err := AppendRecords(nil, c.body)
			wantSame(t, "readable", err == nil, c.ok)
			if err != nil && (!errors.Is(err, errBatchFormat) || records != nil) {
				t.Errorf("%d records, error %v", len(records), err)
			}
			if _, err := DecodeResponses(c.body, false, nil); (err == nil) != c.ok {
				t.Errorf("as responses: %v", err)
			}
		})
	}
}

// TestHeadersOfABatchAreCounted: a record with many tiny headers must not create a large map.
//
//nolint:paralleltest // it counts allocations
func TestHeadersOfABatchAreCounted(t *testing.T) {
	record := appendText(appendText(nil, requestID, "id"), requestMethod, "m")
	for i := range 1 << 20 {
		header := appendText(nil, headerName, strconv.Itoa(i))
		record = appendBlob(record, requestHeader, header)
	}
	var r Request
	allocated := testing.AllocsPerRun(1, func() {
		r = Request{}
		if err := r.DecodeRecord(record, "reply", func(name []byte) string { return string(name) }); !isFormatError(err) {
			t.Errorf("error %v", err)
		}
	})
	if allocated > 20_000 || len(r.Header) > 4096 || r.ID != "id" {
		t.Errorf("%v allocations, %d headers", allocated, len(r.Header))
	}
}
