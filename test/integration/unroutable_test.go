//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestUnroutableResponses: unroutable responses are counted, alone and in batches, large
// responses as well, and do no harm. Responses to direct reply-to arrive, and responses to the
// server's own queues do not loop.
func TestUnroutableResponses(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	large := bytes.Repeat([]byte("x"), 1<<20)
	server := r.Serve(rig.Methods{"b": letter, "large": func(context.Context, *amqpx.Request) ([]byte, error) { return large, nil }})
	client, direct := r.Ready(), r.Ready(amqpx.WithReplyMode(amqpx.ReplyDirect))
	const rounds = 20
	for i := range rounds {
		for _, msg := range []amqp.Publishing{
			{AppId: "b", ReplyTo: "nobody"},
			{AppId: "b", ReplyTo: "amq.direct/key", Type: "rpc.v1"},
			{AppId: "large", ReplyTo: "nobody"},
			{AppId: "unknown", ReplyTo: "nobody"},
			{AppId: "", ReplyTo: "nobody"},
		} {
			msg.CorrelationId = uuid.NewString()
			r.Request(msg)
		}
		r.SendBatch("nobody", rig.RawCall(fmt.Sprint("1 ", i), "b", ""), rig.RawCall(fmt.Sprint("2 ", i), "b", ""),
			rig.RawCall(fmt.Sprint("3 ", i), "unknown", ""))
		for _, c := range []*amqpx.Client{client, direct} {
			if got := rig.Call(t, c, "b", nil); string(got) != "b" {
				t.Errorf("got %q", got)
			}
		}
	}
	const want = rounds * (5 + 3)
	rig.Eventually(t, "all of them are counted", func() bool { return server.Stats().Unroutable >= want && server.Stats().InFlight == 0 })
	for _, own := range []string{"", ".batch", ".retry", ".dead"} {
		r.Request(amqp.Publishing{AppId: "b", ReplyTo: r.Queue.Name + own, CorrelationId: uuid.NewString()})
	}
	if got := rig.Call(t, client, "b", nil); string(got) != "b" {
		t.Errorf("got %q", got)
	}
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if got := server.Stats(); got.Unroutable != want || got.Reconnects != 0 || got.Republished != 0 || got.Dead != 0 {
		t.Errorf("server counted %+v, want %d unroutable responses", got, want)
	}
}
