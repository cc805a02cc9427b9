//go:build integration

package integration

import (
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestOperatorRetiresAShard: the steps of docs/operations.md, while calls run that are not idempotent, of a
// client that still has the larger number. No call fails, and none runs twice.
func TestOperatorRetiresAShard(t *testing.T) {
	t.Parallel()
	for _, mode := range []amqpx.BatchMode{amqpx.BatchAuto, amqpx.BatchOff} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			names := shardsOf(t, r, 2)
			exchange := r.Queue.Name + ".rpc"
			counter := &runCounter{runs: make(map[string]int)}
			methods := rig.Methods{"count": counter.handle}
			old := r.Serve(methods, amqpx.WithBatch(mode), amqpx.WithShards(2))
			client := r.Ready(amqpx.WithBatch(mode), amqpx.WithShards(2), amqpx.WithExchange(exchange))

			const callers = 16
			var next, ok atomic.Int64
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() { // ends with stop
					for {
						select {
						case <-stop:
							return
						default:
						}
						body := strconv.FormatInt(next.Add(1)-1, 10)
						response, err := client.Call(rig.Patience(t), "count", []byte(body))
						if err != nil || string(response) != body {
							t.Errorf("call %s: response %q, error %v, outcome %v", body, response, err, amqpx.OutcomeOf(err))
						}
						ok.Add(1)
					}
				})
			}
			goesOn := func(what string) {
				t.Helper()
				before := ok.Load()
				rig.Eventually(t, what, func() bool { return ok.Load() > before+20*callers || t.Failed() })
			}
			goesOn("calls with two shards")
			server := r.Serve(methods, amqpx.WithBatch(mode))
			if err := old.Drain(); err != nil {
				t.Error(err)
			}
			goesOn("calls while the shard is retiring")
			retired := []string{names[1]}
			if mode == amqpx.BatchAuto {
				retired = append(retired, names[1]+".batch")
			}
			for _, queue := range retired {
				if err := r.Raw().QueueUnbind(queue, queue, exchange, nil); err != nil {
					t.Fatal(err)
				}
			}
			goesOn("calls after the end of the bindings")
			for _, queue := range retired {
				rig.Eventually(t, queue+" is deleted", func() bool {
					_, err := r.Raw().QueueDelete(queue, false, true, false) // not while it has messages
					return err == nil
				})
			}
			goesOn("calls without the shard")
			close(stop)
			wg.Wait()
			counter.want(t, int(next.Load()))
			rig.Eventually(t, "the server forgets the shard", func() bool {
				servers, err := client.Servers(rig.Patience(t))
				return err == nil && len(servers) == 1 && len(servers[0].Retiring) == 0
			})
			if n := server.Stats().Reconnects + client.Stats().Reconnects; n != 0 {
				t.Errorf("%d reconnects", n)
			}
		})
	}
}

// BenchmarkDeletionOfAQueueInUse counts the messages that the broker confirmed, did not return, and has in no
// queue, when a queue is deleted under a stream of 20,000 mandatory messages: by the default exchange, and by
// the request exchange with the end of the binding first. ADR 24 has the results.
func BenchmarkDeletionOfAQueueInUse(b *testing.B) {
	for _, kind := range []string{"classic", "quorum"} {
		for _, unbound := range []bool{false, true} {
			name := kind + ", default exchange"
			if unbound {
				name = kind + ", unbound first"
			}
			b.Run(name, func(b *testing.B) {
				var lost, open, rounds float64
				for b.Loop() {
					l, o := deleteInUse(b, kind, unbound)
					lost, open, rounds = lost+float64(l), open+float64(o), rounds+1
				}
				b.ReportMetric(lost/rounds, "lost/op")
				b.ReportMetric(open/rounds, "unconfirmed/op")
			})
		}
	}
}

// deleteInUse deletes a queue under a stream of messages, and returns how many were confirmed and are lost, and
// how many were not published, nacked, or had no result after 5 s.
func deleteInUse(b *testing.B, kind string, unbound bool) (lost, unconfirmed int) {
	b.Helper()
	const messages = 20_000
	r := rig.New(b)
	r.Declare(true, amqp.Table{amqp.QueueTypeArg: kind})
	queue, exchange := r.Queue.Name, ""
	if unbound {
		exchange = r.Queue.Name + ".rpc"
		if err := r.Raw().ExchangeDeclare(exchange, "direct", true, false, false, false, nil); err != nil {
			b.Fatal(err)
		}
		if err := r.Raw().QueueBind(queue, queue, exchange, false, nil); err != nil {
			b.Fatal(err)
		}
	}
	conn := rig.Dial(b, r.URL)
	ch, err := conn.Channel()
	if err != nil {
		b.Fatal(err)
	}
	returns := ch.NotifyReturn(make(chan amqp.Return, messages))
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, messages))
	if err := ch.Confirm(false); err != nil {
		b.Fatal(err)
	}
	half, deleted := make(chan struct{}), make(chan int, 1)
	go func() { // ends with the deletion
		<-half // before the first error of a message
		if !unbound {
			n, err := r.Raw().QueueDelete(queue, false, false, false)
			if err != nil {
				b.Error(err)
			}
			deleted <- n
			return
		}
		if err := r.Raw().QueueUnbind(queue, queue, exchange, nil); err != nil {
			b.Error(err)
		}
		deleted <- 0
	}()
	for i := range messages {
		if i == messages/2 {
			close(half)
		}
		if err := ch.Publish(exchange, queue, true, false, amqp.Publishing{Body: []byte("x")}); err != nil {
			break // the broker has ended the channel
		}
	}
	acked := 0
	patience := time.NewTimer(5 * time.Second)
	defer patience.Stop()
	for range messages {
		select {
		case confirm, open := <-confirms:
			if confirm.Ack {
				acked++
			}
			if open {
				continue
			}
		case <-patience.C:
		}
		break
	}
	kept := rig.Recv(b, deleted, "the deletion")
	if unbound { // everything that was confirmed and not returned is in the queue
		if kept, err = r.Raw().QueuePurge(queue, false); err != nil {
			b.Fatal(err)
		}
	}
	return acked - len(returns) - kept, messages - acked
}
