//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// serversWell checks after a test's inputs for a working server, and for no request retained
// by the server or the broker.
func serversWell(t *testing.T, r *rig.Rig, s *rig.Server) {
	t.Helper()
	if got := rig.Call(t, r.Ready(), "b", []byte("request")); string(got) != "b" {
		t.Errorf("got %q, want %q", got, "b")
	}
	rig.Eventually(t, "nothing is in flight", func() bool { return s.Stats().InFlight == 0 })
	if st := s.Stats(); st.Reconnects != 0 || st.Panics != 0 {
		t.Errorf("server counted %+v, want no reconnect and no panic", st)
	}
	if err := s.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if left := r.Inspect().Messages; left != 0 {
		t.Errorf("%d requests were not acknowledged", left)
	}
}

// header returns a request with a single header, for an existing method.
func header(name string, value any) amqp.Publishing {
	return amqp.Publishing{AppId: "b", CorrelationId: uuid.NewString(), Headers: amqp.Table{name: value}}
}

// anonymous returns a request without app_id.
func anonymous(headers amqp.Table) amqp.Publishing {
	return amqp.Publishing{CorrelationId: uuid.NewString(), Headers: headers}
}

func TestRequestsThatNoClientOfOursSends(t *testing.T) {
	t.Parallel()
	const (
		ok       = ""
		invalid  = string(amqpx.CodeInvalidArgument)
		unknown  = string(amqpx.CodeUnimplemented)
		deadline = string(amqpx.CodeDeadlineExceeded)
	)
	r := rig.New(t)
	server := r.Serve(rig.Methods{"b": letter})
	inbox := r.Inbox()
	all := []struct {
		name string
		msg  amqp.Publishing
		code string
		text string // within the message
	}{
		{"only what is needed", amqp.Publishing{AppId: "b", CorrelationId: "1"}, ok, "b"},
		{"every property", amqp.Publishing{
			AppId: "b", CorrelationId: strings.Repeat("c", 255), MessageId: strings.Repeat("m", 255),
			ContentType: "\xff\x00", ContentEncoding: strings.Repeat("e", 255), Type: "t", Priority: 255, DeliveryMode: 2,
			Timestamp: time.Unix(math.MaxInt32, 0), Expiration: "60000", UserId: "",
		}, ok, "b"},
		{"no correlation_id", amqp.Publishing{AppId: "b"}, ok, "b"},
		{"method by a header", anonymous(amqp.Table{"rpc-method": "b"}), ok, "b"},
		{"method by a header that is no text", anonymous(amqp.Table{"rpc-method": true}), invalid, "want text, got bool true"},
		{"no app_id", amqp.Publishing{CorrelationId: "1"}, invalid, "app_id"},
		{"nothing but reply_to", amqp.Publishing{}, invalid, "app_id"},
		{"255-byte app_id", amqp.Publishing{AppId: strings.Repeat("x", 255), CorrelationId: "1"}, unknown, "xxx"},
		{"binary app_id", amqp.Publishing{AppId: "\xff\xfe\x00b", CorrelationId: "\xff\x00"}, unknown, "method"},
		{"app_id of another case", amqp.Publishing{AppId: "B", CorrelationId: "1"}, unknown, "method"},
		{"budget as text", header("rpc-timeout-ms", "60000"), ok, "b"},
		{"budget beyond measure", header("rpc-timeout-ms", int64(math.MaxInt64)), ok, "b"},
		{"budget below zero", header("rpc-timeout-ms", int64(math.MinInt64)), invalid, "want 0 or more"},
		{"budget of zero", header("rpc-timeout-ms", int8(0)), deadline, "the call's time is 0 ms"},
		{"budget of words", header("rpc-timeout-ms", "soon"), invalid, "rpc-timeout-ms"},
		{"budget of a float", header("rpc-timeout-ms", 1.5), invalid, "rpc-timeout-ms"},
		{"budget of a table", header("rpc-timeout-ms", amqp.Table{"a": int32(1)}), invalid, "rpc-timeout-ms"},
		{"budget of nothing", header("rpc-timeout-ms", nil), invalid, "rpc-timeout-ms"},
		{"idempotent as text", header("rpc-idempotent", "true"), ok, "b"},
		{"idempotent as another text", header("rpc-idempotent", "yes"), invalid, `rpc-idempotent: want true or false, got "yes"`},
		{"idempotent as a list", header("rpc-idempotent", []any{true}), invalid, "rpc-idempotent"},
		{"a response's headers", amqp.Publishing{AppId: "b", CorrelationId: "1", Headers: amqp.Table{
			"rpc-code": "internal", "rpc-message": int32(7), "rpc-ran": "x", "rpc-later": nil,
		}}, ok, "b"},
		{"huge header", header("huge", strings.Repeat("h", 100<<10)), ok, "b"},
		{"many headers", amqp.Publishing{AppId: "b", CorrelationId: "1", Headers: many(4000)}, ok, "b"},
		{"deep nesting", header("deep", nested(30)), ok, "b"},
		{"deepest nesting", header("deep", nested(31)), ok, "b"},
		{"nesting beyond what can be read", header("deep", nested(60)), invalid, "nested deeper"},
		{"more headers than can be read", amqp.Publishing{AppId: "b", CorrelationId: "1", Headers: many(9000)}, invalid, "8192 entries"},
		{"header without a name", header("", "x"), ok, "b"},
		{"header named by bytes", header("\xff\x00", []byte{0, 255}), ok, "b"},
	}
	for _, c := range all {
		c.msg.ReplyTo = inbox.Name
		r.Request(c.msg)
		got := inbox.Next()
		code, _ := got.Headers["rpc-code"].(string)
		if got.CorrelationId != c.msg.CorrelationId || code != c.code || !bytes.Contains(got.Body, []byte(c.text)) {
			t.Errorf("%s: answer %q with code %q to call %q, want code %q and %q in it",
				c.name, got.Body, code, got.CorrelationId, c.code, c.text)
		}
	}
	if got := server.Stats().Requests; got != uint64(len(all)) {
		t.Errorf("server counted %d requests, want %d", got, len(all))
	}
	serversWell(t, r, server)
}

// many returns a table of n headers.
func many(n int) amqp.Table {
	table := make(amqp.Table, n)
	for i := range n {
		table[fmt.Sprint("h", i)] = int32(i)
	}
	return table
}

// nested returns tables in tables.
func nested(depth int) amqp.Table {
	table := amqp.Table{}
	for range depth {
		table = amqp.Table{"t": table}
	}
	return table
}

// TestResponsesToNowhere: no reply_to of a request can do harm, because the requester chooses it
// freely.
func TestResponsesToNowhere(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"b": letter})
	targets := []string{
		"no such queue", strings.Repeat("q", 255), "\xff\xfe\x00",
		"amq.rabbitmq.reply-to.garbage", "amq.rabbitmq.reply-to.", "amq.rabbitmq.reply-to.g1h2!!.~~",
		"amq.rabbitmq.reply-to." + strings.Repeat("A", 200), "amq.rabbitmq.reply-to.g2EB.key",
		r.Queue.Name, // its responses come back as requests without a reply_to
	}
	for _, target := range targets {
		for _, app := range []string{"b", "unknown", ""} {
			r.Request(amqp.Publishing{AppId: app, ReplyTo: target, CorrelationId: "1"})
		}
	}
	// Three responses arrive as requests without a reply_to, and get no responses themselves.
	want := uint64(3*len(targets) + 3)
	rig.Eventually(t, "all requests are settled", func() bool {
		st := server.Stats()
		return st.Requests == want && st.InFlight == 0
	})
	const harmless = 4
	if got := server.Stats(); got.OK != harmless || got.Refused != want-harmless {
		t.Errorf("server counted %+v, want %d ok and the rest refused", got, harmless)
	}
	serversWell(t, r, server)
}

// TestDirectReplyToWithoutConsumer: a request with direct reply-to needs a channel consuming
// from direct reply-to. Otherwise the broker closes the sender's channel, and no server
// receives the request.
func TestDirectReplyToWithoutConsumer(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"b": letter})
	ch := r.Raw()
	ended := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ch.PublishWithContext(t.Context(), "", r.Queue.Name, false, false, amqp.Publishing{
		AppId: "b", ReplyTo: "amq.rabbitmq.reply-to", CorrelationId: "1",
	}); err != nil {
		t.Fatal(err)
	}
	if why := rig.Recv(t, ended, "the broker to close the channel"); why.Code != amqp.PreconditionFailed {
		t.Errorf("closed with %v", why)
	}
	serversWell(t, r, server)
}

func TestOneWayRequests(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	oneWay := hold()
	close(oneWay.release)
	server := r.Serve(rig.Methods{"note": oneWay.handle, "b": letter})
	r.Request(amqp.Publishing{AppId: "note", Body: []byte("x")})
	if got := rig.Recv(t, oneWay.entered, "the handler"); !got.OneWay || string(got.Body) != "x" {
		t.Errorf("handler got %+v, want a one-way request", got)
	}
	r.Request(amqp.Publishing{AppId: "unknown"})
	r.Request(amqp.Publishing{})
	rig.Eventually(t, "all are settled", func() bool {
		st := server.Stats()
		return st.Requests == 3 && st.InFlight == 0
	})
	if got, want := server.Stats(), (amqpx.ServerStats{Requests: 3, DefaultExchange: 3, OK: 1, Refused: 2, Workers: amqpx.DefaultWorkers}); got != want {
		t.Errorf("server counted %+v, want %+v", got, want)
	}
	serversWell(t, r, server)
}

func TestTenThousandMalformedMessages(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"b": letter})
	const bad = 10_000
	ch := r.Raw()
	for i := range bad {
		msg := amqp.Publishing{
			ReplyTo: uuid.NewString(), CorrelationId: strings.Repeat("\x00", i%256),
			Headers: amqp.Table{"rpc-timeout-ms": []any{i}, "rpc-idempotent": "?"},
			Body:    bytes.Repeat([]byte{0xff}, i%300),
		}
		if i%2 == 0 {
			msg.AppId = "\xff" + uuid.NewString()
		}
		if i%3 == 0 {
			msg.ReplyTo = ""
		}
		if err := ch.PublishWithContext(t.Context(), "", r.Queue.Name, false, false, msg); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	rig.Eventually(t, "all messages are settled", func() bool {
		st := server.Stats()
		return st.Requests == bad && st.InFlight == 0
	})
	if got := server.Stats(); got.Refused != bad || got.OK+got.Failed+got.Expired != 0 {
		t.Errorf("server counted %+v, want all refused", got)
	}
	serversWell(t, r, server)
}

func TestRequestsThatCannotTravel(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Serve(rig.Methods{"b": letter})
	client := r.Ready()
	for _, c := range []struct {
		name, method string
		opt          amqpx.CallOption
	}{
		{"no method", "", nil},
		{"256-byte method", strings.Repeat("x", 256), nil},
		{"256-byte key", "b", amqpx.WithIdempotencyKey(strings.Repeat("k", 256))},
		{"reserved header", "b", amqpx.WithHeader(map[string]any{"rpc-code": "x"})},
		{"header that ends the channel", "b", amqpx.WithHeader(map[string]any{"CC": "boss@example.com"})},
		{"header that ends the channel, unseen", "b", amqpx.WithHeader(map[string]any{"BCC": nil})},
		{"header that routes a copy", "b", amqpx.WithHeader(map[string]any{"CC": []any{r.Queue.Name + ".dead"}})},
		{"oversized header", "b", amqpx.WithHeader(map[string]any{"h": strings.Repeat("x", 200<<10)})},
		{"too many headers", "b", amqpx.WithHeader(many(20_000))},
		{"too deep headers", "b", amqpx.WithHeader(nested(1000))},
		{"256-byte header name", "b", amqpx.WithHeader(map[string]any{strings.Repeat("n", 256): 1})},
		{"header of a type that AMQP lacks", "b", amqpx.WithHeader(map[string]any{"h": make(chan int)})},
		{"number that RabbitMQ cannot read", "b", amqpx.WithHeader(map[string]any{"h": []any{math.Inf(1)}})},
		{"nested type that AMQP lacks", "b", amqpx.WithHeader(map[string]any{"h": []any{amqp.Table{"x": struct{}{}}}})},
	} {
		info := amqpx.CallInfo{}
		opts := []amqpx.CallOption{amqpx.WithCallInfo(&info)}
		if c.opt != nil {
			opts = append(opts, c.opt)
		}
		_, err := client.Call(rig.Patience(t), c.method, nil, opts...)
		want{code: amqpx.CodeInvalidArgument, outcome: amqpx.DidNotRun}.check(t, err)
		if info.Attempts != 0 {
			t.Errorf("%s: %d attempts, want none", c.name, info.Attempts)
		}
	}
	if got := rig.Call(t, client, "b", nil); string(got) != "b" {
		t.Errorf("got %q afterwards", got)
	}
	if got := client.Stats().Reconnects; got != 0 {
		t.Errorf("%d reconnects, want the connection unharmed", got)
	}
}

// TestHeadersOfEveryType: every type of header value arrives unchanged.
func TestHeadersOfEveryType(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	seen := hold()
	close(seen.release)
	r.Serve(rig.Methods{"b": seen.handle})
	client := r.Ready()
	headers := map[string]any{
		"bool": true, "int8": int8(-1), "uint8": uint8(255), "int16": int16(math.MinInt16),
		"int32": int32(math.MinInt32), "int64": int64(math.MinInt64),
		"float32": float32(1.5), "float64": math.Pi,
		"string": "ä\x00\xff", "empty": "", "bytes": []byte{0, 255}, "nil": nil,
		"decimal": amqp.Decimal{Scale: 2, Value: 314}, "time": time.Unix(1<<31, 0).UTC(),
		"list": []any{"x", int32(1), nil, []any{true}}, "table": map[string]any{"deeper": map[string]any{"x": true}},
		"": "no name",
	}
	rig.Call(t, client, "b", nil, amqpx.WithHeader(headers))
	got := rig.Recv(t, seen.entered, "the handler").Header
	for name, sent := range headers {
		value, there := got[name]
		if at, ok := value.(time.Time); ok {
			value = at.UTC()
		}
		if !there || !reflect.DeepEqual(value, sent) {
			t.Errorf("header %q: got %#v, want %#v", name, value, sent)
		}
	}
	if len(got) != len(headers) {
		t.Errorf("%d headers arrived, want %d: %v", len(got), len(headers), got)
	}
}

func TestLargestMessages(t *testing.T) {
	t.Parallel()
	const limit = amqpx.DefaultMaxMessageSize
	r := rig.New(t)
	server := r.Serve(rig.Methods{
		"echo": echo, "b": letter,
		"over": func(_ context.Context, _ *amqpx.Request) ([]byte, error) { return make([]byte, limit+1), nil },
	})
	client := r.Ready()
	body := bytes.Repeat([]byte("0123456789abcdef"), limit/16)
	for _, size := range []int{0, 1, limit - 1, limit} {
		if got := rig.Call(t, client, "echo", body[:size]); !bytes.Equal(got, body[:size]) {
			t.Errorf("%d bytes: got %d bytes, or others", size, len(got))
		}
	}
	_, err := client.Call(rig.Patience(t), "echo", make([]byte, limit+1))
	want{code: amqpx.CodeInvalidArgument, outcome: amqpx.DidNotRun, is: []error{amqpx.ErrTooLarge}}.check(t, err)
	_, err = client.Call(rig.Patience(t), "over", nil)
	want{code: amqpx.CodeResourceExhausted, outcome: amqpx.Ran, remote: true}.check(t, err)
	if got := client.Stats().Reconnects; got != 0 {
		t.Errorf("%d reconnects, want the connection unharmed", got)
	}
	serversWell(t, r, server)
}
