//go:build integration

package integration

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// pastBackoff bounds the duration of calls during the end of the last server with batch
// support: clients check once a second for batch consumers.
const pastBackoff = 5 * time.Second

// TestLaneOpensAndShutsByItself: a client detects by itself when servers start and stop
// accepting batches, without losing a call.
func TestLaneOpensAndShutsByItself(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	off := amqpx.WithBatch(amqpx.BatchOff)
	r.Serve(rig.Methods{"echo": echo}, off)
	client := r.Ready(amqpx.WithCallOptions(amqpx.Idempotent()))
	const callers = 64
	everyResponseIsMine(t, client, callers, 5)
	if st := client.Stats(); st.Batched != 0 || st.Failed != 0 {
		t.Errorf("client counted %+v, want no batch without a server that unpacks", st)
	}
	if q := rig.Manage(t).Queues(r.URL, r.BatchQueue()); len(q) != 0 {
		t.Errorf("queues %v, though no server unpacks", q)
	}
	for _, hard := range []bool{false, true} {
		server := r.Serve(rig.Methods{"echo": echo})
		before := client.Stats().Batched
		rig.Eventually(t, "the lane opens", func() bool {
			everyResponseIsMine(t, client, callers, 1)
			return client.Stats().Batched > before
		})
		load := loadOf(t, client, callers)
		rig.Eventually(t, "batches flow", func() bool { return client.Stats().Batched > before+10*callers })
		if hard {
			server.Close()
		} else if err := server.Drain(); err != nil {
			t.Errorf("drain: %v", err)
		}
		load.goesOn()
		// No server may reopen the batch queue now.
		before = client.Stats().Batched
		load.goesOn()
		if got := client.Stats().Batched; got != before {
			t.Errorf("%d calls in batches, though no server unpacks", got-before)
		}
		load.stop()
		if load.longest.Load() > int64(pastBackoff) {
			t.Errorf("a call took %v", time.Duration(load.longest.Load()))
		}
	}
	if st := client.Stats(); st.Failed != 0 || st.InFlight != 0 || st.Reconnects != 0 {
		t.Errorf("client counted %+v, want every call answered", st)
	}
}

// load is a set of callers in closed loops that check their responses.
type load struct {
	t       *testing.T
	callers int
	quit    chan struct{}
	all     sync.WaitGroup
	made    []atomic.Uint64 // successful calls of each caller
	longest atomic.Int64    // longest call
}

func loadOf(t *testing.T, client *amqpx.Client, callers int) *load {
	t.Helper()
	l := &load{t: t, callers: callers, quit: make(chan struct{}), made: make([]atomic.Uint64, callers)}
	ctx := rig.Within(t, 4*time.Minute)
	for caller := range callers {
		l.all.Go(func() { // ends with stop
			for i := 0; ; i++ {
				select {
				case <-l.quit:
					return
				default:
				}
				body := fmt.Sprintf("call %d of caller %d", i, caller)
				begun := time.Now()
				if got, err := client.Call(ctx, "echo", []byte(body)); err != nil || string(got) != body {
					t.Errorf("got %q, %v, want %q", got, err, body)
					return
				}
				l.longest.Store(max(l.longest.Load(), int64(time.Since(begun))))
				l.made[caller].Add(1)
			}
		})
	}
	return l
}

// goesOn waits for two further responses to every caller: the first of these calls may have
// started earlier.
func (l *load) goesOn() {
	l.t.Helper()
	goals := make([]uint64, l.callers)
	for i := range goals {
		goals[i] = l.made[i].Load() + 2
	}
	rig.Eventually(l.t, "every caller is answered", func() bool {
		for i, goal := range goals {
			if l.made[i].Load() < goal {
				return false
			}
		}
		return true
	})
}

func (l *load) stop() {
	close(l.quit)
	l.all.Wait()
}

// TestBatchThatNobodyUnpacksAnyMore shows the end of the last server with batch support while
// it holds a batch: the batch returns to a queue without consumers. Idempotent calls are sent
// again alone; the other calls wait for a server with batch support.
func TestBatchThatNobodyUnpacksAnyMore(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	b := newBatcher(t, r)
	back := r.Proxy()
	server := r.ServeAt(back.URL(), b.methods(rig.Methods{"work": slow.handle}), amqpx.WithWorkers(16))
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
	r.Serve(rig.Methods{"echo": echo, "work": echo}, amqpx.WithBatch(amqpx.BatchOff))
	back.Refuse(true)
	back.Cut()
	for i := 0; i < n; i += 2 {
		if got := rig.Recv(t, calls[i], "a safe call"); got.err != nil || string(got.response) != fmt.Sprint(i) {
			t.Errorf("call %d: got %q, %v", i, got.response, got.err)
		}
	}
	everyResponseIsMine(t, b.Client, 16, 2) // no other call waits
	close(slow.release)
	server.Close()
	last := r.Serve(rig.Methods{"echo": echo, "work": echo})
	for i := 1; i < n; i += 2 {
		if got := rig.Recv(t, calls[i], "another call"); got.err != nil || string(got.response) != fmt.Sprint(i) {
			t.Errorf("call %d: got %q, %v", i, got.response, got.err)
		}
	}
	nothingHeld(t, r, last)
}

// TestLaneQueueThatCannotBeAsked: if the batch queue belongs to another connection, so that
// the broker refuses even a passive declare, calls are sent alone and the connection stays
// open.
func TestLaneQueueThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Serve(rig.Methods{"echo": echo}, amqpx.WithBatch(amqpx.BatchOff))
	if _, err := r.Raw().QueueDeclare(r.BatchQueue(), false, false, true, false, nil); err != nil {
		t.Fatal(err)
	}
	front := r.Proxy()
	client := r.ClientAt(front.URL())
	rig.Connected(t, client)
	rig.Eventually(t, "the client has looked twice", func() bool {
		everyResponseIsMine(t, client, 64, 5)
		return len(front.Heard(rig.CloseChannel)) >= 2
	})
	if st := client.Stats(); st.Failed != 0 || st.Batched != 0 || st.Reconnects != 0 {
		t.Errorf("client counted %+v, want the connection left alone", st)
	}
}

// TestLaneQueueThatExistsIsAdopted: an existing batch queue with other properties is used as
// it is.
func TestLaneQueueThatExistsIsAdopted(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	if _, err := r.Raw().QueueDeclare(r.BatchQueue(), false, false, false, false, map[string]any{"x-max-length": int32(100_000)}); err != nil {
		t.Fatal(err)
	}
	server := r.Serve(rig.Methods{"echo": echo})
	client := r.Ready()
	openLane(t, client)
	everyResponseIsMine(t, client, 64, 10)
	laneWell(t, r, server, client)
}
