package amqpx

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

const batchQueueName = DefaultQueue + ".batch"

// startBatching starts a rig, and its client learns of a consumer of the batch queue.
func startBatching(t *testing.T, methods handlers) *rig {
	t.Helper()
	methods["start batching"] = echo
	r := startRig(t, methods, WithBatch(BatchAuto))
	r.awaitBatching()
	return r
}

// awaitBatching makes the client look for consumers of the batch queue.
func (r *rig) awaitBatching() {
	r.t.Helper()
	wantResponse(r.t, <-goCall(r.client, within(r.t, time.Minute), "start batching", nil), "")
	settle()
	if r.client.route.batch.servers.Load() == 0 {
		r.t.Fatal("the client sends no batches")
	}
}

// together makes calls leave in one batch: the calls wait while filler calls occupy the window.
func (r *rig) together(calls func() []<-chan result) []<-chan result {
	r.t.Helper()
	r.broker.HoldConfirms()
	var fillers []<-chan result
	for range publish.BatchWindow + int(r.client.route.batch.servers.Load()) - 1 {
		fillers = append(fillers, goCall(r.client, within(r.t, time.Minute), "start batching", nil))
		settle()
	}
	waiting := calls()
	settle()
	r.broker.ReleaseConfirms()
	for _, f := range fillers {
		wantResponse(r.t, <-f, "")
	}
	settle()
	return waiting
}

// batchOf makes n calls in one batch.
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
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		batches := r.broker.MessagesTo(batchQueueName)
		wantSame(t, "batches", len(batches), 1)
		wantSame(t, "content type", batches[0].Msg.ContentType, wire.ContentTypeRequests)
		wantSame(t, "mandatory", batches[0].Mandatory, true)
		wantSame(t, "expiration", batches[0].Msg.Expiration, "60000")
		wantSame(t, "alone", len(r.broker.MessagesTo(DefaultQueue)), 1+publish.BatchWindow)
		wantSame(t, "unacknowledged", r.broker.Unacked(batchQueueName), 0)
		wantSame(t, "server's requests", r.server.Stats().Requests, 1+publish.BatchWindow+5)
		wantSame(t, "requests that came in batches", r.server.Stats().Batched, 5)
		wantSame(t, "calls that were sent in batches", r.client.Stats().Batched, 5)
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
	})
}

func TestResponsesThatWaitTravelTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := make(chan struct{})
		r := startBatching(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			<-start
			return req.Body, nil
		}})
		waiting := r.batchOf(6, "m")
		r.broker.HoldConfirms()
		close(start)
		settle()
		r.broker.ReleaseConfirms()
		for i, done := range waiting {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		settle()
		var batches int
		for _, m := range r.broker.MessagesTo(brokertest.RouteReplies) {
			if m.Msg.ContentType == wire.ContentTypeResponses {
				batches++
			}
		}
		if batches == 0 {
			t.Error("no two responses travelled together")
		}
		wantSame(t, "unacknowledged", r.broker.Unacked(batchQueueName), 0)
	})
}

func TestLoneCallsTravelAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		for range 10 {
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
		}
		wantSame(t, "batches", len(r.broker.MessagesTo(batchQueueName)), 0)
	})
}

// The client divides the waiting calls by the number of servers, because the broker delivers
// batches to the servers in turn.
func TestCallsAreSharedAmongTheServers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		other := startServer(t, r.broker, handlers{"m": echo, "start batching": echo}, WithBatch(BatchAuto))
		ready(t, other.WaitReady)
		pass(2 * checkEvery)
		r.awaitBatching() // the client checks again
		pass(2 * checkEvery)
		for i, done := range r.batchOf(4*publish.MinShare, "m") {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		wantSame(t, "in batches at one", r.server.Stats().Batched, 2*publish.MinShare)
		wantSame(t, "at the other", other.Stats().Batched, 2*publish.MinShare)
	})
}

// A batch of calls, and of responses, is at most as large as its sender's limit of a message,
// within bounds.
func TestBatchesOfLargeBodies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit int // of a message
		batch int // at most, in bytes
	}{
		{DefaultMaxMessageSize, publish.MaxBatchBytes},
		{100 << 10, 100 << 10},
		{20 << 10, transport.MinBatchBody},
	} {
		t.Run(fmt.Sprint(c.limit), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, handlers{"m": echo, "start batching": echo}, WithBatch(BatchAuto), WithMaxMessageSize(c.limit))
				r.awaitBatching()
				const size, n = 16 << 10, 40
				for i, done := range r.together(func() (all []<-chan result) {
					for i := range n {
						all = append(all, goCall(r.client, within(t, time.Minute), "m", bytes.Repeat([]byte{byte(i)}, size)))
						settle()
					}
					return all
				}) {
					wantResponse(t, <-done, strings.Repeat(string(rune(i)), size))
				}
				for _, to := range []string{batchQueueName, brokertest.RouteReplies} {
					largest := 0
					for _, sent := range r.broker.MessagesTo(to) {
						largest = max(largest, len(sent.Msg.Body))
					}
					if largest > c.batch || largest < c.batch-size-1024 {
						t.Errorf("largest message to %s: %d bytes, want up to %d", to, largest, c.batch)
					}
				}
			})
		})
	}
}

// A call that cannot share a batch leaves at once, alone.
func TestCallThatDoesNotFitTravelsAlone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		body []byte
		opt  CallOption
	}{
		{"too large", make([]byte, publish.MaxRecordBytes+1), Idempotent()},
		{"header that is no text", nil, WithHeader(map[string]any{"n": int64(1)})},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startBatching(t, handlers{"m": echo})
				r.broker.HoldConfirms()
				var fillers []<-chan result
				for range publish.BatchWindow {
					fillers = append(fillers, goCall(r.client, within(t, time.Minute), "m", nil))
				}
				settle()
				before := len(r.broker.MessagesTo(DefaultQueue))
				got := goCall(r.client, within(t, time.Minute), "m", c.body, c.opt)
				settle()
				wantSame(t, "sent", len(r.broker.MessagesTo(DefaultQueue)), before+1)
				r.broker.ReleaseConfirms()
				wantResponse(t, <-got, string(c.body))
				for _, f := range fillers {
					wantResponse(t, <-f, "")
				}
			})
		})
	}
}

// The broker drops a whole batch when its first call expires, so only calls with similar
// deadlines share a batch.
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
			wantResponse(t, <-done, "")
		}
		var expirations []string
		for _, m := range r.broker.MessagesTo(batchQueueName) {
			expirations = append(expirations, m.Msg.Expiration)
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
			"slow":  pastDeadline,
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
		wantSame(t, "batches", len(r.broker.MessagesTo(batchQueueName)), 1)
		wantResponse(t, <-waiting[0], "x")
		wantError := func(i int, code Code, outcome Outcome) {
			t.Helper()
			got := <-waiting[i]
			wantSame(t, "code", CodeOf(got.err), code)
			wantSame(t, "outcome", OutcomeOf(got.err), outcome)
		}
		wantError(1, CodeNotFound, Ran)
		wantError(2, CodeInternal, Ran)
		wantResponse(t, <-waiting[5], "00-1-2-03")
		wantResponse(t, <-waiting[6], "mine")
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

// A refused call in a batch gets the outcome "did not run" only when the broker cannot deliver
// the batch again, so the refusal follows the other responses.
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
		wantSame(t, "waited", time.Since(began), minRefusalPatience)
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
		wantResponse(t, <-waiting[1], "")
		wantSame(t, "waited", time.Since(began), 0)
		wantResponse(t, <-waiting[0], "")
	})
}
