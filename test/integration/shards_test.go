//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// shardsOf deletes the shards of a rig's queue when the test ends, and returns their names.
func shardsOf(t *testing.T, r *rig.Rig, n int) []string {
	t.Helper()
	names := []string{r.Queue.Name}
	for i := 1; i < n; i++ {
		names = append(names, fmt.Sprintf("%s.%d", r.Queue.Name, i))
	}
	ch := r.Raw() // opened before the test's own: it closes after the deletions
	t.Cleanup(func() {
		for _, name := range names {
			_, _ = ch.QueueDelete(name, false, false, false)
			_, _ = ch.QueueDelete(name+".batch", false, false, false)
		}
	})
	return names
}

// runCounter counts the runs of calls by their numbers.
type runCounter struct {
	mu   sync.Mutex
	runs map[string]int
}

func (c *runCounter) handle(_ context.Context, req *amqpx.Request) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.runs[string(req.Body)]++
	return req.Body, nil
}

// want checks that each of n calls ran once.
func (c *runCounter) want(t *testing.T, n int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range n {
		if runs := c.runs[strconv.Itoa(i)]; runs != 1 {
			t.Errorf("call %d ran %d times", i, runs)
		}
	}
}

// TestGrowthOfShardsUnderLoad: servers and then clients get four shards while calls run that are not
// idempotent; the old server drains. No call is lost, and none runs twice.
func TestGrowthOfShardsUnderLoad(t *testing.T) {
	t.Parallel()
	for _, mode := range []amqpx.BatchMode{amqpx.BatchAuto, amqpx.BatchOff} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			names := shardsOf(t, r, 4)
			counter := &runCounter{runs: make(map[string]int)}
			methods := rig.Methods{"count": counter.handle}
			old := r.Serve(methods, amqpx.WithBatch(mode))
			var client atomic.Pointer[amqpx.Client]
			client.Store(r.Ready(amqpx.WithBatch(mode)))

			const callers, each = 16, 100 // calls of a step
			var next atomic.Int64
			ctx := rig.Patience(t)
			step := func(change func()) {
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for range each {
							body := []byte(strconv.FormatInt(next.Add(1)-1, 10))
							response, err := client.Load().Call(ctx, "count", body)
							if err != nil || string(response) != string(body) {
								t.Errorf("call %s: response %q, error %v", body, response, err)
							}
						}
					})
				}
				change()
				wg.Wait()
			}
			step(func() {
				r.Serve(methods, amqpx.WithBatch(mode), amqpx.WithShards(4))
				r.Serve(methods, amqpx.WithBatch(mode), amqpx.WithShards(4))
			})
			step(func() { client.Store(r.Ready(amqpx.WithBatch(mode), amqpx.WithShards(4))) })
			step(func() {
				if err := old.Drain(); err != nil {
					t.Errorf("drain: %v", err)
				}
			})
			counter.want(t, int(next.Load()))
			servers, err := client.Load().Servers(ctx)
			if err != nil || len(servers) != 2 {
				t.Fatalf("%d servers, error %v", len(servers), err)
			}
			for i := range names {
				if servers[0].ShardRequests[i]+servers[1].ShardRequests[i] == 0 {
					t.Errorf("shard %d got no request", i)
				}
			}
		})
	}
}

// TestProgramWithoutShards: a program that knows only the request queue calls servers with four shards.
func TestProgramWithoutShards(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	shardsOf(t, r, 4)
	r.Serve(rig.Methods{"echo": echo}, amqpx.WithShards(4))
	in := r.Inbox()
	const calls = 50
	for i := range calls {
		r.Request(amqp.Publishing{AppId: "echo", ReplyTo: in.Name, CorrelationId: strconv.Itoa(i), Body: []byte(strconv.Itoa(i))})
	}
	got := make(map[string]int)
	for range calls {
		d := in.Next()
		if string(d.Body) != d.CorrelationId {
			t.Errorf("response %q to call %s", d.Body, d.CorrelationId)
		}
		got[d.CorrelationId]++
	}
	if len(got) != calls {
		t.Errorf("%d of %d calls got a response", len(got), calls)
	}
}

// TestClientOfMoreShardsThanServers: the servers of an earlier number have shard 0 only. Calls without a
// key go there; a call with a key of a missing shard has certainly not run.
func TestClientOfMoreShardsThanServers(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	counter := &runCounter{runs: make(map[string]int)}
	r.Serve(rig.Methods{"count": counter.handle})
	client := r.Ready(amqpx.WithShards(4))
	const calls = 200
	for i := range calls {
		rig.Call(t, client, "count", []byte(strconv.Itoa(i)))
	}
	counter.want(t, calls)
	_, err := client.Call(rig.Patience(t), "count", []byte("keyed"), amqpx.WithShardKey([]byte("ünïc"))) // shard 3
	if !errors.Is(err, amqpx.ErrUnroutable) || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
		t.Errorf("error %v, outcome %v", err, amqpx.OutcomeOf(err))
	}
}

// TestDeletedShardIsConsumedAgain: the deletion of a shard costs its subscription only.
func TestDeletedShardIsConsumedAgain(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	names := shardsOf(t, r, 3)
	server := r.Serve(rig.Methods{"echo": echo}, amqpx.WithShards(3))
	for _, name := range names {
		if _, err := r.Raw().QueueDelete(name, false, false, false); err != nil {
			t.Fatal(err)
		}
		rig.Eventually(t, name+" is consumed again", func() bool {
			ch := r.Raw()
			q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
			_ = ch.Close()
			return err == nil && q.Consumers == 1
		})
	}
	rig.Call(t, r.Ready(amqpx.WithShards(3)), "echo", nil)
	if n := server.Stats().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}
}

// TestSuspendedShard: while the broker's process of one shard stands still, calls without a key go on
// through the other shard.
func TestSuspendedShard(t *testing.T) {
	t.Parallel()
	for _, mode := range []amqpx.BatchMode{amqpx.BatchAuto, amqpx.BatchOff} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			names := shardsOf(t, r, 2)
			r.Serve(rig.Methods{"echo": echo}, amqpx.WithShards(2), amqpx.WithBatch(mode))
			client := r.Ready(amqpx.WithShards(2), amqpx.WithBatch(mode))
			rig.Call(t, client, "echo", nil)
			broker := rig.TheBroker(t)
			const standsStill = 15 * time.Second
			broker.Ctl("eval", fmt.Sprintf(`spawn(fun() ->
				Pids = [amqqueue:get_pid(Q) || N <- [<<"%s">>, <<"%s.batch">>], {ok, Q} <- [rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, N))]],
				[erlang:suspend_process(P) || P <- Pids], timer:sleep(%d), [erlang:resume_process(P) || P <- Pids] end).`,
				names[1], names[1], standsStill.Milliseconds()))
			const calls = 2000
			ok := make(chan bool, calls)
			for i := range calls {
				go func() { // ends with the call, at its deadline at the latest
					response, err := client.Call(rig.Patience(t), "echo", []byte(strconv.Itoa(i)))
					ok <- err == nil && string(response) == strconv.Itoa(i)
				}()
				if i%20 == 19 {
					rig.Recv(t, ok, "a response")
				}
			}
			for n := calls / 20; n < calls; n++ {
				if !rig.Recv(t, ok, "a response") {
					t.Fatal("a call failed")
				}
			}
			if client.Stats().Reconnects != 0 {
				t.Error("the client has connected again")
			}
		})
	}
}
