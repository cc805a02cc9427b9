package amqpx

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

func TestDrainOfAnIdleServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		s.stop()
		drained(t, s, nil, 0)
		wantSame(t, "connections", b.OpenLinks(), 0)
		putRequest(b, request("m"))
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), 1)
		wantIs(t, s.WaitReady(t.Context()), ErrClosed)
	})
}

func TestDrainBeforeTheFirstConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnDial = refusing(1<<30, brokertest.ErrCut)
		s := startServer(t, b, handlers{"m": echo})
		pass(time.Minute)
		s.stop()
		drained(t, s, nil, 0)
	})
}

func TestDrainLetsHandlersFinish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow})
		for range 5 {
			putRequest(b, request("m"))
		}
		settle()
		s.stop()
		settle()
		wantSame(t, "state", s.Status().State, StateDraining)
		wantIs(t, s.WaitReady(t.Context()), ErrClosed)
		putRequest(b, request("m"))
		drained(t, s, nil, 2*time.Second)
		wantSame(t, "responses", len(takeResponses(b)), 5)
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), 1)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
	})
}

func TestDrainGivesBackAtOnceWhatNoWorkerStarted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow}, WithWorkers(2), WithPrefetch(6))
		for range 6 {
			putRequest(b, request("m"))
		}
		settle()
		s.stop()
		settle()
		wantSame(t, "given back", b.Ready(DefaultQueue), 4)
		drained(t, s, nil, 2*time.Second)
		wantSame(t, "responses", len(takeResponses(b)), 2)
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), 4)
		wantSame(t, "returned", s.Stats().Requeued, 4)
	})
}

func TestDrainWaitsUntilResponsesAreConfirmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		b.HoldConfirms()
		putRequest(b, request("m"))
		settle()
		s.stop()
		go func() {
			pass(3 * time.Second)
			b.ReleaseConfirms()
		}()
		drained(t, s, nil, 3*time.Second)
		wantSame(t, "unacknowledged or requeued", b.Unacked(DefaultQueue)+b.Ready(DefaultQueue), 0)
	})
}

func TestDrainDeliversResponsesOverANewConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow})
		putRequest(b, request("m"))
		settle()
		s.stop()
		settle()
		b.With(func(b *brokertest.Broker) { b.OnDial = refusing(5, brokertest.ErrCut) })
		b.Kick(nil)
		begun := time.Now()
		if err := s.wait(t); err != nil {
			t.Errorf("Serve returned %v", err)
		}
		if took := time.Since(begun); took < 2*time.Second || took > 10*time.Second {
			t.Errorf("took %v", took)
		}
		wantSame(t, "responses", len(takeResponses(b)), 1)
		b.With(func(b *brokertest.Broker) { wantSame(t, "consumers", len(b.Queues[DefaultQueue].Consumers), 0) })
	})
}

func TestDrainWithoutAConnectionEndsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow}, WithDrainTimeout(30*time.Second))
		putRequest(b, request("m"))
		settle()
		b.With(func(b *brokertest.Broker) { b.OnDial = refusing(1<<30, brokertest.ErrCut) })
		b.Kick(nil)
		settle()
		s.stop()
		drained(t, s, ErrDrainTimeout, 31*time.Second)
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), 1)
	})
}

func TestDrainCutsOffHandlersThatTakeTooLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newStepped()
		b, s := serve(t, handlers{"m": h.handle}, WithDrainTimeout(5*time.Second))
		putRequest(b, request("m"))
		<-h.begun
		s.stop()
		drained(t, s, ErrDrainTimeout, 5*time.Second)
		wantSame(t, "responses", len(takeResponses(b)), 0)
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), 1)
	})
}

func TestDrainLeavesBehindAHandlerThatIgnoresItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b, s := serve(t, handlers{"m": func(context.Context, *Request) ([]byte, error) {
			<-release
			return []byte("too late"), nil
		}}, WithDrainTimeout(5*time.Second))
		putRequest(b, request("m"))
		settle()
		s.stop()
		drained(t, s, ErrDrainTimeout, 5*time.Second+hardStopGrace)
		close(release)
		settle() // the handler's goroutine must end before the bubble
		wantSame(t, "responses", len(takeResponses(b)), 0)
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), 1)
	})
}

func TestSecondStopCutsTheDrainShort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newStepped()
		b, s := serve(t, handlers{"m": h.handle})
		putRequest(b, request("m"))
		<-h.begun
		s.stop()
		pass(3 * time.Second)
		s.Close()
		s.Close()
		drained(t, s, ErrDrainTimeout, 0)
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), 1)
	})
}

func TestCloseOfAnIdleServerCutsOffNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		s.Close()
		drained(t, s, nil, 0)
		wantSame(t, "connections", b.OpenLinks(), 0)
	})
}

func TestCloseWithoutStopEndsServe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newStepped()
		b, s := serve(t, handlers{"m": h.handle})
		putRequest(b, request("m"))
		<-h.begun
		s.Close()
		drained(t, s, ErrDrainTimeout, 0)
		wantSame(t, "connections", b.OpenLinks(), 0)
	})
}

func TestDrainLosesNoCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": slow}, WithBackoff(time.Millisecond, 10*time.Millisecond))
		var calls []<-chan result
		for range 500 {
			calls = append(calls, goCall(r.client, within(t, time.Minute), "m", []byte("x")))
		}
		settle()
		second := startServer(t, r.broker, handlers{"m": slow})
		ready(t, second.WaitReady)
		r.server.stop()
		for _, done := range calls {
			wantResponse(t, <-done, "x")
		}
		drained(t, r.server, nil, 0)
		wantSame(t, "second responses", r.client.Stats().Duplicates, 0)
	})
}

// The server delays acknowledgements to send several together, but not when much of the prefetch
// is unacknowledged, when a refusal waits, or in a drain.
func TestAcknowledgementsWaitForEachOther(t *testing.T) {
	t.Parallel()
	const prefetch = 40
	late := serverOption(func(c *serverConfig) { c.ackPause = ackPause })
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo}, late, WithPrefetch(prefetch))
		send := func(n int) {
			for range n {
				putRequest(b, request("m"))
			}
			settle()
		}
		send(3)
		wantSame(t, "responses", len(takeResponses(b)), 3)
		wantSame(t, "unacknowledged at once", b.Unacked(DefaultQueue), 3)
		pass(ackPause)
		wantSame(t, "unacknowledged after the pause", b.Unacked(DefaultQueue), 0)
		send(prefetch / ackShare)
		wantSame(t, "unacknowledged, of many", b.Unacked(DefaultQueue), 0)
		send(1)
		putRequest(b, request("nobody knows"))
		settle()
		wantSame(t, "unacknowledged when a refusal waits for it", b.Unacked(DefaultQueue), 0)
		send(1)
		begun := time.Now()
		s.stop()
		if err := s.wait(t); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > ackPause {
			t.Errorf("the drain took %v", took)
		}
		wantSame(t, "unacknowledged after the drain", b.Unacked(DefaultQueue), 0)
	})
}

// A drain that begins while the consumers start waits for the consumers, and returns their
// deliveries without the redelivered mark.
func TestDrainWhileConsumersStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		starting := make(chan struct{})
		b.With(func(b *brokertest.Broker) {
			_ = b.Declare(DefaultQueue, true, nil)
			for range 5 {
				b.Queues[DefaultQueue].Messages = append(b.Queues[DefaultQueue].Messages, &brokertest.Message{Msg: request("m")})
			}
			b.OnCall = func(op, queue string) error {
				if op == "consume" && queue == DefaultQueue+".retry" {
					close(starting)
					pass(5 * time.Millisecond)
				}
				return nil
			}
		})
		s := startServer(t, b, handlers{"m": untilDone})
		<-starting
		s.stop()
		if err := s.wait(t); err != nil {
			t.Errorf("Serve: %v", err)
		}
		b.With(func(b *brokertest.Broker) {
			left := b.Queues[DefaultQueue].Messages
			wantSame(t, "requests left", len(left), 5)
			for _, m := range left {
				wantSame(t, "marked as handed out", m.Redelivered, false)
			}
		})
	})
}

// Servers with different methods share a queue. A stopping server leaves requests without a
// started handler to the other servers, because their responses may differ.
func TestStoppingServerLeavesWhatItDoesNotKnowToOthers(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(*running){
		"drained": func(s *running) { s.stop(); settle() },
		"closed":  func(s *running) { s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": slow}, WithWorkers(1), WithPrefetch(6))
				for range 20 { // the server learns how long its handlers take
					putRequest(b, request("m"))
					pass(3 * time.Second)
				}
				takeResponses(b)
				putRequest(b, request("m"))
				settle()
				putRequest(b, request("new"))
				budget := func(id string, ms int64) func(*amqp.Publishing) {
					return func(p *amqp.Publishing) { p.CorrelationId, p.Headers = id, amqp.Table{wire.HeaderTimeout: ms} }
				}
				putRequest(b, with(request("new"), budget("long", 60_000)))
				settle()
				stop(s)
				// The budget is too short for the stopping server, but not for another server.
				putRequest(b, with(request("new"), budget("short", 1000)))
				settle()
				wantSame(t, "refused", s.Stats().Refused, 0)
				startServer(t, b, handlers{"m": slow, "new": echo})
				settle()
				if err := s.wait(t); name == "drained" && err != nil {
					t.Errorf("Serve returned %v", err)
				}
				pass(time.Minute)
				responses := takeResponses(b)
				wantSame(t, "responses", len(responses), 4)
				for _, a := range responses {
					wantSame(t, "code", a.Headers[wire.HeaderCode], nil)
				}
				wantSame(t, "refused", s.Stats().Refused, 0)
			})
		})
	}
}

// A draining server still refuses a malformed or expired request, as every server would.
func TestDrainingServerStillRefusesWhatEveryServerWould(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow}, WithWorkers(1), WithPrefetch(6))
		putRequest(b, request("m"))
		settle()
		putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderTimeout: "soon"} }))
		putRequest(b, with(request("new"), func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderTimeout: int64(1000)} }))
		pass(1500 * time.Millisecond)
		s.stop()
		settle()
		codes := map[any]int{}
		for _, a := range takeResponses(b) {
			codes[a.Headers[wire.HeaderCode]]++
			wantSame(t, "ran", a.Headers[wire.HeaderRan], any(false))
		}
		wantSame(t, "malformed", codes["invalid_argument"], 1)
		wantSame(t, "expired", codes["deadline_exceeded"], 1)
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), 0)
		drained(t, s, nil, 500*time.Millisecond)
	})
}

func TestNothingIsStartedOnceCloseHasReturned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		s.Close()
		putRequest(b, request("m"))
		putRequest(b, request("new"))
		_ = s.wait(t)
		wantSame(t, "responses", len(takeResponses(b)), 0)
		wantSame(t, "executions", s.Stats().OK, 0)
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), 2)
	})
}

// Serve returns after the end of every worker, also of a worker that replaces a worker whose
// handler ended its goroutine during a hard stop.
func TestCloseWaitsForReplacedWorkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const workers = 8
		b := brokertest.New()
		s, err := NewServer(testURL, onBroker(b), WithWorkers(workers), WithPrefetch(workers))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Handle("exit", func(ctx context.Context, _ *Request) ([]byte, error) {
			<-ctx.Done()
			runtime.Goexit()
			return nil, nil
		}); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() {
			for range workers {
				putRequest(b, request("exit"))
			}
		})
		time.AfterFunc(2*time.Second, s.Close)
		err = s.Serve(t.Context())
		wantSame(t, "workers", s.workers.Count(), 0)
		wantIs(t, err, ErrDrainTimeout)
		wantSame(t, "left for other servers", b.Ready(DefaultQueue), workers)
	})
}

// A drain does not wait until a blocked broker takes copies of requests, and requeues the
// originals.
func TestDrainGivesBackWhatWaitsForABlockedBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow}, WithWorkers(1), WithPrefetch(4))
		b.With(func(b *brokertest.Broker) { b.Links[0].Published = true })
		b.SetAlarm("low on memory")
		settle()
		redelivered(b, request("m"))
		settle()
		putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.ReplyTo = "" })) // runs for 2 s, without a response
		putRequest(b, request("m"))
		putRequest(b, request("m"))
		settle()
		wantSame(t, "copies", s.Stats().Republished, 1)
		s.stop()
		drained(t, s, nil, 2*time.Second)
		wantSame(t, "left in the queue", b.Ready(DefaultQueue), 3)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
	})
}

// After the start of a drain, a request that waits for the confirms of others' copies does not
// run.
func TestDrainGivesBackWhatWaitsForMoves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": counted(&runs, echo)}, WithWorkers(2))
		b.HoldConfirms()
		redelivered(b, request("m"))
		settle()
		putRequest(b, with(request("m"), copied(int64(1))))
		settle()
		s.stop()
		settle()
		wantSame(t, "returned", s.Stats().Requeued > 0, true)
		b.ReleaseConfirms()
		drained(t, s, nil, 0)
		wantSame(t, "runs", runs.Load(), 0)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
		wantSame(t, "left in the queue", b.Ready(DefaultQueue), 2)
	})
}
