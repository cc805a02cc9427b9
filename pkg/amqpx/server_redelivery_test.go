package amqpx

import (
	"context"
	"math"
	"strconv"
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

// supervised starts a server whenever a handler has killed the previous server, like an orchestrator.
// A kill is a hard stop: requests in progress get no response.
func supervised(t *testing.T, b *brokertest.Broker, methods func(kill func()) handlers, opts ...ServerOption) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			s, err := NewServer(testURL, append([]ServerOption{onBroker(b)}, opts...)...)
			if err != nil {
				t.Error(err)
				return
			}
			for name, h := range methods(s.Close) {
				if err := s.Handle(name, h); err != nil {
					t.Error(err)
				}
			}
			_ = s.Serve(ctx)
		}
	}()
	t.Cleanup(func() {
		stop()
		<-over
	})
	settle()
}

// killing returns a handler that kills its server.
func killing(runs *atomic.Int64, kill func()) Handler {
	return counted(runs, func(ctx context.Context, req *Request) ([]byte, error) {
		kill()
		return untilDone(ctx, req)
	})
}

func TestRequestThatKillsEveryServerEndsInTheDeadLetters(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		opts  []ServerOption
		runs  int64
		queue Queue
	}{
		{name: "default limit", runs: DefaultDeliveryLimit, queue: Queue{Name: DefaultQueue}},
		{name: "limit 1", opts: []ServerOption{WithDeliveryLimit(1)}, runs: 1, queue: Queue{Name: DefaultQueue}},
		{name: "limit 2", opts: []ServerOption{WithDeliveryLimit(2)}, runs: 2, queue: Queue{Name: DefaultQueue}},
		{name: "limit 9, quorum queue", opts: []ServerOption{WithDeliveryLimit(9)}, runs: 9, queue: Queue{Name: "q", Type: QueueQuorum}},
		{name: "queue that is not durable", runs: DefaultDeliveryLimit, queue: Queue{Name: "q", Transient: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b := brokertest.New()
				supervised(t, b, func(kill func()) handlers {
					return handlers{"kill": killing(&runs, kill), "m": echo}
				}, append(c.opts, WithQueue(c.queue))...)
				client := startClient(t, b, WithQueue(c.queue))
				ready(t, client.WaitReady)
				got := <-goCall(client, within(t, time.Hour), "kill", []byte("poison"), WithIdempotencyKey("key"))
				wantSame(t, "code", CodeOf(got.err), CodeInternal)
				wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
				wantTexts(t, got.err, `moved to queue "`+c.queue.Name+`.dead"`)
				wantSame(t, "executions", runs.Load(), c.runs)
				wantDead(t, b, c.queue.Name+".dead", c.runs)
				wantSame(t, "left", b.Ready(c.queue.Name)+b.Ready(c.queue.Name+".retry"), 0)
				wantResponse(t, <-goCall(client, within(t, time.Minute), "m", []byte("x")), "x")
			})
		})
	}
}

// wantDead checks the only dead letter.
func wantDead(t *testing.T, b *brokertest.Broker, queue string, deliveries int64) {
	t.Helper()
	b.With(func(b *brokertest.Broker) {
		q := b.Queues[queue]
		if len(q.Messages) != 1 {
			t.Fatalf("%d dead letters", len(q.Messages))
		}
		m := q.Messages[0].Msg
		wantSame(t, "durable", q.Durable, true)
		wantSame(t, "bound", q.Args["x-max-length"], any(int64(maxDead)))
		wantSame(t, "body", string(m.Body), "poison")
		wantSame(t, "method", m.AppId, "kill")
		wantSame(t, "key", m.MessageId, "key")
		wantSame(t, "delivery mode", m.DeliveryMode, amqp.Persistent)
		wantSame(t, "expiration", m.Expiration, "")
		wantSame(t, "deliveries", m.Headers[wire.HeaderDeliveries], any(deliveries))
		wantSame(t, "its queue", m.Headers[wire.HeaderDeadQueue], any(strings.TrimSuffix(queue, ".dead")))
		if reason, _ := m.Headers[wire.HeaderDeadReason].(string); !strings.Contains(reason, "never acknowledged") {
			t.Errorf("reason %q", reason)
		}
		if at, _ := m.Headers[wire.HeaderDeadTime].(time.Time); time.Since(at) > time.Hour || at.IsZero() {
			t.Errorf("time %v", at)
		}
	})
}

// A dead letter that is moved back to the request queue runs without its caller's short
// deadline.
func TestDeadLetterThatIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b := brokertest.New()
		supervised(t, b, func(kill func()) handlers {
			return handlers{"m": func(ctx context.Context, req *Request) ([]byte, error) {
				if runs.Add(1) < DefaultDeliveryLimit+1 {
					pass(10 * time.Millisecond)
					kill()
					return untilDone(ctx, req)
				}
				pass(time.Minute)
				return []byte("mended"), ctx.Err()
			}}
		}, WithDeliveryLimit(DefaultDeliveryLimit))
		b.With(func(b *brokertest.Broker) { _ = b.Declare(rawQueue, true, nil) })
		putRequest(b, amqp.Publishing{
			AppId: "m", ReplyTo: rawQueue, CorrelationId: "1", Expiration: "60000", Headers: amqp.Table{wire.HeaderTimeout: int64(1000)},
		})
		for b.Ready(DefaultQueue+".dead") == 0 {
			pass(time.Second)
		}
		wantSame(t, "responses", len(takeResponses(b)), 1)
		b.With(func(b *brokertest.Broker) {
			dead := b.Queues[DefaultQueue+".dead"]
			b.Queues[DefaultQueue].Messages, dead.Messages = dead.Messages, nil
			b.Dispatch(b.Queues[DefaultQueue])
		})
		pass(2 * time.Minute)
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 1)
		wantSame(t, "answer", string(responses[0].Body), "mended")
	})
}

// Requests that are lost beside a killer request, several times, are still answered.
func TestKillerTakesNoOtherRequestWithIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var kills atomic.Int64
		b := brokertest.New()
		for range 3 {
			supervised(t, b, func(kill func()) handlers {
				return handlers{"kill": killing(&kills, kill), "slow": slow}
			}, WithWorkers(8), WithBackoff(time.Millisecond, time.Millisecond))
		}
		client := startClient(t, b)
		ready(t, client.WaitReady)
		killer := goCall(client, within(t, 5*time.Minute), "kill", nil)
		var calls []<-chan result
		for range 100 {
			calls = append(calls, goCall(client, within(t, 5*time.Minute), "slow", []byte("x")))
		}
		for _, done := range calls {
			wantResponse(t, <-done, "x")
		}
		wantSame(t, "code of the killer", CodeOf((<-killer).err), CodeInternal)
		wantSame(t, "kills", kills.Load(), DefaultDeliveryLimit)
		b.With(func(b *brokertest.Broker) {
			wantSame(t, "dead letters", len(b.Queues[DefaultQueue+".dead"].Messages), 1)
		})
	})
}

// A server that dies while republishing a killer request must not leave two copies.
func TestKillersDoNotMultiply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const killers = 8
		var kills [killers]atomic.Int64
		b := brokertest.New()
		for range 2 {
			supervised(t, b, func(kill func()) handlers {
				return handlers{"kill": func(ctx context.Context, req *Request) ([]byte, error) {
					return killing(&kills[req.Body[0]], kill)(ctx, req)
				}}
			}, WithBackoff(time.Millisecond, time.Millisecond))
		}
		client := startClient(t, b)
		ready(t, client.WaitReady)
		var calls []<-chan result
		for i := range killers {
			calls = append(calls, goCall(client, within(t, time.Hour), "kill", []byte{byte(i)}))
		}
		for i, done := range calls {
			wantSame(t, "code", CodeOf((<-done).err), CodeInternal)
			if n := kills[i].Load(); n > DefaultDeliveryLimit {
				t.Errorf("killer %d ran %d times", i, n)
			}
		}
		b.With(func(b *brokertest.Broker) {
			wantSame(t, "dead letters", len(b.Queues[DefaultQueue+".dead"].Messages), killers)
		})
	})
}

func TestNoDeliveryLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b := brokertest.New()
		supervised(t, b, func(kill func()) handlers {
			return handlers{"kill": counted(&runs, func(ctx context.Context, req *Request) ([]byte, error) {
				if runs.Load() < 20 {
					kill()
					return untilDone(ctx, req)
				}
				wantSame(t, "redelivered", req.Redelivered, true)
				return []byte("at last"), nil
			})}
		}, WithDeliveryLimit(0))
		client := startClient(t, b)
		ready(t, client.WaitReady)
		wantResponse(t, <-goCall(client, within(t, time.Hour), "kill", nil), "at last")
		wantSame(t, "executions", runs.Load(), 20)
		wantSame(t, "queues", len(b.QueueNames()), 2)
	})
}

func TestAtMostOnce(t *testing.T) {
	t.Parallel()
	resent := with(keyed("m", "key", "id"), func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderResent: true} })
	for _, c := range []struct {
		name string
		put  func(b *brokertest.Broker)
		runs int64
		code any
	}{
		{"for the first time", func(b *brokertest.Broker) { putRequest(b, keyed("m", "key", "id")) }, 1, nil},
		{"handed out before", func(b *brokertest.Broker) { putLost(b, keyed("m", "key", "id")) }, 0, "unavailable"},
		{"sent before", func(b *brokertest.Broker) { putRequest(b, resent) }, 0, "unavailable"},
		{"sent before, to this server", func(b *brokertest.Broker) {
			putRequest(b, keyed("m", "key", "id"))
			settle()
			takeResponses(b)
			putRequest(b, resent)
		}, 1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b := brokertest.New()
				b.With(func(b *brokertest.Broker) { _ = b.Declare(rawQueue, true, nil) })
				s, err := NewServer(testURL, onBroker(b))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Handle("m", counted(&runs, echo), AtMostOnce()); err != nil {
					t.Fatal(err)
				}
				go s.Serve(t.Context()) //nolint:errcheck // ends with the test.
				ready(t, s.WaitReady)
				c.put(b)
				settle()
				response := takeResponses(b)[0]
				wantSame(t, "code", response.Headers[wire.HeaderCode], c.code)
				if ran, said := response.Headers[wire.HeaderRan]; said {
					t.Errorf("the response says %s: %v", wire.HeaderRan, ran)
				}
				wantSame(t, "executions", runs.Load(), c.runs)
				wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue)+b.Ready(DefaultQueue+".retry"), 0)
			})
		})
	}
}

// A redelivered request may have run in another server, so a refusal must not say "did not run".
func TestRefusalOfALostRequestDoesNotSayThatItDidNotRun(t *testing.T) {
	t.Parallel()
	budget := func(ms int64) amqp.Publishing {
		return with(keyed("m", "key", "id"), func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderTimeout: ms} })
	}
	for _, c := range []struct {
		name string
		msg  amqp.Publishing
		code string
	}{
		{"unknown method", request("nobody knows"), "unimplemented"},
		{"expired", budget(0), "deadline_exceeded"},
		{"shed", budget(1000), "resource_exhausted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": slow}, WithWorkers(1), WithPrefetch(10))
				s.load.average.Store(int64(time.Minute)) // as after handlers of one minute
				if c.name == "shed" {
					putRequest(b, request("m"))
					settle()
				}
				putLost(b, c.msg)
				pass(time.Minute)
				response := takeResponses(b)[0]
				wantSame(t, "code", response.Headers[wire.HeaderCode], any(c.code))
				if _, says := response.Headers[wire.HeaderRan]; says {
					t.Errorf("headers %v", response.Headers)
				}
			})
		})
	}
}

// A draining server returns a lost request with the redelivered mark, and a fresh request without
// the mark.
func TestDrainKeepsTheMarkOfALostRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow}, WithWorkers(1), WithPrefetch(4))
		putRequest(b, request("m"))
		settle()
		putLost(b, keyed("m", "key", "lost"))
		putRequest(b, keyed("m", "key", "fresh"))
		settle()
		s.stop()
		if err := s.wait(t); err != nil {
			t.Error(err)
		}
		b.With(func(b *brokertest.Broker) {
			left := b.Queues[DefaultQueue].Messages
			wantSame(t, "left for other servers", len(left), 2)
			for _, m := range left {
				wantSame(t, "marked "+m.Msg.CorrelationId, m.Redelivered, m.Msg.CorrelationId == "lost")
			}
		})
	})
}

// A server sends "did not run" only after a request is acknowledged and cannot be redelivered.
func TestRefusalIsSentAfterItsRequestWasAcknowledged(t *testing.T) {
	t.Parallel()
	for _, f := range []brokertest.Fault{brokertest.FaultNone, brokertest.FaultUnsent, brokertest.FaultCutBefore, brokertest.FaultLostUnconfirmed, brokertest.FaultCutUnconfirmed, brokertest.FaultCutConfirmed} {
		t.Run(strconv.Itoa(int(f)), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": echo})
				b.Fail(rawQueue, f)
				putRequest(b, request("nobody knows"))
				pass(time.Minute)
				responses := takeResponses(b)
				if len(responses) < 1 {
					t.Fatal("no response")
				}
				wantSame(t, "ran", responses[0].Headers[wire.HeaderRan], any(false))
				wantSame(t, "handed out", s.Stats().Requests, 1)
				wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
			})
		})
	}
}

// putLost puts a request into the request queue, marked as redelivered, as after the loss of a
// server.
func putLost(b *brokertest.Broker, msg amqp.Publishing) {
	b.With(func(b *brokertest.Broker) {
		q := b.Queues[DefaultQueue]
		q.Messages = append(q.Messages, &brokertest.Message{Msg: msg, Redelivered: true})
		b.Dispatch(q)
	})
}

func TestLostRequestIsMovedOnceAndRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		msg := with(keyed("m", "key", "id"), func(p *amqp.Publishing) {
			p.Headers = amqp.Table{"mine": "kept", "CC": []any{"elsewhere"}, "x-delivery-count": int64(3)}
			p.Expiration, p.ContentType, p.Type, p.Priority = "5000", "text/plain", "type", 3
		})
		putLost(b, msg)
		settle()
		wantSame(t, "responses", len(takeResponses(b)), 1)
		copies := b.MessagesTo(DefaultQueue)
		wantSame(t, "copies", len(copies), 1)
		got := copies[0]
		wantSame(t, "mandatory", got.Mandatory, true)
		wantSame(t, "headers", len(got.Msg.Headers), 3)
		wantSame(t, "mine", got.Msg.Headers["mine"], any("kept"))
		wantSame(t, "deliveries", got.Msg.Headers[wire.HeaderDeliveries], any(int64(1)))
		wantSame(t, "expiration", got.Msg.Expiration, "5000")
		wantSame(t, "content type", got.Msg.ContentType, "text/plain")
		wantSame(t, "type", got.Msg.Type, "type")
		wantSame(t, "stats", s.Stats(), ServerStats{Requests: 2, OK: 1, Republished: 1, DefaultExchange: 1, Workers: DefaultWorkers})
		wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
	})
}

func TestWhatIsLostTwiceRunsAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int64
		b, s := serve(t, handlers{"m": mostAtOnce(&running, &most)})
		for range 4 {
			putLost(b, with(request("m"), copied(int32(1))))
		}
		pass(time.Minute)
		wantSame(t, "responses", len(takeResponses(b)), 4)
		wantSame(t, "most at once", most.Load(), 1)
		wantSame(t, "to the retry queue", len(b.MessagesTo(DefaultQueue+".retry")), 4)
		wantSame(t, "moved", s.Stats().Republished, 4)
	})
}

func TestMoveThatFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		fault      brokertest.Fault
		reconnects uint64
		warns      int
	}{
		{"refused", brokertest.FaultNack, 0, 1},
		{"link lost, copy did not arrive", brokertest.FaultLostUnconfirmed, 1, 0},
		{"link lost, copy arrived", brokertest.FaultCutUnconfirmed, 1, 0},
		{"link lost after the confirm", brokertest.FaultCutConfirmed, 1, 0},
		{"not written", brokertest.FaultUnsent, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				log, logs := observed(zap.WarnLevel)
				b, s := serve(t, handlers{"m": counted(&runs, echo)}, WithLogger(log))
				b.Fail(DefaultQueue, c.fault)
				putLost(b, keyed("m", "key", "id"))
				pass(time.Minute)
				if responses := len(takeResponses(b)); responses < 1 || responses > 3 { // one for each copy, at most
					t.Errorf("%d answers", responses)
				}
				wantSame(t, "executions", runs.Load(), 1)
				wantSame(t, "reconnects", s.Stats().Reconnects, c.reconnects)
				wantSame(t, "refusals logged", logs.FilterMessage("the broker refused to move a request").Len(), c.warns)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
				wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue)+b.Ready(DefaultQueue+".retry"), 0)
			})
		})
	}
}

// RabbitMQ 3.10 and 3.11 nack every message to a quorum queue on a channel opened while the queue
// elected its leader, until the node of the previous leader is back. A lost request does not wait
// for this node.
func TestMoveThatAChannelWillNeverTake(t *testing.T) {
	t.Parallel()
	for name, elects := range map[string]time.Duration{"after the election": 0, "in the election": 1500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": echo})
				elected := time.Now().Add(elects)
				b.With(func(b *brokertest.Broker) {
					b.Nacks = func(link, key string) bool {
						return key == DefaultQueue && (strings.HasSuffix(link, "publish") || time.Now().Before(elected))
					}
				})
				for range 20 {
					putLost(b, request("m"))
				}
				pass(elects + 2500*time.Millisecond)
				wantSame(t, "responses", len(takeResponses(b)), 20)
				wantSame(t, "reconnects", s.Stats().Reconnects, 0)
				wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
			})
		})
	}
}

// TestResponseThatAChannelWillNeverTake: a response to a quorum reply queue is not lost if the
// queue elected its leader when the server's channel first published to it.
func TestResponseThatAChannelWillNeverTake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		b.With(func(b *brokertest.Broker) {
			b.Nacks = func(link, key string) bool { return key == rawQueue && strings.HasSuffix(link, "publish") }
		})
		putRequest(b, request("m"))
		pass(nackedFor / 2)
		wantSame(t, "responses", len(takeResponses(b)), 1)
		wantSame(t, "reconnects", s.Stats().Reconnects, 0)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
	})
}

// If the target queue of a republish was deleted, the server declares the queue again and loses
// no request.
func TestMoveToAMissingQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		b.With(func(b *brokertest.Broker) { delete(b.Queues, DefaultQueue+".dead") })
		putLost(b, with(request("m"), copied(int64(DefaultDeliveryLimit))))
		pass(time.Minute)
		responses := takeResponses(b)
		wantSame(t, "responses", len(responses), 1)
		wantSame(t, "code", responses[0].Headers[wire.HeaderCode], any("internal"))
		wantSame(t, "dead letters", b.Ready(DefaultQueue+".dead"), 1)
		wantSame(t, "reconnects", s.Stats().Reconnects, 0)
		wantSame(t, "dead", s.Stats().Dead, 1)
	})
}

func TestLostRequestThatCannotBeCopiedIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		putLost(b, with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{"x": math.NaN()} }))
		settle()
		response := takeResponses(b)[0]
		wantSame(t, "code", response.Headers[wire.HeaderCode], any("invalid_argument"))
		wantSame(t, "ran", response.Headers[wire.HeaderRan], nil)
		wantSame(t, "moved", s.Stats().Republished, 0)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
	})
}

func TestCopyHasTheTimeThatIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		msg := with(request("m"), func(p *amqp.Publishing) { p.Headers, p.Expiration = amqp.Table{wire.HeaderTimeout: "9000"}, "8000" })
		d := &delivery{arrived: time.Now(), message: amqp.Delivery{
			AppId: msg.AppId, ReplyTo: msg.ReplyTo, CorrelationId: msg.CorrelationId, Headers: msg.Headers, Expiration: msg.Expiration,
		}}
		req := &inboundRequest{delivery: d, in: decoded(&d.message)}
		for _, step := range []struct {
			after      time.Duration
			budget     int64
			expiration string
		}{{0, 9000, "8000"}, {3 * time.Second, 6000, "5000"}, {10 * time.Second, 1, "1"}} {
			pass(step.after)
			got, err := clonePublishing(req)
			if err != nil {
				t.Fatal(err)
			}
			wantSame(t, "budget", got.Headers[wire.HeaderTimeout], any(step.budget))
			wantSame(t, "expiration", got.Expiration, step.expiration)
		}
		wantSame(t, "original", d.message.Headers[wire.HeaderTimeout], any("9000"))
	})
}
