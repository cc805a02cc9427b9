package amqpx

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Requests of programs that do not know the contract, and the decoded results.
func TestRequestsOfProgramsWithoutTheContract(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		d             amqp.Delivery
		defaultMethod string
		want          func(t *testing.T, in *incoming)
		fails         string
		code          Code
	}{
		{
			name: "message_id alone is no idempotency key", d: amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7"},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "key", in.IdempotencyKey, "")
			},
		},
		{
			name: "message_id with the contract's type is one", d: amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7", Type: typeCall},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "key", in.IdempotencyKey, "7")
			},
		},
		{
			name: "message_id with rpc-timeout-ms is one",
			d:    amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7", Headers: amqp.Table{"rpc-timeout-ms": "1000"}},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "key", in.IdempotencyKey, "7")
			},
		},
		{
			name: "message_id with rpc-idempotent is one",
			d:    amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7", Headers: amqp.Table{"rpc-idempotent": "true"}},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "key", in.IdempotencyKey, "7")
				wantSame(t, "idempotent", in.Idempotent, true)
			},
		},
		{
			name: "a copy that a server moved has no key either",
			d:    amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7", Headers: amqp.Table{"rpc-deliveries": int64(1)}},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "key", in.IdempotencyKey, "")
			},
		},
		{
			name: "without correlation_id the message_id is echoed", d: amqp.Delivery{AppId: "b", ReplyTo: "r", MessageId: "7"},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "correlation id", in.CorrelationID, "7")
			},
		},
		{
			name: "without either it is empty", d: amqp.Delivery{AppId: "b", ReplyTo: "r"},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "correlation id", in.CorrelationID, "")
			},
		},
		{
			name: "method by header", d: amqp.Delivery{Headers: amqp.Table{"rpc-method": "b"}}, defaultMethod: "a",
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "method", in.Method, "b")
			},
		},
		{
			name: "app_id comes before the header", d: amqp.Delivery{AppId: "b", Headers: amqp.Table{"rpc-method": "a"}},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "method", in.Method, "b")
			},
		},
		{
			name: "default method", d: amqp.Delivery{}, defaultMethod: "a",
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "method", in.Method, "a")
			},
		},
		{name: "no method at all", d: amqp.Delivery{}, fails: "property app_id is empty: it names the method", code: CodeInvalidArgument},
		{
			name: "method by a header of another type", d: amqp.Delivery{Headers: amqp.Table{"rpc-method": int32(5)}},
			fails: "header rpc-method: want text, got int32 5", code: CodeInvalidArgument,
		},
		{
			name: "method by a long header", d: amqp.Delivery{Headers: amqp.Table{"rpc-method": string(make([]byte, 256))}},
			fails: "method name of 256 bytes: want 1 to 255", code: CodeInvalidArgument,
		},
		{
			name: "true and false as text",
			d:    amqp.Delivery{AppId: "b", Headers: amqp.Table{"rpc-idempotent": "True", "rpc-times": "true", "rpc-resent": "TRUE"}},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "idempotent, times, resent", [3]bool{in.Idempotent, in.wantsTimes, in.resent}, [3]bool{true, true, true})
				wantSame(t, "redelivered", in.Redelivered, true)
			},
		},
		{
			name: "numbers as text", d: amqp.Delivery{AppId: "b", Headers: amqp.Table{"rpc-retry": "2", "rpc-deliveries": "3"}},
			want: func(t *testing.T, in *incoming) {
				t.Helper()
				wantSame(t, "retry", in.retry, 2)
				wantSame(t, "deliveries", in.lostDeliveries, 3)
			},
		},
		{
			name: "an error shows the value", d: amqp.Delivery{AppId: "b", Headers: amqp.Table{"rpc-timeout-ms": "1.5e3"}},
			fails: `header rpc-timeout-ms: want a whole number, got "1.5e3"`, code: CodeInvalidArgument,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in, failed := decodeRequest(&c.d, c.defaultMethod)
			switch {
			case c.fails == "" && failed != nil:
				t.Fatal(failed)
			case c.fails == "":
				c.want(t, in)
			case failed == nil || failed.message != c.fails || failed.code != c.code || failed.outcome != DidNotRun:
				t.Errorf("got %v, want %s: %s", failed, c.code, c.fails)
			}
		})
	}
}

// Programs with numbered messages must not get responses to each other's requests.
func TestMessageIDWithoutTheContractIsNoKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, _ := serve(t, handlers{"m": counted(&runs, echo)})
		for _, body := range []string{"apples", "pears"} {
			b.put(with(request("m"), func(p *amqp.Publishing) { p.MessageId, p.Body = "1", []byte(body) }))
			settle()
			answers := b.take()
			wantSame(t, "answers", len(answers), 1)
			wantSame(t, "answer", string(answers[0].Body), body)
		}
		wantSame(t, "executions", runs.Load(), 2)
	})
}

func TestRequestWithoutCorrelationIDIsAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := serve(t, handlers{"m": echo})
		for _, messageID := range []string{"7", ""} {
			b.put(with(request("m"), func(p *amqp.Publishing) { p.CorrelationId, p.MessageId = "", messageID }))
			settle()
			answers := b.take()
			wantSame(t, "answers", len(answers), 1)
			wantSame(t, "answer", string(answers[0].Body), "request")
			wantSame(t, "correlation id", answers[0].CorrelationId, messageID)
		}
	})
}

func TestDefaultMethod(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := serve(t, handlers{"m": echo}, WithDefaultMethod("m"))
		b.put(request(""))
		b.put(with(request(""), func(p *amqp.Publishing) { p.Headers = amqp.Table{"rpc-method": "n"} }))
		settle()
		answers := b.take()
		wantSame(t, "answers", len(answers), 2)
		codes := map[any]int{}
		for _, a := range answers {
			codes[a.Headers[headerCode]]++
		}
		wantSame(t, "results", codes[nil], 1)
		wantSame(t, "refusals", codes["unimplemented"], 1)
	})
}

func TestDefaultMethodInABatch(t *testing.T) {
	t.Parallel()
	in := &incoming{}
	record := appendCall(nil, &Request{CorrelationID: "id"}, time.Second, false, 0)
	records, err := appendRecords(nil, record)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{cfg: &serverConfig{defaultMethod: "m"}}
	if failed := decodeCall(in, records[0], "r", s.nameOf); failed != nil || in.Method != "m" {
		t.Errorf("method %q, error %v", in.Method, failed)
	}
}

// A budget of zero is not a fault of the server.
func TestBudgetOfZeroIsToldAsThat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := serve(t, handlers{"m": echo})
		b.put(with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{"rpc-timeout-ms": "0"} }))
		settle()
		got := b.take()[0]
		wantSame(t, "code", got.Headers[headerCode], any("deadline_exceeded"))
		wantSame(t, "text", string(got.Body), "the call's time is 0 ms")
		wantSame(t, "ran", got.Headers[headerRan], any(false))
	})
}

func TestAnswerThatSaysInTextWhetherItRan(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Outcome{"true": Ran, "false": DidNotRun, "no": MayHaveRun} {
		_, _, failed := decodeAnswer(&amqp.Delivery{Headers: amqp.Table{headerCode: "aborted", headerRan: text}})
		wantSame(t, text, failed.outcome, want)
	}
}
