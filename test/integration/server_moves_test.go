//go:build integration

package integration

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestMoveToAFullQueueIsNoHotLoop: republishing to a full queue is retried with pauses. A
// policy bounds `.dead` and `.retry`.
func TestMoveToAFullQueueIsNoHotLoop(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	core, logs := observer.New(zap.WarnLevel)
	server := r.Serve(rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core)))
	client := r.Ready()
	dead, begun := r.Queue.Name+".dead", time.Now()
	rig.Manage(t).Policy(r.URL, "^"+r.Queue.Name+"\\.(dead|retry)$", map[string]any{"max-length": 1, "overflow": "reject-publish"})
	r.Publish(dead, amqp.Publishing{})
	const n = 5
	for i := range n {
		giveBack(t, r, amqp.Publishing{
			AppId: "b", ReplyTo: r.Inbox().Name, CorrelationId: fmt.Sprint(i),
			Headers: amqp.Table{"rpc-deliveries": int64(amqpx.DefaultDeliveryLimit)},
		})
	}
	rig.Eventually(t, "all are refused", func() bool { return server.Stats().InFlight == n })
	for range 200 {
		if got := rig.Call(t, client, "b", nil); string(got) != "b" {
			t.Fatalf("got %q", got)
		}
	}
	fewLines(t, logs, "the broker refused to move a request", begun)
	// Consuming the dead letters makes room at once. The pauses have grown with the time of
	// the full queue, but the wait is not much longer than this time.
	if _, err := r.Raw().Consume(dead, "", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "all are dead letters", func() bool { return server.Stats().Dead == n })
	rig.Eventually(t, "all are acknowledged", func() bool { return server.Stats().InFlight == 0 && r.Inspect().Messages == 0 })
}

// TestNoDeliveryLimitMeansNone delivers a request of a quorum queue more often than RabbitMQ 4
// does by default.
func TestNoDeliveryLimitMeansNone(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Queue.Type = amqpx.QueueQuorum
	slow := hold()
	r.Serve(rig.Methods{"b": slow.handle}, amqpx.WithDeliveryLimit(0)).Drain() //nolint:errcheck // it only makes the queue.
	inbox := r.Inbox()
	r.Request(amqp.Publishing{AppId: "b", ReplyTo: inbox.Name, CorrelationId: "1", DeliveryMode: amqp.Persistent})
	const rounds, each = 3, 12
	for round := range rounds {
		for range each {
			ch := r.Raw()
			rig.Eventually(t, "the request is there", func() bool {
				_, ok, err := ch.Get(r.Queue.Name, false)
				return err == nil && ok
			})
			_ = ch.Close() // requeues the request
		}
		server := r.Serve(rig.Methods{"b": slow.handle}, amqpx.WithDeliveryLimit(0))
		rig.Recv(t, slow.entered, fmt.Sprintf("run %d", round))
		server.Close()
		_ = server.Wait()
	}
	close(slow.release)
	r.Serve(rig.Methods{"b": letter}, amqpx.WithDeliveryLimit(0))
	if got := inbox.Next(); string(got.Body) != "b" {
		t.Errorf("answered with %q, %v", got.Body, got.Headers)
	}
}

// TestRequestThatAPolicyDeadLetteredAfterItsTimeDoesNotRun: expired requests do not run after
// a policy has dead-lettered them into another request queue.
func TestRequestThatAPolicyDeadLetteredAfterItsTimeDoesNotRun(t *testing.T) {
	t.Parallel()
	first, second := rig.New(t), rig.New(t)
	first.Declare(true, nil)
	rig.Manage(t).Policy(first.URL, "^"+first.Queue.Name+"$",
		map[string]any{"dead-letter-exchange": "", "dead-letter-routing-key": second.Queue.Name})
	var runs atomic.Int64
	server := second.Serve(rig.Methods{"b": func(context.Context, *amqpx.Request) ([]byte, error) {
		runs.Add(1)
		return nil, nil
	}})
	inbox := second.Inbox()
	const n = 10
	for i := range n {
		first.Request(amqp.Publishing{
			AppId: "b", ReplyTo: inbox.Name, CorrelationId: fmt.Sprint(i), Type: "rpc.v1", Expiration: "100",
		})
	}
	for range n {
		if got := inbox.Next(); got.Headers["rpc-code"] != string(amqpx.CodeDeadlineExceeded) {
			t.Errorf("answered with %q, %v", got.Body, got.Headers)
		}
	}
	if got := runs.Load(); got != 0 || server.Stats().Expired != n {
		t.Errorf("%d runs, %d expired", got, server.Stats().Expired)
	}
}

// TestCopyThatFitsNoFrame requeues a request whose copy is larger than a frame.
func TestCopyThatFitsNoFrame(t *testing.T) {
	t.Parallel()
	r := rig.On(t, limited.For(t).URL)
	server := r.Serve(rig.Methods{"b": letter})
	inbox := r.Inbox()
	giveBack(t, r, amqp.Publishing{
		AppId: "b", ReplyTo: inbox.Name, CorrelationId: uuid.NewString(), Headers: amqp.Table{"x": strings.Repeat("h", 8060)},
	})
	got := inbox.Next()
	if got.Headers["rpc-code"] != string(amqpx.CodeInvalidArgument) {
		t.Errorf("answered with %q, %v", got.Body, got.Headers)
	}
	if n := server.Stats().Reconnects; n != 0 {
		t.Errorf("the connection was lost %d times", n)
	}
}

// TestResponseIsPublishedAgainWhileItsQueueIsAway: responses nacked for longer than a moment
// are published again.
func TestResponseIsPublishedAgainWhileItsQueueIsAway(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	core, logs := observer.New(zap.WarnLevel)
	server := r.Serve(rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core)))
	name := r.Queue.Name + ".full"
	ch := r.Raw()
	if _, err := ch.QueueDeclare(name, false, true, false, false, amqp.Table{"x-max-length": 1, "x-overflow": "reject-publish"}); err != nil {
		t.Fatal(err)
	}
	r.Publish(name, amqp.Publishing{})
	r.Request(amqp.Publishing{AppId: "b", ReplyTo: name, CorrelationId: "1", Type: "rpc.v1", Expiration: "60000"})
	rig.Eventually(t, "the request runs", func() bool { return server.Stats().OK == 1 })
	ran := time.Now()
	rig.Eventually(t, "it is given up, or tried for longer than a moment", func() bool {
		return server.Stats().InFlight == 0 || time.Since(ran) > 300*time.Millisecond
	})
	taken, err := ch.Consume(name, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	rig.Recv(t, taken, "what filled the queue")
	if got := rig.Recv(t, taken, "the response"); string(got.Body) != "b" {
		t.Errorf("got %q", got.Body)
	}
	if logs.FilterMessage("the broker refused a response, its caller gets none").Len() != 0 {
		t.Error("the response was given up")
	}
}
