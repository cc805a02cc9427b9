package amqpx

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// TestServerConsumesShardsBeyondItsOwn: a client of a larger number finds a consumer in every shard.
func TestServerConsumesShardsBeyondItsOwn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		larger := startServer(t, b, handlers{"m": echo}, WithShards(3), WithBatch(BatchAuto))
		ready(t, larger.WaitReady)
		smaller := startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto))
		ready(t, smaller.WaitReady)
		wantSame(t, "retiring", fmt.Sprint(smaller.retiring.numbers()), "[1 2]")
		larger.stop()
		if err := larger.wait(t); err != nil {
			t.Fatal(err)
		}
		c := startClient(t, b, WithShards(3), WithBatch(BatchAuto))
		ready(t, c.WaitReady)
		for _, key := range []string{"a", "b", "c", "d", "e", "f"} {
			wantResponse(t, <-goCall(c, within(t, time.Minute), "m", nil, WithShardKey([]byte(key))), "")
		}
		for _, name := range []string{shardName(1), shardName(2), shardName(1) + batchSuffix, shardName(2) + batchSuffix} {
			b.With(func(b *brokertest.Broker) { wantSame(t, "consumers of "+name, len(b.Queues[name].Consumers), 1) })
		}
		body, err := smaller.describe(wire.ControlStats)
		if err != nil {
			t.Fatal(err)
		}
		var in ServerInfo
		if err := json.Unmarshal(body, &in); err != nil {
			t.Fatal(err)
		}
		wantSame(t, "shards", in.Shards, 1)
		wantSame(t, "retiring", fmt.Sprint(in.Retiring), "[1 2]")
		wantSame(t, "requests", in.ShardRequests[0]+in.ShardRequests[1]+in.ShardRequests[2], 6)
	})
}

// TestDeletedRetiringShard: the requests of a batch that are to be counted in their shard go to the request
// queue if the shard is deleted, and the server does not list it any more.
func TestDeletedRetiringShard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const calls = 3
		b := brokertest.New()
		larger := startServer(t, b, handlers{"m": echo}, WithShards(2), WithBatch(BatchAuto))
		ready(t, larger.WaitReady)
		s := startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto), WithDeliveryLimit(5))
		ready(t, s.WaitReady)
		larger.stop()
		wantSame(t, "error", larger.wait(t), nil)
		var body []byte
		for i := range calls {
			req := wire.Request{Method: "m", ID: fmt.Sprint(i)}
			body = req.AppendTo(body, time.Minute)
		}
		msg := amqp.Publishing{ContentType: wire.ContentTypeRequests, CorrelationId: "x", ReplyTo: rawQueue, Body: body}
		b.With(func(b *brokertest.Broker) {
			b.Remove(b.Queues[shardName(1)])
			q := b.Queues[shardName(1)+batchSuffix]
			q.Messages = append(q.Messages, &brokertest.Message{Msg: msg, Redelivered: true})
			b.Dispatch(q)
		})
		pass(10 * time.Second)
		wantSame(t, "responses", s.Stats().OK, calls)
		wantSame(t, "requests in flight", s.Stats().InFlight, 0)
		wantSame(t, "retiring", len(s.retiring.numbers()), 0)
		wantSame(t, "reconnects", s.Stats().Reconnects, 0)
	})
}

// TestShardNameOfAnotherService: a queue with the name of a shard and with a control plane of its own
// belongs to another service.
func TestShardNameOfAnotherService(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		other := startServer(t, b, handlers{"m": echo}, WithQueue(Queue{Name: shardName(1)}), WithControl(true))
		ready(t, other.WaitReady)
		s := startServer(t, b, handlers{"m": echo})
		ready(t, s.WaitReady)
		wantSame(t, "retiring", len(s.retiring.numbers()), 0)
		b.With(func(b *brokertest.Broker) { wantSame(t, "consumers", len(b.Queues[shardName(1)].Consumers), 1) })
	})
}

// TestCanceledConsumerCostsItsSubscriptionOnly: each shard is deleted in turn, the server declares it
// again, and its session goes on.
func TestCanceledConsumerCostsItsSubscriptionOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo}, WithShards(3))
		for i := range 3 {
			r.broker.With(func(b *brokertest.Broker) { b.Remove(b.Queues[shardName(i)]) })
			pass(2 * time.Second)
			r.broker.With(func(b *brokertest.Broker) {
				if q := b.Queues[shardName(i)]; q == nil || len(q.Consumers) != 1 {
					t.Fatalf("shard %d is not consumed again", i)
				}
			})
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil, WithShardKey([]byte("a"))), "")
		}
		wantSame(t, "reconnects", r.server.Stats().Reconnects, 0)
	})
}

// TestDrainOfManyShards: a drain ends every subscription, and what has not started goes back to the
// queue that it came from.
func TestDrainOfManyShards(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const shards, each = 8, 20
		b := brokertest.New()
		s := startServer(t, b, handlers{"m": untilDone}, WithShards(shards), WithBatch(BatchAuto), WithWorkers(1), WithPrefetch(256), WithDrainTimeout(time.Second))
		ready(t, s.WaitReady)
		for i := range shards {
			for n := range each {
				b.PutIn(shardName(i), amqp.Publishing{AppId: "m", CorrelationId: fmt.Sprint(i, n), ReplyTo: rawQueue})
			}
		}
		settle()
		s.stop()
		_ = s.wait(t)
		waiting := 0
		for i := range shards {
			waiting += b.Ready(shardName(i))
			b.With(func(b *brokertest.Broker) {
				wantSame(t, "consumers", len(b.Queues[shardName(i)].Consumers), 0)
			})
			if n := b.Ready(shardName(i)); n < each-1 || n > each {
				t.Errorf("%d requests in shard %d", n, i)
			}
		}
		wantSame(t, "requests", waiting >= shards*each-1, true)
	})
}

// refusalGate is an observer that holds the goroutine of each refusal until open is closed.
type refusalGate struct {
	observerNotes

	open chan struct{}
}

func (g *refusalGate) RequestRefused(string, Code) { <-g.open }

// TestDrainAfterAShardsChannelEnded: the requests of a batch go back to their shard at once, although the
// channel on which the server consumed the shard has just ended.
func TestDrainAfterAShardsChannelEnded(t *testing.T) {
	t.Parallel()
	for range 8 { // the consumer learns of the end from its deliveries or from its channel, at random
		synctest.Test(t, func(t *testing.T) {
			const most = 3 // requests of a caller
			b := brokertest.New()
			release := make(chan struct{})
			gate := &refusalGate{open: make(chan struct{})}
			s := startServer(t, b, handlers{"stop": func(context.Context, *Request) ([]byte, error) { <-release; return nil, nil }},
				WithShards(2), WithBatch(BatchAuto), WithWorkers(1), WithPrefetch(64), WithCallerLimits(CallerLimits{MaxCalls: most}), WithServerObserver(gate))
			ready(t, s.WaitReady)
			var body []byte
			for i := range most {
				req := wire.Request{Method: "stop", ID: fmt.Sprint(i)}
				body = req.AppendTo(body, time.Minute)
			}
			b.PutIn(shardName(1)+batchSuffix, amqp.Publishing{ContentType: wire.ContentTypeRequests, CorrelationId: "x", ReplyTo: rawQueue, Body: body})
			settle()
			for i := range most + 1 { // the refusal of the last one holds the consumer
				b.PutIn(shardName(1), amqp.Publishing{AppId: "stop", CorrelationId: fmt.Sprint(i), ReplyTo: rawQueue + ".other"})
			}
			settle()
			wantSame(t, "refused", s.Stats().Refused, 1)
			b.EndChannels(shardName(1))
			settle()
			close(gate.open)
			settle()
			begun := time.Now()
			s.stop()
			settle()
			close(release)
			wantSame(t, "error", s.wait(t), nil)
			if took := time.Since(begun); took > time.Second {
				t.Errorf("the drain took %v", took)
			}
		})
	}
}

// TestUnpackersShareTheRoom: while many requests wait, no batch queue starves, and the server holds no
// more than one batch beyond its bound.
func TestUnpackersShareTheRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const shards, batches, each = 4, 3, 512
		b := brokertest.New()
		release := make(chan struct{})
		s := startServer(t, b, handlers{"m": echo, "stop": func(context.Context, *Request) ([]byte, error) { <-release; return nil, nil }}, WithShards(shards), WithBatch(BatchAuto), WithWorkers(1))
		ready(t, s.WaitReady)
		b.With(func(b *brokertest.Broker) { _ = b.Declare(rawQueue, true, nil) })
		b.PutIn(shardName(0), amqp.Publishing{AppId: "stop", CorrelationId: "stop", ReplyTo: rawQueue})
		settle()
		for i := range shards {
			for n := range batches {
				var body []byte
				for k := range each {
					req := wire.Request{Method: "m", ID: fmt.Sprint(i, n, k)}
					body = req.AppendTo(body, time.Minute)
				}
				b.PutIn(shardName(i)+batchSuffix, amqp.Publishing{ContentType: wire.ContentTypeRequests, CorrelationId: fmt.Sprint(i, n), ReplyTo: rawQueue, Body: body})
			}
		}
		settle()
		if waiting := s.waiting.Len(); waiting > 2*queueRoom {
			t.Errorf("%d requests wait for a worker", waiting)
		}
		close(release)
		settle()
		want := slices.Repeat([]uint64{batches * each}, shards)
		want[0]++
		wantSame(t, "requests by shard", fmt.Sprint(s.requestsByShard(nil)), fmt.Sprint(want))
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}
