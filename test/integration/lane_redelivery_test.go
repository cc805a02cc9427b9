//go:build integration

package integration

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestServerEndsInTheMiddleOfABatch: a batch of a stopped server is redelivered to the next
// server and split.
func TestServerEndsInTheMiddleOfABatch(t *testing.T) {
	t.Parallel()
	for _, kind := range []amqpx.QueueType{amqpx.QueueClassic, amqpx.QueueQuorum} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Queue.Type = kind
			slow := hold()
			b := newBatcher(t, r)
			back := r.Proxy()
			r.ServeAt(back.URL(), b.methods(rig.Methods{"work": slow.handle}), amqpx.WithWorkers(16))
			openLane(t, b.Client)
			const n = 8
			calls := b.together(n, func(i int) <-chan outcome {
				var opts []amqpx.CallOption
				if i%2 == 0 {
					opts = append(opts, amqpx.Idempotent())
				}
				return begin(rig.Patience(t), b.Client, "work", fmt.Append(nil, i), opts...)
			})
			for range n {
				rig.Recv(t, slow.entered, "all to run")
			}
			second := r.Serve(b.methods(rig.Methods{"work": echo}))
			back.Refuse(true)
			back.Cut()
			for i, c := range calls {
				if got := rig.Recv(t, c, "a response"); got.err != nil || string(got.response) != fmt.Sprint(i) {
					t.Errorf("call %d: got %q, %v", i, got.response, got.err)
				}
			}
			if got := second.Stats().Republished; got != n {
				t.Errorf("%d calls were moved, want %d, each alone", got, n)
			}
			close(slow.release)
			laneServes(t, r, second)
		})
	}
}

// TestAtMostOnceInABatchOverTheEndOfAServer: a call with at-most-once semantics is not run
// again: its caller gets an unknown outcome.
func TestAtMostOnceInABatchOverTheEndOfAServer(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	var runs atomic.Int64
	entered := make(chan struct{}, 8)
	h := func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		runs.Add(1)
		entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	first := serveOnce(t, r, h)
	inbox := r.Inbox()
	idempotent := rig.Field{Number: rig.CallIdempotent, Value: uint64(1)}
	r.SendBatch(inbox.Name, rig.RawCall("a", "once", ""), rig.RawCall("b", "once", "", idempotent), rig.RawCall("c", "unknown", ""))
	for range 2 {
		rig.Recv(t, entered, "both to run")
	}
	second := serveOnce(t, r, h)
	first.Close()
	got := inbox.ResponsesTo("a", "b", "c")
	for id, code := range map[string]string{"a": "unavailable", "b": "unavailable", "c": "unimplemented"} {
		if a := got[id]; a.Code != code || a.Ran != "" {
			t.Errorf("call %q got %+v, want %s, and that nobody knows whether it ran", id, a, code)
		}
	}
	if n := runs.Load(); n != 2 {
		t.Errorf("%d runs, want 2", n)
	}
	first.drain()
	second.drain()
	nothingLeft(t, r)
}

// TestServerKnowsABatchThatComesBack: after a lost connection a server recognises the running
// calls of a redelivered batch.
func TestServerKnowsABatchThatComesBack(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	b := newBatcher(t, r)
	proxy := r.Proxy()
	server := r.ServeAt(proxy.URL(), b.methods(rig.Methods{"work": slow.handle}), amqpx.WithWorkers(16))
	openLane(t, b.Client)
	const n = 8
	calls := b.together(n, func(i int) <-chan outcome {
		return begin(rig.Patience(t), b.Client, "work", fmt.Append(nil, i), amqpx.WaitForServer())
	})
	for range n {
		rig.Recv(t, slow.entered, "all to run")
	}
	proxy.Cut()
	rig.Eventually(t, "the batch comes back", func() bool { return server.Stats().InFlight == 2*n })
	close(slow.release)
	for i, c := range calls {
		if got := rig.Recv(t, c, "a response"); got.err != nil || string(got.response) != fmt.Sprint(i) {
			t.Errorf("call %d: got %q, %v", i, got.response, got.err)
		}
	}
	if n := len(slow.entered); n != 0 {
		t.Errorf("%d more runs", n)
	}
	nothingHeld(t, r, server)
}

// TestCallInABatchThatStopsEveryServer: a call which stops every server affects the other
// calls of its batch only once. Then it is redelivered alone, until it is dead-lettered.
func TestCallInABatchThatStopsEveryServer(t *testing.T) {
	t.Parallel()
	for _, kind := range []amqpx.QueueType{amqpx.QueueClassic, amqpx.QueueQuorum} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Queue.Type = kind
			servers := mortals(t, r)
			rig.Eventually(t, "a server unpacks", func() bool {
				return len(rig.Manage(t).Queues(r.URL, r.BatchQueue())) == 1
			})
			inbox := r.Inbox()
			records := [][]byte{rig.RawCall("poison", "stop", "poison")}
			ids := []string{"poison"}
			for i := range 50 {
				id := fmt.Sprint(i)
				records, ids = append(records, rig.RawCall(id, "echo", id)), append(ids, id)
			}
			r.SendBatch(inbox.Name, records...)
			got := inbox.ResponsesTo(ids...)
			for id, a := range got {
				if id != "poison" && (a.Body != id || a.Code != "") {
					t.Errorf("beside the poison: call %q got %+v", id, a)
				}
			}
			if a := got["poison"]; a.Code != "internal" || a.Ran != "" {
				t.Errorf("the poison got %+v", a)
			}
			if n := servers.stops.Load(); n != amqpx.DefaultDeliveryLimit {
				t.Errorf("it ran %d times, want %d", n, amqpx.DefaultDeliveryLimit)
			}
			deadLetter(t, r)
			if rest := rig.Call(t, r.Ready(), "echo", []byte("after")); string(rest) != "after" {
				t.Errorf("the next call got %q", rest)
			}
			servers.drain()
			nothingLeft(t, r)
		})
	}
}
