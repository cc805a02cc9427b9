package amqpx

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Programs with numbered messages must not get responses to each other's requests.
func TestMessageIDWithoutTheContractIsNoKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, _ := serve(t, handlers{"m": counted(&runs, echo)})
		for _, body := range []string{"apples", "pears"} {
			putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.MessageId, p.Body = "1", []byte(body) }))
			settle()
			responses := takeResponses(b)
			wantSame(t, "responses", len(responses), 1)
			wantSame(t, "answer", string(responses[0].Body), body)
		}
		wantSame(t, "executions", runs.Load(), 2)
	})
}

func TestRequestWithoutCorrelationIDIsAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := serve(t, handlers{"m": echo})
		for _, messageID := range []string{"7", ""} {
			putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.CorrelationId, p.MessageId = "", messageID }))
			settle()
			responses := takeResponses(b)
			wantSame(t, "responses", len(responses), 1)
			wantSame(t, "answer", string(responses[0].Body), "request")
			wantSame(t, "correlation id", responses[0].CorrelationId, messageID)
		}
	})
}

func TestDefaultMethod(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := serve(t, handlers{"m": echo}, WithDefaultMethod("m"))
		putRequest(b, request(""))
		putRequest(b, with(request(""), func(p *amqp.Publishing) { p.Headers = amqp.Table{"rpc-method": "n"} }))
		settle()
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 2)
		codes := map[any]int{}
		for _, a := range responses {
			codes[a.Headers[wire.HeaderCode]]++
		}
		wantSame(t, "results", codes[nil], 1)
		wantSame(t, "refusals", codes["unimplemented"], 1)
	})
}

func TestDefaultMethodInABatch(t *testing.T) {
	t.Parallel()
	records, err := wire.AppendRecords(nil, (&wire.Request{ID: "id"}).AppendTo(nil, time.Second))
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{cfg: &serverConfig{defaultMethod: "m"}}
	var in incoming
	if err := in.DecodeRecord(records[0], "r", s.nameOf); err != nil || in.Method != "m" {
		t.Errorf("method %q, error %v", in.Method, err)
	}
}

// Old programs name the method in their own way, and some name themselves in app_id.
func TestMethodOf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		logger, logs := observer.New(zapcore.ErrorLevel)
		b, _ := serve(t, handlers{"m": echo, "other": echo}, WithDefaultMethod("other"), WithLogger(zap.New(logger)),
			WithMethodOf(func(req *Request) string {
				switch name, _ := req.Header["function"].(string); name {
				case "panic":
					panic("a test")
				case "program":
					return req.Method
				case "priority":
					return map[uint8]string{7: "m"}[req.Priority]
				default:
					return name
				}
			}))
		ask := func(app, function string, change func(p *amqp.Publishing)) amqp.Publishing {
			t.Helper()
			putRequest(b, with(request(app), func(p *amqp.Publishing) {
				p.Type, p.Headers = "", amqp.Table{"function": function}
				change(p)
			}))
			settle()
			responses := takeResponses(b)
			if len(responses) != 1 {
				t.Fatalf("%d responses", len(responses))
			}
			return responses[0]
		}
		none := func(*amqp.Publishing) {}
		for _, c := range []struct {
			app, function string
			change        func(p *amqp.Publishing)
			code          any
		}{
			{"", "m", none, nil},
			{"billing", "m", none, nil},
			{"billing", "", none, "unimplemented"},
			{"", "", none, nil}, // the default method
			{"m", "unknown", none, nil},
			{"", "unknown", none, "unimplemented"},
			{"", "panic", none, "internal"},
			{"billing", "priority", func(p *amqp.Publishing) { p.Priority = 7 }, nil},
			{"billing", "priority", none, "unimplemented"},
			{"billing", "m", func(p *amqp.Publishing) { p.Type = wire.TypeRequest }, "unimplemented"},
		} {
			if got := ask(c.app, c.function, c.change); got.Headers[wire.HeaderCode] != c.code {
				t.Errorf("app_id %q, function %q: code %v, want %v", c.app, c.function, got.Headers[wire.HeaderCode], c.code)
			}
		}
		wantSame(t, "log lines", logs.FilterMessage("the function of WithMethodOf panicked").Len(), 1)
	})
}

// A budget of zero is not a fault of the server.
func TestBudgetOfZeroIsToldAsThat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := serve(t, handlers{"m": echo})
		putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{"rpc-timeout-ms": "0"} }))
		settle()
		got := takeResponses(b)[0]
		wantSame(t, "code", got.Headers[wire.HeaderCode], any("deadline_exceeded"))
		wantSame(t, "text", string(got.Body), "the call's time is 0 ms")
		wantSame(t, "ran", got.Headers[wire.HeaderRan], any(false))
	})
}
