package amqpx

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/wire/wiretest"
)

// Every field of a request reaches the handler, alone and in a batch.
func TestRequestReachesTheHandler(t *testing.T) {
	t.Parallel()
	req := Request{
		Method: "m", Body: []byte{0, 1}, Header: map[string]any{"h": "x"}, ContentType: "text/plain", ContentEncoding: "gzip",
		CorrelationID: "id", IdempotencyKey: "key", Idempotent: true,
	}
	var k call
	if err := k.setRequest(&req, 100); err != nil {
		t.Fatal(err)
	}
	want := req
	want.User, want.Queued, want.Redelivered = "user", time.Second, true
	a := attempt{call: &k, resent: true}
	sent := a.request()
	alone := incoming{user: "user"}
	if err := alone.Decode(wiretest.Delivered(sent.Publishing("reply", time.Minute, false)), ""); err != nil {
		t.Fatal(err)
	}
	if got := *alone.hand(time.Second); !reflect.DeepEqual(got, want) {
		t.Errorf("alone: got %+v, want %+v", got, want)
	}
	records, err := wire.AppendRecords(nil, sent.AppendTo(nil, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	batched := incoming{user: "user"}
	if err := batched.DecodeRecord(records[0], "reply", func(name []byte) string { return string(name) }); err != nil {
		t.Fatal(err)
	}
	if got := *batched.hand(time.Second); !reflect.DeepEqual(got, want) {
		t.Errorf("in a batch: got %+v, want %+v", got, want)
	}
	oneWay := incoming{}
	if err := oneWay.Decode(wiretest.Delivered(sent.Publishing("", time.Minute, false)), ""); err != nil || !oneWay.hand(0).OneWay {
		t.Errorf("one-way: got %+v, error %v", oneWay.handed, err)
	}
}

// The record of a request is the same whether or not a string is made of its id, which would be an
// allocation for each call.
//
//nolint:paralleltest // counts allocations
func TestRecordOfARequest(t *testing.T) {
	const id = "3b241101-e2bb-4255-8caf-4136c566a962"
	for name, req := range map[string]Request{
		"own":                 {sent: sentWith{ours: true}},
		"own, idempotent":     {Idempotent: true, sent: sentWith{ours: true}},
		"own, key":            {IdempotencyKey: "key", Idempotent: true, sent: sentWith{ours: true}},
		"UUID":                {CorrelationID: id},
		"UUID, the key":       {CorrelationID: id, IdempotencyKey: id},
		"UUID, idempotent":    {CorrelationID: id, IdempotencyKey: id, Idempotent: true},
		"UUID, another key":   {CorrelationID: id, IdempotencyKey: "key", Idempotent: true},
		"text, the key":       {CorrelationID: "id", IdempotencyKey: "id"},
		"text, idempotent":    {CorrelationID: "id", IdempotencyKey: "id", Idempotent: true},
		"headers, unsampled":  {CorrelationID: id, Header: map[string]any{"h": "x"}, Unsampled: true},
		"content type, other": {CorrelationID: id, ContentType: "text/plain", ContentEncoding: "gzip", IdempotencyKey: "key"},
	} {
		req.Method, req.Body = "m", []byte("body")
		var k call
		if err := k.setRequest(&req, 100); err != nil {
			t.Fatal(err)
		}
		a := attempt{call: &k, resent: true, retry: 3}
		sent := a.request()
		want := sent.AppendTo([]byte("before"), time.Minute)
		if got := a.appendTo([]byte("before"), time.Minute); !bytes.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		buffer := make([]byte, 0, 1024)
		if n := testing.AllocsPerRun(100, func() { a.appendTo(buffer, time.Minute) }); name == "own, idempotent" && n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestRequestThatCannotBeSent(t *testing.T) {
	t.Parallel()
	for text, req := range map[string]*Request{
		"body of 11 bytes, limit 10":  {Method: "m", Body: make([]byte, 11)},
		"method name of 0 bytes":      {},
		`header "rpc-x"`:              {Method: "m", Header: map[string]any{"rpc-x": "x"}},
		"a value of type *int cannot": {Method: "m", Header: map[string]any{"h": new(int)}},
	} {
		var k call
		err := k.setRequest(req, 10)
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
		wantSame(t, text, errors.Is(err, ErrTooLarge), len(req.Body) > 10)
	}
}

// Middleware may change the header of its request after it has sent the request.
func TestHeaderOfMiddlewareIsCopied(t *testing.T) {
	t.Parallel()
	header := map[string]any{"h": "x"}
	var k call
	if err := k.setRequest(&Request{Method: "m", Header: header}, 10); err != nil {
		t.Fatal(err)
	}
	header["h"], header["more"] = "changed", "y"
	if !maps.Equal(k.req.more.header, map[string]any{"h": "x"}) {
		t.Errorf("header %v", k.req.more.header)
	}
}

// The error of a handler has the same code, text and outcome at the caller.
func TestErrorRoundTrip(t *testing.T) {
	t.Parallel()
	to := &wire.Request{ID: "id", FollowsContract: true}
	for name, e := range map[string]*Error{
		"coded":              Errorf(CodeNotFound, "no %s", "ä"),
		"without text":       Errorf(CodeAborted, ""),
		"refusal":            refusal(CodeInvalidArgument, "bad"),
		"may have run":       {code: CodeAborted, message: "perhaps", outcome: MayHaveRun},
		"with a hint":        {code: CodeResourceExhausted, outcome: DidNotRun, retryAfter: 1500 * time.Millisecond},
		"of a known server":  {code: CodeUnimplemented, outcome: DidNotRun, server: "server-1"},
		"outside the set":    {code: "teapot", outcome: Ran},
		"deadline":           Errorf(CodeDeadlineExceeded, "late"),
		"deadline elsewhere": refusal(CodeDeadlineExceeded, "late"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := wire.Response{Failure: failureOf(e)}
			want := Error{code: e.code, message: e.message, outcome: e.outcome, remote: true, retryAfter: e.retryAfter, server: e.server}
			if !want.code.Valid() {
				want.code = CodeUnknown
			}
			if want.code == CodeDeadlineExceeded {
				want.causes = []error{context.DeadlineExceeded}
			}
			alone := wire.DecodeResponse(wiretest.Delivered(r.Publishing(to, false)))
			if got := errorOf(alone.Failure); !reflect.DeepEqual(*got, want) {
				t.Errorf("alone: got %+v, want %+v", got, want)
			}
			all, err := wire.DecodeResponses(r.AppendTo(nil, to), false, nil)
			if err != nil {
				t.Fatal(err)
			}
			want.server = "" // not in a batch
			if got := errorOf(all[0].Failure); !reflect.DeepEqual(*got, want) {
				t.Errorf("in a batch: got %+v, want %+v", got, want)
			}
		})
	}
}

func TestErrorOfADiscardedResponse(t *testing.T) {
	t.Parallel()
	mark := wire.DroppedBody{Size: 20, Limit: 10}.HeaderValue()
	r := wire.DecodeResponse(&amqp.Delivery{Headers: amqp.Table{wire.HeaderDropped: mark}})
	got := errorOf(r.Failure)
	wantIs(t, got, ErrTooLarge)
	wantSame(t, "code", got.Code(), CodeResourceExhausted)
	wantSame(t, "outcome", got.Outcome(), Ran)
	wantSame(t, "remote", got.Remote(), false) // this process made the error
	wantSame(t, "text", got.Message(), "response: message exceeds the size limit: body of 20 bytes, limit 10")
}

func TestFormatErrorIsARefusal(t *testing.T) {
	t.Parallel()
	var r wire.Request
	got := formatRefusal(r.Decode(&amqp.Delivery{}, ""))
	wantSame(t, "code", got.Code(), CodeInvalidArgument)
	wantSame(t, "outcome", got.Outcome(), DidNotRun)
	wantSame(t, "text", got.Message(), "property app_id is empty: it names the method")
	if got := formatRefusal(nil); got != nil {
		t.Errorf("got %v, want nil", got)
	}
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
		wantSame(t, "requests", len(r.broker.MessagesTo(DefaultQueue)), 0)
	})
}
