package amqpx

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// rawQueue is the reply queue of raw requests.
const rawQueue = "raw.answers"

// serve declares rawQueue, starts a server and waits until the server is ready.
func serve(t *testing.T, methods handlers, opts ...ServerOption) (*brokertest.Broker, *running) {
	t.Helper()
	b := brokertest.New()
	b.With(func(b *brokertest.Broker) { _ = b.Declare(rawQueue, true, nil) })
	s := startServer(t, b, methods, opts...)
	ready(t, s.WaitReady)
	return b, s
}

// request returns a plain client's request.
func request(method string) amqp.Publishing {
	return amqp.Publishing{AppId: method, ReplyTo: rawQueue, CorrelationId: "id", Body: []byte("request")}
}

func with(msg amqp.Publishing, change func(*amqp.Publishing)) amqp.Publishing {
	change(&msg)
	return msg
}

func TestServerAnswersWhateverComes(t *testing.T) {
	t.Parallel()
	deep := amqp.Table{}
	for range 50 {
		deep = amqp.Table{"deep": deep}
	}
	header := func(name string, v any) func(*amqp.Publishing) {
		return func(p *amqp.Publishing) { p.Headers = amqp.Table{name: v} }
	}
	for _, c := range []struct {
		name   string
		msg    amqp.Publishing
		code   Code // "" is a result
		silent bool // no response
		runs   int64
	}{
		{name: "plain", msg: request("m"), runs: 1},
		{name: "one-way", msg: with(request("m"), func(p *amqp.Publishing) { p.ReplyTo = "" }), silent: true, runs: 1},
		{name: "no correlation_id", msg: with(request("m"), func(p *amqp.Publishing) { p.CorrelationId = "" }), runs: 1},
		{name: "no app_id", msg: request(""), code: CodeInvalidArgument},
		{name: "no app_id, one-way", msg: amqp.Publishing{}, silent: true},
		{name: "app_id of 255 bytes", msg: request(strings.Repeat("x", 255)), code: CodeUnimplemented},
		{name: "binary app_id", msg: request("\xff\x00\xfe"), code: CodeUnimplemented},
		{name: "empty body", msg: with(request("m"), func(p *amqp.Publishing) { p.Body = nil }), runs: 1},
		{name: "body of 16 MiB", msg: with(request("m"), func(p *amqp.Publishing) { p.Body = make([]byte, 16<<20) }), runs: 1},
		{name: "absurd headers", msg: with(request("m"), header("deep", deep)), runs: 1},
		{name: "budget of a wrong type", msg: with(request("m"), header("rpc-timeout-ms", amqp.Table{})), code: CodeInvalidArgument},
		{name: "budget of zero", msg: with(request("m"), header("rpc-timeout-ms", int32(0))), code: CodeDeadlineExceeded},
		{name: "idempotent of a wrong type", msg: with(request("m"), header("rpc-idempotent", int32(1))), code: CodeInvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, s := serve(t, handlers{"m": counted(&runs, echo)})
				putRequest(b, c.msg)
				settle()
				responses := takeResponses(b)
				if !c.silent {
					wantSame(t, "responses", len(responses), 1)
					code, _ := responses[0].Headers[wire.HeaderCode].(string)
					wantSame(t, "code", Code(code), c.code)
					wantSame(t, "correlation_id", responses[0].CorrelationId, c.msg.CorrelationId)
				} else {
					wantSame(t, "responses", len(responses), 0)
				}
				wantSame(t, "executions", runs.Load(), c.runs)
				wantSame(t, "left in the queue", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
				putRequest(b, request("m"))
				settle()
				wantSame(t, "responses afterwards", len(takeResponses(b)), 1)
			})
		})
	}
}

func TestPlainClientGetsAPlainResponse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := serve(t, handlers{"m": echo})
		putRequest(b, request("m"))
		settle()
		got := takeResponses(b)[0]
		if len(got.Headers) != 0 || string(got.Body) != "request" {
			t.Errorf("answer %+v", got)
		}
	})
}

func TestHandlerSeesTheRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		seen := make(chan Request, 2)
		b, _ := serve(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			seen <- *req
			return nil, nil
		}})
		putRequest(b, amqp.Publishing{
			AppId: "m", CorrelationId: "id", MessageId: "key", ReplyTo: rawQueue, Body: []byte("body"),
			Headers: amqp.Table{"rpc-idempotent": true, "rpc-timeout-ms": int64(1000), "traceparent": "00"},
		})
		got := <-seen
		want := Request{Method: "m", CorrelationID: "id", IdempotencyKey: "key", Idempotent: true}
		if got.Method != want.Method || got.CorrelationID != want.CorrelationID || got.IdempotencyKey != want.IdempotencyKey ||
			!got.Idempotent || got.OneWay || got.Redelivered || !maps.Equal(got.Header, map[string]any{"traceparent": "00"}) {
			t.Errorf("got %+v", got)
		}
		b.With(func(b *brokertest.Broker) {
			q := b.Queues[DefaultQueue]
			q.Messages = append(q.Messages, &brokertest.Message{Msg: amqp.Publishing{AppId: "m"}, Redelivered: true})
			b.Dispatch(q)
		})
		got = <-seen
		wantSame(t, "redelivered", got.Redelivered, true)
		wantSame(t, "one-way", got.OneWay, true)
	})
}

func TestDeadlineReachesTheHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		left := make(chan time.Duration, 1)
		h := func(ctx context.Context, _ *Request) ([]byte, error) {
			deadline, ok := ctx.Deadline()
			if !ok {
				left <- -1
				return nil, nil
			}
			left <- time.Until(deadline)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		b, _ := serve(t, handlers{"m": h})
		putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{"rpc-timeout-ms": "1500"} }))
		wantSame(t, "time left", <-left, 1500*time.Millisecond)
		pass(2 * time.Second)
		response := takeResponses(b)[0]
		wantSame(t, "code", response.Headers[wire.HeaderCode], any("deadline_exceeded"))
		putRequest(b, request("m"))
		wantSame(t, "time left without a budget", <-left, DefaultMaxHandlerTime)
		putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{"rpc-timeout-ms": int64(3_600_000)} }))
		wantSame(t, "time left with a long budget", <-left, DefaultMaxHandlerTime)
	})
}

func TestExpiredRequestNeverRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"slow": slow, "m": counted(&runs, echo)}, WithWorkers(1), WithPrefetch(2))
		putRequest(b, request("slow"))
		budget := func(p *amqp.Publishing) {
			p.Headers = amqp.Table{"rpc-timeout-ms": int64(1000)}
			p.Expiration = "1000"
		}
		putRequest(b, with(request("m"), budget)) // waits in the server
		b.With(func(b *brokertest.Broker) {       // waits in the broker
			b.Route(nil, DefaultQueue, false, with(request("m"), budget))
		})
		pass(10 * time.Second)
		wantSame(t, "executions", runs.Load(), 0)
		wantSame(t, "expired in the server", s.Stats().Expired, 1)
		b.With(func(b *brokertest.Broker) { wantSame(t, "expired in the broker", b.Queues[DefaultQueue].Expired, 1) })
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 2)
		wantSame(t, "code", responses[1].Headers[wire.HeaderCode], any("deadline_exceeded"))
		wantSame(t, "ran", responses[1].Headers[wire.HeaderRan], any(false))
	})
}

func TestResponseSaysWhereTheTimeWent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": slow})
		var info CallInfo
		wantResponse(t, <-goCall(r.client, t.Context(), "m", nil, WithCallInfo(&info)), "")
		if info.Response == nil || info.CorrelationID == "" {
			t.Errorf("got %+v", info)
		}
		wantSame(t, "server", info.Server, r.server.self.id)
		wantSame(t, "info", info, CallInfo{Attempts: 1, HandlerTime: 2 * time.Second, CorrelationID: info.CorrelationID, Server: info.Server, Response: info.Response})
	})
}

func TestHandlerThatEndsItsGoroutine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo, "exit": func(context.Context, *Request) ([]byte, error) {
			runtime.Goexit()
			return nil, nil
		}}, WithWorkers(1))
		for range 3 {
			putRequest(b, request("exit"))
		}
		putRequest(b, request("m"))
		settle()
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 4)
		for i, want := range []any{"internal", "internal", "internal", nil} {
			wantSame(t, "code", responses[i].Headers[wire.HeaderCode], want)
		}
		wantSame(t, "stats", s.Stats(), ServerStats{Requests: 4, DefaultExchange: 4, OK: 1, Failed: 3, Workers: 1})
	})
}

func TestServerLogsWhatTheCallerIsNotTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.DebugLevel)
		b, s := serve(t, handlers{
			"fails":  func(context.Context, *Request) ([]byte, error) { return nil, errors.New("disk on fire") },
			"panics": func(context.Context, *Request) ([]byte, error) { panic("disk on fire") },
		}, WithLogger(log))
		putRequest(b, request("fails"))
		putRequest(b, request("panics"))
		settle()
		for _, a := range takeResponses(b) {
			if strings.Contains(string(a.Body), "fire") || a.Headers[wire.HeaderCode] != "internal" {
				t.Errorf("answer %+v", a)
			}
		}
		wantSame(t, "logged failures", logs.FilterMessage("handler failed").FilterField(zap.String("correlation_id", "id")).Len(), 1)
		wantSame(t, "logged panics", logs.FilterMessage("handler panicked").Len(), 1)
		wantSame(t, "stats", s.Stats(), ServerStats{Requests: 2, DefaultExchange: 2, Failed: 2, Panics: 1, Workers: DefaultWorkers})
	})
}

func TestResponseTooLarge(t *testing.T) {
	t.Parallel()
	const limit = 1000
	long := strings.Repeat("x", limit+1)
	for _, c := range []struct {
		name string
		h    Handler
		code Code
	}{
		{"result", func(context.Context, *Request) ([]byte, error) { return []byte(long), nil }, CodeResourceExhausted},
		{"error", func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeAborted, "%s", long) }, CodeAborted},
		{"result at the limit", func(context.Context, *Request) ([]byte, error) { return []byte(long[1:]), nil }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, _ := serve(t, handlers{"m": c.h}, WithMaxMessageSize(limit))
				putRequest(b, request("m"))
				settle()
				response := takeResponses(b)[0]
				code, _ := response.Headers[wire.HeaderCode].(string)
				wantSame(t, "code", Code(code), c.code)
				if len(response.Body) > limit || len(bytes.TrimSpace(response.Body)) == 0 {
					t.Errorf("response of %d bytes", len(response.Body))
				}
				wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
			})
		})
	}
}

func TestRequestIsAcknowledgedAfterItsResponseIsConfirmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		b.HoldConfirms()
		putRequest(b, request("m"))
		settle()
		wantSame(t, "responses", len(takeResponses(b)), 1)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 1)
		wantSame(t, "in flight", s.Stats().InFlight, 1)
		b.ReleaseConfirms()
		settle()
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}

func TestResponseThatTheBrokerRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		refusals  int
		responses int
		warns     int
	}{
		{"for a while", 10, 1, 0},
		{"until the caller's time is over", 1000, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, logs := observed(zap.WarnLevel)
				b, s := serve(t, handlers{"m": echo}, WithLogger(log))
				b.Fail(rawQueue, slices.Repeat([]brokertest.Fault{brokertest.FaultNack}, c.refusals)...)
				msg := request("m")
				msg.Headers = amqp.Table{wire.HeaderTimeout: int64(20_000)}
				putRequest(b, msg)
				pass(25 * time.Second)
				settle()
				wantSame(t, "published", len(b.MessagesTo(rawQueue)) <= 60, true) // with pauses of up to 1 s
				wantSame(t, "responses", len(takeResponses(b)), c.responses)
				wantSame(t, "warnings", logs.Len(), c.warns)
				wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
			})
		})
	}
}

// mostAtOnce returns a slow handler that records its most concurrent runs.
func mostAtOnce(running, most *atomic.Int64) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		return slow(ctx, req)
	}
}

func TestWorkersAndPrefetchBoundTheServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int64
		b, _ := serve(t, handlers{"m": mostAtOnce(&running, &most)}, WithWorkers(3), WithPrefetch(5))
		for range 20 {
			putRequest(b, request("m"))
		}
		settle()
		wantSame(t, "running", running.Load(), 3)
		wantSame(t, "handed out", b.Unacked(DefaultQueue), 5)
		wantSame(t, "left in the queue", b.Ready(DefaultQueue), 15)
		pass(time.Minute)
		wantSame(t, "responses", len(takeResponses(b)), 20)
		wantSame(t, "most at once", most.Load(), 3)
	})
}

func TestServersShareAQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var first, second atomic.Int64
		b, _ := serve(t, handlers{"m": counted(&first, slow)}, WithWorkers(2))
		ready(t, startServer(t, b, handlers{"m": counted(&second, slow)}, WithWorkers(2)).WaitReady)
		for range 20 {
			putRequest(b, request("m"))
		}
		pass(time.Minute)
		wantSame(t, "responses", len(takeResponses(b)), 20)
		wantSame(t, "share of the first", first.Load(), 10)
		wantSame(t, "share of the second", second.Load(), 10)
	})
}

func TestHandleRefusesBadRegistrations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, s := serve(t, handlers{"m": echo, strings.Repeat("x", 255): echo})
		for text, err := range map[string]error{
			"method name of 0 bytes":   s.Handle("", echo),
			"method name of 256 bytes": s.Handle(strings.Repeat("x", 256), echo),
			"no handler":               s.Handle("n", nil),
			"registered twice":         s.Handle("m", echo),
			"while serving":            s.Handle("n", echo),
			"Serve was called twice":   s.Serve(t.Context()),
		} {
			wantTexts(t, err, text)
		}
	})
}

// drained waits for Serve and checks its error and its duration.
func drained(t *testing.T, s *running, want error, takes time.Duration) {
	t.Helper()
	begun := time.Now()
	if err := s.wait(t); !errors.Is(err, want) {
		t.Errorf("Serve returned %v, want %v", err, want)
	}
	if took := time.Since(begun); took < takes || took > takes+time.Second {
		t.Errorf("took %v, want about %v", took, takes)
	}
	wantSame(t, "state", s.Status().State, StateClosed)
}
