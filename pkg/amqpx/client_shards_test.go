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

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// shardName returns the name of a shard of the default queue.
func shardName(i int) string { return Queue{Name: DefaultQueue}.shard(i).Name }

// sentTo counts the messages to the first n shards.
func sentTo(b *brokertest.Broker, n int) (counts []int) {
	for i := range n {
		counts = append(counts, len(b.MessagesTo(shardName(i))))
	}
	return counts
}

func TestCallsUseTheShardsInTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo}, WithShards(4))
		for i := range 40 {
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", fmt.Append(nil, i)), fmt.Sprint(i))
		}
		wantSame(t, "requests of each shard", fmt.Sprint(sentTo(r.broker, 4)), "[10 10 10 10]")
		wantSame(t, "counted by the server", fmt.Sprint(r.server.requestsByShard(nil)), "[10 10 10 10]")
	})
}

func TestCallsWithAKeyUseOneShard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo}, WithShards(4))
		for range 10 {
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil, WithShardKey([]byte("ünïc"))), "")
		}
		wantSame(t, "requests of each shard", fmt.Sprint(sentTo(r.broker, 4)), "[0 0 0 10]")
		f := r.client.Go(within(t, time.Minute), "m", nil, WithShardKey([]byte("a")))
		<-f.Done()
		wantSame(t, "requests of each shard", fmt.Sprint(sentTo(r.broker, 4)), "[0 0 1 10]")
	})
}

// TestBatchesUseTheShardsInTurn: the calls that wait together leave in one batch, for one shard.
func TestBatchesUseTheShardsInTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startRig(t, handlers{"m": counted(&runs, echo)}, WithBatch(BatchAuto), WithShards(2))
		const wave = 200
		var calls int64
		batches := make([]int, 2)
		together := func(n int) {
			var waiting []<-chan result
			for i := range n {
				waiting = append(waiting, goCall(r.client, within(t, time.Minute), "m", fmt.Append(nil, i)))
			}
			for i, done := range waiting {
				wantResponse(t, <-done, fmt.Sprint(i))
			}
			calls += int64(n)
		}
		// All calls of a wave may leave in one batch. The call between the waves moves the turn on, in
		// case each wave is a message and a batch.
		for waves := 0; slices.Contains(batches, 0) && waves < 20; waves++ {
			if waves%2 == 1 {
				together(1)
			}
			together(wave)
			for i := range batches {
				batches[i] = len(r.broker.MessagesTo(shardName(i) + batchSuffix))
			}
		}
		wantSame(t, "runs", runs.Load(), calls)
		for i, n := range batches {
			if n == 0 || int64(n) > calls/10 {
				t.Errorf("%d batches to shard %d", n, i)
			}
		}
		wantSame(t, "requests of both shards", r.server.requestsByShard(nil)[0]+r.server.requestsByShard(nil)[1], uint64(calls))
	})
}

// TestReturnedRequestGoesToTheNextShard: an old server has only shard 0. A call that is not idempotent
// runs once, and a shard that is missing is used no more.
func TestReturnedRequestGoesToTheNextShard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b := brokertest.New()
		server := startServer(t, b, handlers{"m": counted(&runs, echo)})
		ready(t, server.WaitReady)
		b.With(func(b *brokertest.Broker) { // the client finds every shard, which then goes
			for i := 1; i < 4; i++ {
				_ = b.Declare(shardName(i), true, nil)
			}
		})
		c := startClient(t, b, WithShards(4))
		ready(t, c.WaitReady)
		wantResponse(t, <-goCall(c, within(t, time.Minute), "m", nil), "") // the client checks the shards with its first call
		settle()
		for i := 1; i < 4; i++ {
			c.route.shards[i].condition.Store(int32(shardOpen))
			b.With(func(b *brokertest.Broker) { b.Remove(b.Queues[shardName(i)]) })
		}
		var waiting []<-chan result
		for i := range 40 {
			waiting = append(waiting, goCall(c, within(t, time.Minute), "m", fmt.Append(nil, i)))
		}
		for i, done := range waiting {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		wantSame(t, "runs", runs.Load(), 41)
		for range 10 {
			wantResponse(t, <-goCall(c, within(t, time.Minute), "m", nil), "")
		}
		returned := 0
		for i, n := range sentTo(b, 4) {
			if i > 0 {
				returned += n
			}
		}
		wantSame(t, "requests to shard 0", sentTo(b, 1)[0], 51)
		if returned < 3 || returned > 40 {
			t.Errorf("%d requests to missing shards", returned)
		}
	})
}

func TestAllShardsMissingIsUnroutable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b, WithShards(3))
		ready(t, c.WaitReady)
		for _, opts := range [][]CallOption{nil, {WithShardKey([]byte("a"))}} {
			got := <-goCall(c, within(t, time.Minute), "m", nil, opts...)
			wantIs(t, got.err, ErrUnroutable)
			wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		}
	})
}

// TestSuspendedShardDoesNotStopTheOthers: calls without a key go on, and the one shard holds no more
// than a share of them.
func TestSuspendedShardDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	for _, mode := range []BatchMode{BatchOff, BatchAuto} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, handlers{"m": echo}, WithShards(2), WithBatch(mode))
				wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil), "")
				wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil), "")
				r.broker.Suspend(shardName(1))
				r.broker.Suspend(shardName(1) + batchSuffix)
				const rounds, calls = 100, 32
				stuck := make(map[int]<-chan result)
				ok := 0
				for round := range rounds {
					waiting := make(map[int]<-chan result)
					for i := range calls {
						waiting[round*calls+i] = goCall(r.client, within(t, time.Hour), "m", nil)
					}
					settle()
					for i, done := range waiting {
						select {
						case got := <-done:
							wantResponse(t, got, "")
							ok++
						default:
							stuck[i] = done
						}
					}
				}
				if len(stuck) > 3*calls {
					t.Errorf("%d of %d calls wait for the suspended shard", len(stuck), rounds*calls)
				}
				wantSame(t, "calls that went on", ok, rounds*calls-len(stuck))
				r.broker.Resume(shardName(1))
				r.broker.Resume(shardName(1) + batchSuffix)
				for _, done := range stuck {
					wantResponse(t, <-done, "")
				}
			})
		})
	}
}

// TestSilentShardIsLeft: an idempotent call that a shard has taken is sent again to another shard when
// the broker does not answer for the shard.
func TestSilentShardIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo}, WithShards(2))
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil), "") // the client checks the shards with its first call
		settle()
		before := sentTo(r.broker, 2)[1]
		r.broker.With(func(b *brokertest.Broker) {
			q := b.Queues[shardName(1)]
			q.Consumers = nil // takes requests, and no server gets them
			b.OnCall = func(op, name string) error {
				if op == "declare passive" && name == shardName(1) {
					return brokertest.ErrHang
				}
				return nil
			}
		})
		for range 4 {
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil, Idempotent()), "")
		}
		wantSame(t, "condition", r.client.route.shards[1].at(), shardShut)
		if n := sentTo(r.broker, 2)[1] - before; n == 0 || n > 2 {
			t.Errorf("%d requests to the silent shard", n)
		}
	})
}

// TestFullShardIsLeft: a call goes once round the shards, and ends with resource_exhausted when all are
// full.
func TestFullShardIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo}, WithShards(3))
		full := map[string]bool{shardName(1): true, shardName(2): true}
		r.broker.With(func(b *brokertest.Broker) { b.Nacks = func(_, key string) bool { return full[key] } })
		for range 6 {
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil, Idempotent()), "")
		}
		wantSame(t, "requests of each shard", fmt.Sprint(sentTo(r.broker, 3)), "[6 1 1]")
		r.broker.With(func(b *brokertest.Broker) {
			full[shardName(0)] = true
			for i := range 3 {
				q := b.Queues[shardName(i)]
				q.Consumers = nil
				for range 5 {
					q.Messages = append(q.Messages, &brokertest.Message{Msg: amqp.Publishing{}})
				}
			}
		})
		got := <-goCall(r.client, within(t, 3*time.Second), "m", nil, Idempotent())
		if e, ok := errors.AsType[*Error](got.err); !ok || e.Code() != CodeResourceExhausted {
			t.Errorf("error %v", got.err)
		}
	})
}

// TestGrowthUnderLoad: servers get more shards, then clients do, and old servers and clients go on. No
// call that is not idempotent is lost or runs twice.
func TestGrowthUnderLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs [3000]atomic.Int32
		count := handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			var i int
			_, _ = fmt.Sscan(string(req.Body), &i)
			runs[i].Add(1)
			return req.Body, nil
		}}
		b := brokertest.New()
		old := startServer(t, b, count, WithBatch(BatchAuto))
		ready(t, old.WaitReady)
		oldClient := startClient(t, b, WithBatch(BatchAuto))
		ready(t, oldClient.WaitReady)
		clients := []*Client{oldClient}
		var waiting []<-chan result
		next := 0
		load := func() {
			for range 500 {
				waiting = append(waiting, goCall(clients[next%len(clients)], within(t, time.Minute), "m", fmt.Append(nil, next)))
				if next++; next%50 == 0 {
					pass(time.Millisecond)
				}
			}
		}
		load()
		for range 2 {
			ready(t, startServer(t, b, count, WithBatch(BatchAuto), WithShards(4)).WaitReady)
		}
		load()
		grown := startClient(t, b, WithBatch(BatchAuto), WithShards(4))
		ready(t, grown.WaitReady)
		clients = append(clients, grown)
		load()
		old.stop()
		load()
		if err := old.wait(t); err != nil {
			t.Error(err)
		}
		load()
		for i, done := range waiting {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		for i := range next {
			wantSame(t, fmt.Sprintf("runs of call %d", i), runs[i].Load(), 1)
		}
		wantSame(t, "calls", next, 2500)
		for i := range 4 {
			if len(b.MessagesTo(shardName(i)))+len(b.MessagesTo(shardName(i)+batchSuffix)) == 0 {
				t.Errorf("shard %d got nothing", i)
			}
		}
	})
}
