//go:build integration

package integration

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestSend: one-way requests run once each, alone and in batches, over every kind of queue, and
// leave nothing behind.
func TestSend(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		queue  amqpx.QueueType
		client []amqpx.ClientOption
		both   amqpx.Option
	}{
		{name: "classic queue"},
		{name: "quorum queue", queue: amqpx.QueueQuorum},
		{name: "direct reply-to", client: []amqpx.ClientOption{amqpx.WithReplyMode(amqpx.ReplyDirect)}},
		{name: "request exchange", client: []amqpx.ClientOption{amqpx.WithExchange(amqpx.ExchangeAuto)}},
		{name: "shards", both: amqpx.WithShards(3)},
		{name: "no batches", both: amqpx.WithBatch(amqpx.BatchOff)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Queue.Type = c.queue
			var runs, calls atomic.Int64
			var serve []amqpx.ServerOption
			if c.both != nil {
				serve, c.client = append(serve, c.both), append(c.client, c.both)
			}
			server := r.Serve(rig.Methods{"m": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
				if runs.Add(1); !req.OneWay {
					calls.Add(1)
				}
				return req.Body, nil
			}}, serve...)
			client := r.Ready(c.client...)
			const senders, each = 32, 30
			var all sync.WaitGroup
			for i := range senders {
				all.Go(func() {
					for j := range each {
						if err := client.Send(rig.Patience(t), "m", fmt.Append(nil, i, j), amqpx.Idempotent()); err != nil {
							t.Error(err)
						}
					}
				})
				if i%8 == 0 {
					all.Go(func() { rig.Call(t, client, "m", nil) })
				}
			}
			all.Wait()
			rig.Eventually(t, "all requests have run", func() bool { return server.Stats().OK == senders*each+senders/8 })
			if err := server.Drain(); err != nil {
				t.Errorf("drain: %v", err)
			}
			if runs.Load() != senders*each+senders/8 || calls.Load() != senders/8 {
				t.Errorf("%d runs, %d of them calls", runs.Load(), calls.Load())
			}
			if left := r.Inspect().Messages; left != 0 {
				t.Errorf("%d requests were not acknowledged", left)
			}
			if got := server.Stats(); got.Unroutable != 0 || got.Failed != 0 || got.Refused != 0 {
				t.Errorf("server counted %+v", got)
			}
		})
	}
}

// TestSendWithoutAServer: the queue keeps a one-way request, which is persistent, until it expires, if ever.
func TestSendWithoutAServer(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	client := r.Ready()
	want{code: amqpx.CodeUnavailable, outcome: amqpx.DidNotRun, is: []error{amqpx.ErrUnroutable}}.check(t, client.Send(rig.Patience(t), "m", nil))
	r.Declare(true, nil)
	if err := client.Send(rig.Patience(t), "m", nil, amqpx.WithExpiration(100*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the request has expired", func() bool { return r.Inspect().Messages == 0 })
	if err := client.Send(rig.Patience(t), "m", []byte("x")); err != nil {
		t.Fatal(err)
	}
	d, ok, err := r.Raw().Get(r.Queue.Name, true)
	if err != nil || !ok {
		t.Fatalf("no message: %v", err)
	}
	if d.ReplyTo != "" || d.Expiration != "" || d.DeliveryMode != amqp.Persistent || d.AppId != "m" || d.Type != "rpc.v1" || string(d.Body) != "x" {
		t.Errorf("got %+v", d)
	}
}

// TestSendWhoseConnectionIsLost: without the confirm the outcome is open, and an idempotent request is
// sent again and runs once.
func TestSendWhoseConnectionIsLost(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]amqpx.CallOption{"once": nil, "idempotent": {amqpx.Idempotent()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			slow := hold()
			server := r.Serve(rig.Methods{"slow": slow.handle})
			proxy := r.Proxy()
			client := r.ClientAt(proxy.URL())
			rig.Connected(t, client)
			proxy.Mute()
			sent := make(chan error, 1)
			go func() { sent <- client.Send(rig.Patience(t), "slow", []byte("x"), opts...) }()
			rig.Recv(t, slow.entered, "the request to arrive")
			proxy.Cut()
			proxy.Unmute()
			err := rig.Recv(t, sent, "the request to settle")
			if len(opts) == 0 {
				want{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, is: []error{amqpx.ErrOutcomeUnknown}}.check(t, err)
			} else if err != nil {
				t.Error(err)
			}
			close(slow.release)
			rig.Eventually(t, "the server has ended", func() bool { return server.Stats().InFlight == 0 })
			if got := server.Stats(); got.OK != 1 || got.Requests != uint64(1+len(opts)) {
				t.Errorf("server counted %+v", got)
			}
		})
	}
}

// TestSendIsRefusedByAFullQueue: a nack is an error, and no proof.
func TestSendIsRefusedByAFullQueue(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Declare(true, amqp.Table{"x-max-length": int64(1), "x-overflow": "reject-publish"})
	r.Request(amqp.Publishing{AppId: "m"})
	client := r.Ready() // finds the queue with a request
	want{code: amqpx.CodeResourceExhausted, outcome: amqpx.MayHaveRun, is: []error{amqpx.ErrRefused}}.check(t, client.Send(rig.Patience(t), "m", nil))
}

// TestRetryAndHedge: a call is made again after a failure of its handler, and made twice when a server is
// slow; the handler of the request that lost is canceled.
func TestRetryAndHedge(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	var runs atomic.Int64
	keys := make(chan string, 10)
	canceled := make(chan struct{})
	methods := rig.Methods{
		"fails": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
			keys <- req.IdempotencyKey
			if runs.Add(1)%3 != 0 {
				return nil, amqpx.Errorf(amqpx.CodeUnavailable, "not yet").WithRetryAfter(10 * time.Millisecond)
			}
			return req.Body, nil
		},
		"slow": func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			if runs.Add(1) == 1 {
				<-ctx.Done()
				close(canceled)
				return nil, ctx.Err()
			}
			return req.Body, nil
		},
	}
	r.Serve(methods)
	r.Serve(methods)
	client := r.Ready()
	var info amqpx.CallInfo
	got := rig.Call(t, client, "fails", []byte("x"), amqpx.Idempotent(), amqpx.WithRetry(amqpx.RetryPolicy{}), amqpx.WithCallInfo(&info))
	if string(got) != "x" || info.Attempts != 3 || runs.Load() != 3 {
		t.Errorf("got %q after %d attempts and %d runs", got, info.Attempts, runs.Load())
	}
	if first := <-keys; first == "" || <-keys != first || <-keys != first {
		t.Error("the runs have different keys")
	}
	if _, err := client.Call(rig.Patience(t), "fails", nil, amqpx.WithRetry(amqpx.RetryPolicy{})); amqpx.CodeOf(err) != amqpx.CodeUnavailable || runs.Load() != 4 {
		t.Errorf("a call that is not idempotent: %v after %d runs", err, runs.Load())
	}
	runs.Store(0)
	if got = rig.Call(t, client, "slow", []byte("y"), amqpx.Idempotent(), amqpx.WithHedge(50*time.Millisecond)); string(got) != "y" {
		t.Errorf("got %q", got)
	}
	rig.Recv(t, canceled, "the slow handler to be canceled")
	if stats := client.Stats(); stats.Hedged != 1 || stats.Retried != 2 {
		t.Errorf("client counted %+v", stats)
	}
}
