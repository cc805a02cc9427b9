package amqpx

import (
	"context"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// fleet starts a server whenever the one before was killed by a handler, as an
// orchestrator does. A kill is a hard stop: nothing in hand is answered.
func fleet(t *testing.T, b *fakeBroker, methods func(kill func()) handlers, opts ...ServerOption) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			s, err := NewServer(testURL, append([]ServerOption{b.option()}, opts...)...)
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

// killing is a handler that kills its server.
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
		{name: "default limit", runs: DefaultDeliveryLimit, queue: Queue{Name: DefaultQueue, Durable: true}},
		{name: "limit 1", opts: []ServerOption{WithDeliveryLimit(1)}, runs: 1, queue: Queue{Name: DefaultQueue, Durable: true}},
		{name: "limit 2", opts: []ServerOption{WithDeliveryLimit(2)}, runs: 2, queue: Queue{Name: DefaultQueue, Durable: true}},
		{name: "limit 9, quorum queue", opts: []ServerOption{WithDeliveryLimit(9)}, runs: 9, queue: Queue{Name: "q", Type: QueueQuorum, Durable: true}},
		{name: "queue that is not durable", runs: DefaultDeliveryLimit, queue: Queue{Name: "q"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b := newFakeBroker()
				fleet(t, b, func(kill func()) handlers {
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
				wantSame(t, "left", b.ready(c.queue.Name)+b.ready(c.queue.Name+".retry"), 0)
				wantAnswer(t, <-goCall(client, within(t, time.Minute), "m", []byte("x")), "x")
			})
		})
	}
}

// wantDead looks at the one dead letter.
func wantDead(t *testing.T, b *fakeBroker, queue string, deliveries int64) {
	t.Helper()
	b.with(func(b *fakeBroker) {
		q := b.queues[queue]
		if len(q.messages) != 1 {
			t.Fatalf("%d dead letters", len(q.messages))
		}
		m := q.messages[0].msg
		wantSame(t, "durable", q.durable, true)
		wantSame(t, "bound", q.args["x-max-length"], any(int64(maxDead)))
		wantSame(t, "body", string(m.Body), "poison")
		wantSame(t, "method", m.AppId, "kill")
		wantSame(t, "key", m.MessageId, "key")
		wantSame(t, "delivery mode", m.DeliveryMode, amqp.Persistent)
		wantSame(t, "expiration", m.Expiration, "")
		wantSame(t, "deliveries", m.Headers[headerDeliveries], any(deliveries))
		wantSame(t, "its queue", m.Headers[headerDeadQueue], any(strings.TrimSuffix(queue, ".dead")))
		if reason, _ := m.Headers[headerDeadReason].(string); !strings.Contains(reason, "never answered") {
			t.Errorf("reason %q", reason)
		}
		if at, _ := m.Headers[headerDeadTime].(time.Time); time.Since(at) > time.Hour || at.IsZero() {
			t.Errorf("time %v", at)
		}
	})
}

// A dead letter has all its time when it is tried again, however short its caller's was.
func TestDeadLetterThatIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b := newFakeBroker()
		fleet(t, b, func(kill func()) handlers {
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
		b.with(func(b *fakeBroker) { _ = b.declare(rawQueue, true, nil) })
		b.put(amqp.Publishing{
			AppId: "m", ReplyTo: rawQueue, CorrelationId: "1", Expiration: "60000", Headers: amqp.Table{headerTimeout: int64(1000)},
		})
		for b.ready(DefaultQueue+".dead") == 0 {
			pass(time.Second)
		}
		wantSame(t, "answers", len(b.take()), 1)
		b.with(func(b *fakeBroker) {
			dead := b.queues[DefaultQueue+".dead"]
			b.queues[DefaultQueue].messages, dead.messages = dead.messages, nil
			b.dispatch(b.queues[DefaultQueue])
		})
		pass(2 * time.Minute)
		answers := b.take()
		wantSame(t, "answers", len(answers), 1)
		wantSame(t, "answer", string(answers[0].Body), "mended")
	})
}

// What dies beside a killer, over and over, is answered all the same.
func TestKillerTakesNoOtherRequestWithIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var kills atomic.Int64
		b := newFakeBroker()
		for range 3 {
			fleet(t, b, func(kill func()) handlers {
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
			wantAnswer(t, <-done, "x")
		}
		wantSame(t, "code of the killer", CodeOf((<-killer).err), CodeInternal)
		wantSame(t, "kills", kills.Load(), DefaultDeliveryLimit)
		b.with(func(b *fakeBroker) { wantSame(t, "dead letters", len(b.queues[DefaultQueue+".dead"].messages), 1) })
	})
}

// A server that dies while it moves one killer must not leave it twice.
func TestKillersDoNotMultiply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const killers = 8
		var kills [killers]atomic.Int64
		b := newFakeBroker()
		for range 2 {
			fleet(t, b, func(kill func()) handlers {
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
		b.with(func(b *fakeBroker) {
			wantSame(t, "dead letters", len(b.queues[DefaultQueue+".dead"].messages), killers)
		})
	})
}

func TestNoDeliveryLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b := newFakeBroker()
		fleet(t, b, func(kill func()) handlers {
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
		wantAnswer(t, <-goCall(client, within(t, time.Hour), "kill", nil), "at last")
		wantSame(t, "executions", runs.Load(), 20)
		wantSame(t, "queues", len(b.queueNames()), 2)
	})
}

func TestAtMostOnce(t *testing.T) {
	t.Parallel()
	resent := with(keyed("m", "key", "id"), func(p *amqp.Publishing) { p.Headers = amqp.Table{headerResent: true} })
	for _, c := range []struct {
		name string
		put  func(b *fakeBroker)
		runs int64
		code any
	}{
		{"for the first time", func(b *fakeBroker) { b.put(keyed("m", "key", "id")) }, 1, nil},
		{"handed out before", func(b *fakeBroker) { b.lost(keyed("m", "key", "id")) }, 0, "unavailable"},
		{"sent before", func(b *fakeBroker) { b.put(resent) }, 0, "unavailable"},
		{"sent before, to this server", func(b *fakeBroker) {
			b.put(keyed("m", "key", "id"))
			settle()
			b.take()
			b.put(resent)
		}, 1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b := newFakeBroker()
				b.with(func(b *fakeBroker) { _ = b.declare(rawQueue, true, nil) })
				s, err := NewServer(testURL, b.option())
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
				answer := b.take()[0]
				wantSame(t, "code", answer.Headers[headerCode], c.code)
				if ran, said := answer.Headers[headerRan]; said {
					t.Errorf("the answer says %s: %v", headerRan, ran)
				}
				wantSame(t, "executions", runs.Load(), c.runs)
				wantSame(t, "left", b.ready(DefaultQueue)+b.unacked(DefaultQueue)+b.ready(DefaultQueue+".retry"), 0)
			})
		})
	}
}

// What was in other hands may have run there: no refusal may say otherwise.
func TestRefusalOfALostRequestDoesNotSayThatItDidNotRun(t *testing.T) {
	t.Parallel()
	budget := func(ms int64) amqp.Publishing {
		return with(keyed("m", "key", "id"), func(p *amqp.Publishing) { p.Headers = amqp.Table{headerTimeout: ms} })
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
				s.load.average.Store(int64(time.Minute)) // as if its handlers took that long
				if c.name == "shed" {
					b.put(request("m"))
					settle()
				}
				b.lost(c.msg)
				pass(time.Minute)
				answer := b.take()[0]
				wantSame(t, "code", answer.Headers[headerCode], any(c.code))
				if _, says := answer.Headers[headerRan]; says {
					t.Errorf("headers %v", answer.Headers)
				}
			})
		})
	}
}

// A draining server that was handed a lost request leaves the mark on it.
func TestDrainKeepsTheMarkOfALostRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow}, WithWorkers(1), WithPrefetch(4))
		b.put(request("m"))
		settle()
		b.lost(keyed("m", "key", "lost"))
		b.put(keyed("m", "key", "fresh"))
		settle()
		s.stop()
		if err := s.wait(t); err != nil {
			t.Error(err)
		}
		b.with(func(b *fakeBroker) {
			left := b.queues[DefaultQueue].messages
			wantSame(t, "left for other servers", len(left), 2)
			for _, m := range left {
				wantSame(t, "marked "+m.msg.CorrelationId, m.redelivered, m.msg.CorrelationId == "lost")
			}
		})
	})
}

// "Did not run" is only said of a request that cannot come again.
func TestRefusalIsSentAfterItsRequestWasAcknowledged(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{faultNone, faultUnsent, faultCutBefore, faultLostUnconfirmed, faultCutUnconfirmed, faultCutConfirmed} {
		t.Run(strconv.Itoa(int(f)), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": echo})
				b.fail(rawQueue, f)
				b.put(request("nobody knows"))
				pass(time.Minute)
				answers := b.take()
				if len(answers) < 1 {
					t.Fatal("no answer")
				}
				wantSame(t, "ran", answers[0].Headers[headerRan], any(false))
				wantSame(t, "handed out", s.Stats().Requests, 1)
				wantSame(t, "left", b.ready(DefaultQueue)+b.unacked(DefaultQueue), 0)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
			})
		})
	}
}
