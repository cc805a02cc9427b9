package amqpx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const batchQueueName = DefaultQueue + ".batch"

// startBatching is a rig whose client knows that servers unpack.
func startBatching(t *testing.T, methods handlers) *rig {
	t.Helper()
	methods["open the lane"] = echo
	r := startRig(t, methods, WithBatch(BatchAuto))
	r.openLane()
	return r
}

// openLane makes the client look for servers that unpack.
func (r *rig) openLane() {
	r.t.Helper()
	wantAnswer(r.t, <-goCall(r.client, within(r.t, time.Minute), "open the lane", nil), "")
	settle()
	if r.client.route.lane.servers.Load() == 0 {
		r.t.Fatal("the lane is not open")
	}
}

// together makes calls that leave in one batch: while others fill the window they wait.
func (r *rig) together(calls func() []<-chan result) []<-chan result {
	r.t.Helper()
	r.broker.holdConfirms()
	var fillers []<-chan result
	for range laneWindow + int(r.client.route.lane.servers.Load()) - 1 {
		fillers = append(fillers, goCall(r.client, within(r.t, time.Minute), "open the lane", nil))
		settle()
	}
	waiting := calls()
	settle()
	r.broker.releaseConfirms()
	for _, f := range fillers {
		wantAnswer(r.t, <-f, "")
	}
	settle()
	return waiting
}

// batchOf makes n calls that travel together.
func (r *rig) batchOf(n int, method string, opts ...CallOption) []<-chan result {
	r.t.Helper()
	return r.together(func() (waiting []<-chan result) {
		for i := range n {
			waiting = append(waiting, goCall(r.client, within(r.t, time.Minute), method, fmt.Append(nil, i), opts...))
			settle()
		}
		return waiting
	})
}

func TestCallsThatWaitTravelTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		for i, done := range r.batchOf(5, "m") {
			wantAnswer(t, <-done, fmt.Sprint(i))
		}
		batches := r.broker.messagesTo(batchQueueName)
		wantSame(t, "batches", len(batches), 1)
		wantSame(t, "content type", batches[0].msg.ContentType, contentTypeCalls)
		wantSame(t, "mandatory", batches[0].mandatory, true)
		wantSame(t, "expiration", batches[0].msg.Expiration, "60000")
		wantSame(t, "alone", len(r.broker.messagesTo(DefaultQueue)), 1+laneWindow)
		wantSame(t, "unacknowledged", r.broker.unacked(batchQueueName), 0)
		wantSame(t, "server's requests", r.server.Stats().Requests, 1+laneWindow+5)
		wantSame(t, "requests that came in batches", r.server.Stats().Batched, 5)
		wantSame(t, "calls that were sent in batches", r.client.Stats().Batched, 5)
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
	})
}

func TestAnswersThatWaitTravelTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := make(chan struct{})
		r := startBatching(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			<-start
			return req.Body, nil
		}})
		waiting := r.batchOf(6, "m")
		r.broker.holdConfirms()
		close(start)
		settle()
		r.broker.releaseConfirms()
		for i, done := range waiting {
			wantAnswer(t, <-done, fmt.Sprint(i))
		}
		settle()
		var batches int
		for _, m := range r.broker.messagesTo(routeReplies) {
			if m.msg.ContentType == contentTypeAnswers {
				batches++
			}
		}
		if batches == 0 {
			t.Error("no two answers travelled together")
		}
		wantSame(t, "unacknowledged", r.broker.unacked(batchQueueName), 0)
	})
}

func TestLoneCallsTravelAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		for range 10 {
			wantAnswer(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
		}
		wantSame(t, "batches", len(r.broker.messagesTo(batchQueueName)), 0)
	})
}

// The broker hands batches out in turn, so what waits is shared among the servers.
func TestCallsAreSharedAmongTheServers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		other := startServer(t, r.broker, handlers{"m": echo, "open the lane": echo}, WithBatch(BatchAuto))
		ready(t, other.WaitReady)
		pass(2 * laneCheck)
		r.openLane() // the client looks again
		pass(2 * laneCheck)
		for i, done := range r.batchOf(4*fairShare, "m") {
			wantAnswer(t, <-done, fmt.Sprint(i))
		}
		wantSame(t, "in batches at one", r.server.Stats().Batched, 2*fairShare)
		wantSame(t, "at the other", other.Stats().Batched, 2*fairShare)
	})
}

// What cannot share a batch leaves at once, by itself.
func TestCallThatDoesNotFitTravelsAlone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		body []byte
		opt  CallOption
	}{
		{"too large", make([]byte, batchBytes+1), Idempotent()},
		{"header that is no text", nil, WithHeader(map[string]any{"n": int64(1)})},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startBatching(t, handlers{"m": echo})
				r.broker.holdConfirms()
				var fillers []<-chan result
				for range laneWindow {
					fillers = append(fillers, goCall(r.client, within(t, time.Minute), "m", nil))
				}
				settle()
				before := len(r.broker.messagesTo(DefaultQueue))
				got := goCall(r.client, within(t, time.Minute), "m", c.body, c.opt)
				settle()
				wantSame(t, "sent", len(r.broker.messagesTo(DefaultQueue)), before+1)
				r.broker.releaseConfirms()
				wantAnswer(t, <-got, string(c.body))
				for _, f := range fillers {
					wantAnswer(t, <-f, "")
				}
			})
		})
	}
}

// The broker drops a batch as a whole, when the first in it expires, so only calls with
// about the same time left share one.
func TestCallsWithOtherDeadlinesTravelApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		waiting := r.together(func() (waiting []<-chan result) {
			for _, d := range []time.Duration{60, 59, 5, 4, 50, 55} {
				waiting = append(waiting, goCall(r.client, within(t, d*time.Second), "m", nil))
				settle()
			}
			return waiting
		})
		for _, done := range waiting {
			wantAnswer(t, <-done, "")
		}
		var expirations []string
		for _, m := range r.broker.messagesTo(batchQueueName) {
			expirations = append(expirations, m.msg.Expiration)
		}
		slices.Sort(expirations)
		if want := []string{"55000"}; !slices.Equal(expirations, want) {
			t.Errorf("expirations %v, want %v", expirations, want)
		}
	})
}

func TestEachCallInABatchHasItsOwnOutcome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{
			"ok":    echo,
			"error": func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeNotFound, "no such thing") },
			"panic": func(context.Context, *Request) ([]byte, error) { panic("boom") },
			"slow":  untilDone,
			"header": func(_ context.Context, req *Request) ([]byte, error) {
				return fmt.Append(nil, req.Header["traceparent"]), nil
			},
			"key": func(_ context.Context, req *Request) ([]byte, error) { return []byte(req.IdempotencyKey), nil },
		})
		waiting := r.together(func() (waiting []<-chan result) {
			for _, c := range []struct {
				method string
				opts   []CallOption
			}{
				{"ok", nil},
				{"error", nil},
				{"panic", nil},
				{"nothing", nil},
				{"slow", nil},
				{"header", []CallOption{WithHeader(map[string]any{"traceparent": "00-1-2-03"})}},
				{"key", []CallOption{WithIdempotencyKey("mine")}},
			} {
				waiting = append(waiting, goCall(r.client, within(t, 10*time.Second), c.method, []byte("x"), c.opts...))
				settle()
			}
			return waiting
		})
		wantSame(t, "batches", len(r.broker.messagesTo(batchQueueName)), 1)
		wantAnswer(t, <-waiting[0], "x")
		wantError := func(i int, code Code, outcome Outcome) {
			t.Helper()
			got := <-waiting[i]
			wantSame(t, "code", CodeOf(got.err), code)
			wantSame(t, "outcome", OutcomeOf(got.err), outcome)
		}
		wantError(1, CodeNotFound, Ran)
		wantError(2, CodeInternal, Ran)
		wantAnswer(t, <-waiting[5], "00-1-2-03")
		wantAnswer(t, <-waiting[6], "mine")
		select {
		case got := <-waiting[3]:
			t.Errorf("refused after %v, while another server could still get the batch", got.took)
		default:
		}
		got := <-waiting[4]
		wantSame(t, "code", CodeOf(got.err), CodeDeadlineExceeded)
		wantSame(t, "time", got.took, 10*time.Second)
	})
}

// "Did not run" is said of a call in a batch when the broker cannot hand it out again.
func TestRefusalInABatchFollowsTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"slow": slow})
		waiting := r.together(func() []<-chan result {
			a := goCall(r.client, within(t, time.Minute), "slow", nil)
			settle()
			b := goCall(r.client, within(t, time.Minute), "nothing", nil)
			settle()
			return []<-chan result{a, b, goCall(r.client, within(t, time.Minute), "nothing", nil, Idempotent())}
		})
		began := time.Now()
		idempotent := <-waiting[2]
		wantSame(t, "waited", time.Since(began), 0)
		wantSame(t, "code", CodeOf(idempotent.err), CodeUnimplemented)
		wantSame(t, "outcome", OutcomeOf(idempotent.err), MayHaveRun)
		<-waiting[0]
		refused := <-waiting[1]
		wantSame(t, "code", CodeOf(refused.err), CodeUnimplemented)
		wantSame(t, "outcome", OutcomeOf(refused.err), DidNotRun)
		settle()
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
	})
}

func TestSlowCallInABatchHoldsNobodyBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo, "slow": slow})
		waiting := r.together(func() []<-chan result {
			a := goCall(r.client, within(t, time.Minute), "slow", nil)
			settle()
			return []<-chan result{a, goCall(r.client, within(t, time.Minute), "m", nil)}
		})
		began := time.Now()
		wantAnswer(t, <-waiting[1], "")
		wantSame(t, "waited", time.Since(began), 0)
		wantAnswer(t, <-waiting[0], "")
	})
}

func TestCallsTravelAloneWithoutAServerThatUnpacks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBroker()
		old := startServer(t, b, handlers{"m": echo}) // takes no batches
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto))}
		ready(t, old.WaitReady)
		ready(t, r.client.WaitReady)
		burstOf := func() {
			t.Helper()
			b.holdConfirms()
			var waiting []<-chan result
			for range 10 {
				waiting = append(waiting, goCall(r.client, within(t, time.Minute), "m", []byte("x")))
			}
			settle()
			b.releaseConfirms()
			for _, done := range waiting {
				wantAnswer(t, <-done, "x")
			}
		}
		burstOf()
		wantSame(t, "batches", len(b.messagesTo(batchQueueName)), 0)

		fresh := startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto))
		ready(t, fresh.WaitReady)
		burstOf()
		pass(2 * laneCheckMax) // by then the client has looked again
		burstOf()
		pass(time.Second)
		burstOf()
		if len(b.messagesTo(batchQueueName)) == 0 {
			t.Error("no batch, though a server unpacks")
		}
	})
}

// A batch whose queue is gone comes back, and its calls leave alone.
func TestBatchThatComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		old := startServer(t, r.broker, handlers{"m": echo})
		ready(t, old.WaitReady)
		r.server.stop()
		_ = r.server.wait(t)
		r.broker.with(func(b *fakeBroker) { b.remove(b.queues[batchQueueName]) })
		b := r.broker
		b.holdConfirms()
		var waiting []<-chan result
		for i := range 10 {
			waiting = append(waiting, goCall(r.client, within(t, time.Minute), "m", fmt.Append(nil, i)))
			settle()
		}
		b.releaseConfirms()
		for i, done := range waiting {
			got := <-done
			wantAnswer(t, got, fmt.Sprint(i))
			wantSame(t, "took", got.took, 0)
		}
		wantSame(t, "batches", len(b.messagesTo(batchQueueName)), 1)
		wantSame(t, "re-sent", r.client.Stats().Resent, 0)
	})
}

// When nobody unpacks any more, what waits in the lane's queue leaves again alone, if
// that is safe.
func TestLaneThatIsDeserted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		old := startServer(t, r.broker, handlers{"m": echo, "open the lane": echo})
		ready(t, old.WaitReady)
		r.server.stop()
		_ = r.server.wait(t)
		safe := r.batchOf(3, "m", Idempotent())
		unsafe := r.batchOf(2, "m")
		wantSame(t, "batches that wait", r.broker.ready(batchQueueName), 2)
		for i, done := range safe {
			wantAnswer(t, <-done, fmt.Sprint(i))
		}
		for range unsafe {
			wantAnswer(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
		}
		back := startServer(t, r.broker, handlers{"m": echo}, WithBatch(BatchAuto))
		ready(t, back.WaitReady)
		for i, done := range unsafe {
			wantAnswer(t, <-done, fmt.Sprint(i))
		}
	})
}

// A call that kills servers takes those that travel with it along only once.
func TestRedeliveredBatchIsSplit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var kills, runs atomic.Int64
		b := newFakeBroker()
		fleet(t, b, func(kill func()) handlers {
			return handlers{
				"kill":          killing(&kills, kill),
				"m":             counted(&runs, echo),
				"open the lane": echo,
			}
		}, WithBatch(BatchAuto))
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto))}
		ready(t, r.client.WaitReady)
		r.openLane()
		waiting := r.together(func() (waiting []<-chan result) {
			for i, method := range []string{"kill", "m", "m", "m"} {
				waiting = append(waiting, goCall(r.client, within(t, time.Hour), method, fmt.Append(nil, i)))
				settle()
			}
			return waiting
		})
		for i, done := range waiting[1:] {
			wantAnswer(t, <-done, fmt.Sprint(i+1))
		}
		got := <-waiting[0]
		wantSame(t, "code", CodeOf(got.err), CodeInternal)
		wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
		wantSame(t, "kills", kills.Load(), DefaultDeliveryLimit)
		wantSame(t, "batches", len(b.messagesTo(batchQueueName)), 1)
		dead := b.messagesTo(DefaultQueue + ".dead")
		wantSame(t, "dead letters", len(dead), 1)
		wantSame(t, "method of the dead letter", dead[0].msg.AppId, "kill")
		settle()
		wantSame(t, "left in the lane", b.ready(batchQueueName)+b.unacked(batchQueueName), 0)
	})
}

func TestBatchOverALostLink(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		fault      fault
		idempotent bool
		code       Code
		outcome    Outcome
	}{
		{"unsent", faultUnsent, false, "", Ran},
		{"lost before the confirm", faultLostUnconfirmed, false, CodeUnavailable, MayHaveRun},
		{"lost before the confirm, idempotent", faultLostUnconfirmed, true, "", Ran},
		{"lost after the confirm", faultCutConfirmed, false, "", Ran},
		{"refused once", faultNack, false, "", Ran},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startBatching(t, handlers{"m": echo})
				r.broker.fail(batchQueueName, c.fault)
				var opts []CallOption
				if c.idempotent {
					opts = append(opts, Idempotent())
				}
				for i, done := range r.batchOf(4, "m", opts...) {
					got := <-done
					if c.code == "" {
						wantAnswer(t, got, fmt.Sprint(i))
						continue
					}
					wantSame(t, "code", CodeOf(got.err), c.code)
					wantSame(t, "outcome", OutcomeOf(got.err), c.outcome)
				}
			})
		})
	}
}

func TestDrainGivesTheRestOfABatchBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"slow": slow})
		r.server.stop()
		_ = r.server.wait(t)
		one := startServer(t, r.broker, handlers{"slow": slow, "open the lane": echo}, WithBatch(BatchAuto), WithWorkers(2))
		ready(t, one.WaitReady)
		r.openLane()
		waiting := r.batchOf(6, "slow")
		one.stop()
		settle()
		other := startServer(t, r.broker, handlers{"slow": slow}, WithBatch(BatchAuto))
		ready(t, other.WaitReady)
		for i, done := range waiting {
			wantAnswer(t, <-done, fmt.Sprint(i))
		}
		if err := one.wait(t); err != nil {
			t.Errorf("drain: %v", err)
		}
		wantSame(t, "returned", one.Stats().Returned, 4)
		wantSame(t, "run by the other", other.Stats().OK, 4)
	})
}

func TestBatchThatCannotBeReadIsDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		for _, body := range [][]byte{nil, []byte("no batch"), {0xff, 0xff}} {
			r.broker.putIn(batchQueueName, amqp.Publishing{ContentType: contentTypeCalls, ReplyTo: "nowhere", Body: body})
			settle()
		}
		wantSame(t, "unacknowledged", r.broker.unacked(batchQueueName), 0)
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
		for i, done := range r.batchOf(3, "m") {
			wantAnswer(t, <-done, fmt.Sprint(i))
		}
	})
}

func TestRequestAloneInTheBatchQueueIsServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		r.broker.with(func(b *fakeBroker) { _ = b.declare(rawQueue, true, nil) })
		r.broker.putIn(batchQueueName, request("m"))
		settle()
		wantSame(t, "answers", len(r.broker.take()), 1)
	})
}

func TestCallThatGivesUpBeforeItsBatchLeavesDidNotRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startBatching(t, handlers{"m": counted(&runs, echo)})
		ctx, cancel := context.WithCancel(t.Context())
		waiting := r.together(func() []<-chan result {
			gone := goCall(r.client, ctx, "m", nil)
			settle()
			stays := []<-chan result{gone, goCall(r.client, within(t, time.Minute), "m", nil), goCall(r.client, within(t, time.Minute), "m", nil)}
			settle()
			cancel()
			settle()
			return stays
		})
		got := <-waiting[0]
		wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		if !errors.Is(got.err, context.Canceled) {
			t.Errorf("error %v", got.err)
		}
		wantAnswer(t, <-waiting[1], "")
		wantAnswer(t, <-waiting[2], "")
		wantSame(t, "runs", runs.Load(), 2)
	})
}
