package amqpx

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// large is the size of the smallest large body.
const large = transport.SmallBody + 1

// startBounded starts a server with connections that drop bodies beyond the limits, like real
// connections.
func startBounded(t *testing.T, b *brokertest.Broker, methods handlers, opts ...ServerOption) *running {
	t.Helper()
	return serving(t, b, startServer(t, b, methods, append([]ServerOption{boundedBy(b)}, opts...)...))
}

// boundedBy returns an option that makes the server's own connections drop bodies beyond the
// server's limits.
func boundedBy(b *brokertest.Broker) ServerOption {
	return serverOption(func(c *serverConfig) {
		b.Limits = func(conn string) transport.ContentLimits {
			if !strings.Contains(conn, " server") {
				return transport.ContentLimits{}
			}
			return transport.ContentLimits{MaxBody: c.maxMessageSize, InHand: c.inHand}
		}
	})
}

// serving waits until a server is ready and declares rawQueue.
func serving(t *testing.T, b *brokertest.Broker, s *running) *running {
	t.Helper()
	ready(t, s.WaitReady)
	b.With(func(b *brokertest.Broker) { _ = b.Declare(rawQueue, false, nil) })
	return s
}

// bulky returns a raw request of a program without the contract.
func bulky(method, id string, size int) amqp.Publishing {
	return amqp.Publishing{AppId: method, CorrelationId: id, ReplyTo: rawQueue, Body: bytes.Repeat([]byte("x"), size)}
}

// wantEmpty checks that no request is left in the queues or in the server.
func wantEmpty(t *testing.T, b *brokertest.Broker, s *running) {
	t.Helper()
	wantSame(t, "bytes in hand", s.Stats().BytesInHand, 0)
	wantSame(t, "in flight", s.Stats().InFlight, 0)
	for _, queue := range []string{DefaultQueue, DefaultQueue + retrySuffix, DefaultQueue + deadSuffix} {
		wantSame(t, queue, b.Ready(queue)+b.Unacked(queue), 0)
	}
}

func TestRequestBeyondTheLimit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		queue  string
		change func(*amqp.Publishing)
		ran    any // the header of the response
	}{
		"fresh":       {DefaultQueue, func(*amqp.Publishing) {}, false},
		"in .batch":   {batchQueueName, func(*amqp.Publishing) {}, false},
		"in .retry":   {DefaultQueue + retrySuffix, copied(int64(2)), nil},
		"sent again":  {DefaultQueue, func(m *amqp.Publishing) { m.Headers = amqp.Table{wire.HeaderResent: true} }, nil},
		"no such one": {DefaultQueue, func(m *amqp.Publishing) { m.AppId = "unknown" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				var runs atomic.Int64
				s := startBounded(t, b, handlers{"m": counted(&runs, echo)}, WithMaxMessageSize(large), WithBatch(BatchAuto))
				msg := bulky("m", "1", large+1)
				c.change(&msg)
				b.PutIn(c.queue, msg)
				settle()
				responses := takeResponses(b)
				if len(responses) != 1 {
					t.Fatalf("%d answers", len(responses))
				}
				wantSame(t, "code", responses[0].Headers[wire.HeaderCode], any(string(CodeInvalidArgument)))
				wantSame(t, "ran", responses[0].Headers[wire.HeaderRan], c.ran)
				want := fmt.Sprintf("%v: body of %d bytes, limit %d", ErrTooLarge, large+1, large)
				wantSame(t, "text", string(responses[0].Body), want)
				wantSame(t, "executions", runs.Load(), 0)
				wantSame(t, "too large", s.Stats().TooLarge, 1)
				putRequest(b, bulky("m", "2", large))
				settle()
				wantSame(t, "responses to the next", len(takeResponses(b)), 1)
				pass(time.Second)
				wantEmpty(t, b, s)
			})
		})
	}
}

func TestOneWayRequestBeyondTheLimitIsRejected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		s := startBounded(t, b, handlers{"m": echo}, WithMaxMessageSize(10), WithBatch(BatchAuto))
		one := bulky("m", "1", 11)
		one.ReplyTo = ""
		putRequest(b, one)
		b.PutIn(batchQueueName, amqp.Publishing{ContentType: wire.ContentTypeRequests, Body: make([]byte, transport.LargestBatch+1)})
		pass(time.Second)
		b.With(func(b *brokertest.Broker) { wantSame(t, "rejected", b.Rejected, 2) })
		wantSame(t, "too large", s.Stats().TooLarge, 2)
		wantEmpty(t, b, s)
		putRequest(b, bulky("m", "2", 5)) // acknowledgements of many still work
		pass(time.Second)
		wantSame(t, "responses", len(takeResponses(b)), 1)
		wantEmpty(t, b, s)
	})
}

func TestBatchedRequestBeyondTheLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		s := startBounded(t, b, handlers{"m": echo}, WithMaxMessageSize(10), WithBatch(BatchAuto))
		var body []byte
		for id, size := range map[string]int{"big": 11, "fits": 10} {
			body = (&wire.Request{Method: "m", ID: id, Body: make([]byte, size)}).AppendTo(body, time.Minute)
		}
		b.PutIn(batchQueueName, amqp.Publishing{ContentType: wire.ContentTypeRequests, ReplyTo: rawQueue, Body: body})
		pass(time.Second)
		codes := map[string]Code{}
		for _, msg := range takeResponses(b) {
			if msg.ContentType != wire.ContentTypeResponses { // the first response travels alone
				code, _ := msg.Headers[wire.HeaderCode].(string)
				codes[msg.CorrelationId] = Code(code)
				continue
			}
			responses, err := wire.DecodeResponses(msg.Body, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range responses {
				codes[string(a.ID)] = ""
				if a.Failure != nil {
					codes[string(a.ID)] = Code(a.Failure.Code)
				}
			}
		}
		wantSame(t, "responses", len(codes), 2)
		wantSame(t, "the large one", codes["big"], CodeInvalidArgument)
		wantSame(t, "the other", codes["fits"], Code(""))
		wantSame(t, "too large", s.Stats().TooLarge, 1)
		wantEmpty(t, b, s)
	})
}

// Every request is answered once, even if the server has room for few bodies at a time, and with
// any delivery limit.
func TestMoreThanThereIsRoomFor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		opts    []ServerOption
		refused bool // requests without room are refused
	}{
		"default limit": {nil, false},
		"no limit":      {[]ServerOption{WithDeliveryLimit(0)}, false},
		"limit 3":       {[]ServerOption{WithDeliveryLimit(3)}, false},
		"limit 1":       {[]ServerOption{WithDeliveryLimit(1)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const calls = 24
				b := brokertest.New()
				slow := func(_ context.Context, req *Request) ([]byte, error) {
					<-time.After(100 * time.Millisecond)
					return req.Body[:1], nil
				}
				s := startBounded(t, b, handlers{"m": slow, "small": echo}, append(c.opts, WithMaxMessageSize(large), WithMaxBytesInHand(3*large))...)
				var most atomic.Int64
				stop := make(chan struct{})
				defer close(stop)
				go watchBytes(s, &most, stop)
				for i := range calls {
					putRequest(b, bulky("m", string(rune('a'+i)), large))
				}
				settle()
				putRequest(b, bulky("small", "small", 10)) // is not delayed
				settle()
				first := takeResponses(b)
				wantSame(t, "responses at once", c.refused || len(first) == 1, true)
				responses := map[string]int{}
				for range 10 * calls {
					pass(time.Second)
					for _, a := range takeResponses(b) {
						responses[a.CorrelationId]++
						if code := a.Headers[wire.HeaderCode]; code != nil && (!c.refused || code != string(CodeResourceExhausted)) {
							t.Errorf("code %v: %s", code, a.Body)
						}
					}
				}
				for _, a := range first {
					responses[a.CorrelationId]++
				}
				wantSame(t, "answered", len(responses), calls+1)
				for id, n := range responses {
					wantSame(t, "responses to "+id, n, 1)
				}
				if s.Stats().Deferred == 0 {
					t.Error("all had room")
				}
				if most.Load() > 3*large {
					t.Errorf("%d bytes were in hand", most.Load())
				}
				wantSame(t, "dead letters", s.Stats().Dead, 0)
				wantSame(t, "counted as lost", s.Stats().Republished, 0)
				wantEmpty(t, b, s)
			})
		})
	}
}

func watchBytes(s *running, most *atomic.Int64, stop chan struct{}) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			most.Store(max(most.Load(), s.Stats().BytesInHand))
		case <-stop:
			return
		}
	}
}

func TestNoRoomForARequestThatRunsAtMostOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		release := make(chan struct{})
		hold := func(context.Context, *Request) ([]byte, error) { <-release; return nil, nil }
		s := startBounded(t, b, handlers{"hold": hold, onceMethod: echo}, WithMaxMessageSize(large), WithMaxBytesInHand(large))
		putRequest(b, bulky("hold", "1", large))
		settle()
		putRequest(b, bulky(onceMethod, "2", large))
		pass(time.Second)
		responses := takeResponses(b)
		if len(responses) != 1 {
			t.Fatalf("%d answers", len(responses))
		}
		wantSame(t, "code", responses[0].Headers[wire.HeaderCode], any(string(CodeResourceExhausted)))
		wantSame(t, "ran", responses[0].Headers[wire.HeaderRan], any(false))
		close(release)
		pass(time.Second)
		wantEmpty(t, b, s)
	})
}

// A drain returns unread requests to the queue at once, and so does the end of a session.
func TestUnreadRequestsAreGivenBack(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"drain", "lost link"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				release := make(chan struct{})
				hold := func(context.Context, *Request) ([]byte, error) { <-release; return nil, nil }
				s := startBounded(t, b, handlers{"hold": hold}, WithMaxMessageSize(large), WithMaxBytesInHand(large))
				putRequest(b, bulky("hold", "1", large))
				settle()
				for id := range 5 {
					putRequest(b, bulky("hold", string(rune('a'+id)), large))
				}
				pass(time.Second)
				wantSame(t, "deferred", s.Stats().Deferred, 5)
				if how == "drain" {
					s.stop()
					pass(time.Millisecond)
					wantSame(t, "given back", b.Ready(DefaultQueue), 5)
					close(release)
					wantSame(t, "drain", s.wait(t), nil)
					wantSame(t, "bytes in hand", s.Stats().BytesInHand, 0)
					return
				}
				b.Kick(nil)
				pass(time.Second)
				close(release)
				pass(10 * time.Second)
				wantEmpty(t, b, s)
			})
		})
	}
}

// An idle worker does not keep its last request, with the body, in memory.
func TestServedRequestIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		var served []weak.Pointer[Request]
		keep := func(_ context.Context, req *Request) ([]byte, error) {
			served = append(served, weak.Make(req))
			return nil, nil
		}
		startBounded(t, b, handlers{"m": keep}, WithWorkers(1))
		putRequest(b, bulky("m", "1", 10))
		pass(time.Second)
		wantSame(t, "executions", len(served), 1)
		for range 10 {
			if runtime.GC(); served[0].Value() == nil {
				return
			}
		}
		t.Error("the request is still in memory")
	})
}

// Large requests that kill servers are dead-lettered, even if servers also return some to the
// queue for lack of room. A request that found no room near the broker's delivery limit is refused
// instead; each request gets one of the two.
func TestLargeRequestsThatKillEveryServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const killers = 5
		b := brokertest.New()
		var runs atomic.Int64
		bounded := boundedBy(b)
		supervised(t, b, func(kill func()) handlers {
			return handlers{"kill": killing(&runs, kill), "m": echo}
		}, bounded, WithMaxMessageSize(large), WithMaxBytesInHand(2*large))
		b.With(func(b *brokertest.Broker) { _ = b.Declare(rawQueue, true, nil) })
		for range killers { // all with the same ids
			putRequest(b, bulky("kill", "1", large))
		}
		pass(time.Hour)
		refused := 0
		for _, response := range takeResponses(b) {
			if response.Headers[wire.HeaderCode] == string(CodeResourceExhausted) {
				refused++
			}
		}
		dead := b.Ready(DefaultQueue + deadSuffix)
		wantSame(t, "dead letters and refusals", dead+refused, killers)
		wantSame(t, "some are dead letters", dead > 0, true)
		if n := runs.Load(); n > killers*DefaultDeliveryLimit {
			t.Errorf("%d executions", n)
		}
		putRequest(b, bulky("m", "2", 10))
		pass(time.Second)
		last := takeResponses(b)
		wantSame(t, "the next is answered", last[len(last)-1].CorrelationId, "2")
	})
}
