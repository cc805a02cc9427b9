//go:build integration

package integration

import (
	"context"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// bury stops servers during a request until the delivery limit is reached.
func bury(t *testing.T, r *rig.Rig) {
	t.Helper()
	entered := make(chan struct{}, amqpx.DefaultDeliveryLimit+1)
	for range amqpx.DefaultDeliveryLimit {
		server := r.Serve(rig.Methods{"work": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
			entered <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		rig.Recv(t, entered, "the request to run")
		server.Close()
	}
}

// shovel publishes the only dead letter to the request queue, as described in the run book.
// The result is the dead letter.
func shovel(t *testing.T, r *rig.Rig) amqp.Delivery {
	t.Helper()
	d, ok, err := r.Raw().Get(r.Queue.Name+".dead", false)
	if err != nil || !ok || d.MessageCount != 0 {
		t.Fatalf("dead letters: found %v, %d more, %v; want one", ok, d.MessageCount, err)
	}
	r.Request(amqp.Publishing{
		Headers: d.Headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode,
		Priority: d.Priority, CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration,
		MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type, AppId: d.AppId, Body: d.Body,
	})
	if err := d.Ack(false); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDeadLetterMovedBack: a dead letter republished to the request queue runs on a repaired
// server and is answered. The caller's original time budget no longer applies; otherwise it
// would soon expire.
func TestDeadLetterMovedBack(t *testing.T) {
	t.Parallel()
	for name, msg := range map[string]amqp.Publishing{
		"time in the header":     {Headers: amqp.Table{"rpc-timeout-ms": int64(20_000), "own": "kept"}},
		"time in the expiration": {Type: "rpc.v1", Expiration: "20000", Headers: amqp.Table{"own": "kept"}},
		"no time":                {Headers: amqp.Table{"own": "kept"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			inbox := r.Inbox()
			msg.AppId, msg.CorrelationId, msg.ReplyTo, msg.Body = "work", "1", inbox.Name, []byte("x")
			r.Serve(rig.Methods{}).Close() // makes the queues
			r.Request(msg)
			bury(t, r)
			deadlines := make(chan time.Time, 2)
			mended := r.Serve(rig.Methods{"work": func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
				deadline, _ := ctx.Deadline()
				deadlines <- deadline
				return append([]byte("done "), req.Body...), nil
			}})
			if d := inbox.Next(); d.CorrelationId != "1" || d.Headers["rpc-code"] != string(amqpx.CodeInternal) {
				t.Errorf("the caller of a dead letter got %+v", d)
			}
			if d := shovel(t, r); d.Expiration != "" || d.Headers["rpc-timeout-ms"] != nil || d.Headers["own"] != "kept" {
				t.Errorf("dead letter with %v, expiration %q", d.Headers, d.Expiration)
			}
			if d := inbox.Next(); d.CorrelationId != "1" || string(d.Body) != "done x" {
				t.Errorf("the request that was moved back got %q, %v", d.Body, d.Headers)
			}
			if got := rig.Recv(t, deadlines, "the run"); time.Until(got) < amqpx.DefaultMaxHandlerTime/2 {
				t.Errorf("it had to be done by %v, want only the server's own time limit", got)
			}
			if st := mended.Stats(); len(deadlines) != 0 || st.Dead != 1 || st.OK != 1 {
				t.Errorf("%d more runs; the server counted %+v", len(deadlines), st)
			}
		})
	}
}
