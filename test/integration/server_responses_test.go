//go:build integration

package integration

import (
	"context"
	"encoding/base64"
	"fmt"
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

// deadNode returns a well-formed address of direct reply-to, in RabbitMQ's format, on a
// stopped node: the name contains a hash of the node's name.
func deadNode() string {
	id := uuid.New()
	name := fmt.Sprintf("reply@%d", 10_000_000+int(id[0]))
	term := append([]byte{131, 88, 119, byte(len(name))}, name...)
	term = append(term, 0, 0, 3, id[1], 0, 0, 0, 0, 0x66, id[2], id[3], id[4])
	return "amq.rabbitmq.reply-to." + base64.StdEncoding.EncodeToString(term) + "." + base64.StdEncoding.EncodeToString(id[:])
}

func TestMadeUpDirectReplyToHarmsNobody(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	core, logs := observer.New(zap.WarnLevel)
	one := r.Serve(rig.Methods{"b": letter}, amqpx.WithBatch(amqpx.BatchAuto), amqpx.WithLogger(zap.New(core)))
	two := r.Serve(rig.Methods{"b": letter}, amqpx.WithBatch(amqpx.BatchAuto))
	queue, direct := r.Ready(), r.Ready(amqpx.WithReplyMode(amqpx.ReplyDirect))
	control := r.Queue.Name + ".control"
	raw := r.Raw()
	const rounds = 5
	for n := range rounds {
		id := fmt.Sprint(n)
		known := deadNode()
		for _, msg := range []amqp.Publishing{
			{AppId: "b", ReplyTo: deadNode(), CorrelationId: id},
			{AppId: "b", ReplyTo: deadNode(), CorrelationId: id, MessageId: uuid.NewString()},
			{AppId: "b", ReplyTo: known, CorrelationId: id, Type: "rpc.v1", Expiration: "60000"},
			{AppId: "b", ReplyTo: known, CorrelationId: id, Type: "rpc.v1", Expiration: "60000"},
			{AppId: "unknown", ReplyTo: deadNode(), CorrelationId: id},
		} {
			r.Request(msg)
		}
		r.SendBatch(deadNode(), rig.RawCall("1", "b", ""), rig.RawCall("2", "b", ""), rig.RawCall("3", "unknown", ""))
		for _, question := range []string{"ping", "stats"} {
			err := raw.Publish(control, "", false, false, amqp.Publishing{AppId: question, ReplyTo: deadNode(), CorrelationId: id})
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 20 {
			if got := rig.Call(t, queue, "b", nil); string(got) != "b" {
				t.Errorf("got %q", got)
			}
		}
		if got := rig.Call(t, direct, "b", nil); string(got) != "b" {
			t.Errorf("over direct reply-to: got %q", got)
		}
	}
	for _, s := range []*rig.Server{one, two} {
		rig.Eventually(t, "nothing is in flight", func() bool { return s.Stats().InFlight == 0 })
		if got := s.Stats().Reconnects; got != 0 {
			t.Errorf("the server's connection was lost %d times", got)
		}
	}
	if left := r.Inspect().Messages; left != 0 {
		t.Errorf("%d requests were not acknowledged", left)
	}
	rig.Eventually(t, "both servers describe themselves", func() bool {
		fleet, err := queue.Servers(rig.Within(t, 10*time.Second))
		return err == nil && len(fleet) == 2
	})
	if got := logs.FilterMessage("dropped a response that ends the connection it is published on").Len(); got > 2 {
		t.Errorf("%d lines for one kind of fault", got)
	}
	if rig.Major() == "3" && one.Stats().Undeliverable+two.Stats().Undeliverable < 5*rounds {
		t.Errorf("%d + %d responses were dropped, want those to all made-up addresses", one.Stats().Undeliverable, two.Stats().Undeliverable)
	}
	for _, s := range []*rig.Server{one, two} {
		if err := s.Drain(); err != nil {
			t.Errorf("drain: %v", err)
		}
	}
}

// TestResponseThatTheBrokerDoesNotTake: callers get an error about a too large response if a
// handler's response exceeds the broker's limit, which ends the publishing channel.
func TestResponseThatTheBrokerDoesNotTake(t *testing.T) {
	t.Parallel()
	r := rig.On(t, limited.For(t).URL)
	var runs atomic.Int64
	large := func(context.Context, *amqpx.Request) ([]byte, error) {
		runs.Add(1)
		return make([]byte, 200_000), nil
	}
	server := r.Serve(rig.Methods{"b": letter, "large": large})
	client := r.Ready()
	inbox := r.Inbox()
	for n, key := range []string{"", uuid.NewString()} {
		msg := amqp.Publishing{AppId: "large", ReplyTo: inbox.Name, CorrelationId: fmt.Sprint(n), MessageId: key}
		if key != "" {
			msg.Type = "rpc.v1"
		}
		r.Request(msg)
		got := rig.Recv(t, inbox.Responses, "the response")
		if code := got.Headers["rpc-code"]; code != string(amqpx.CodeResourceExhausted) || got.CorrelationId != msg.CorrelationId {
			t.Errorf("got %q with code %v", got.CorrelationId, code)
		}
		if got := rig.Call(t, client, "b", nil, amqpx.Idempotent()); string(got) != "b" {
			t.Errorf("got %q", got)
		}
	}
	rig.Eventually(t, "nothing is in flight", func() bool { return server.Stats().InFlight == 0 })
	if got := server.Stats().Reconnects; got > 2 {
		t.Errorf("the server's connection was lost %d times by two requests", got)
	}
	if got := runs.Load(); got > 3 { // the request without a key runs again
		t.Errorf("%d runs", got)
	}
	if left := r.Inspect().Messages; left != 0 {
		t.Errorf("%d requests were not acknowledged", left)
	}
}

// TestResponseAtEveryDirectAddressOfACall: a call was sent again from a second channel, and the request
// from the first channel reaches the server last, as after a server has lost its connection. The
// server runs one of the requests, and both channels get the response.
func TestResponseAtEveryDirectAddressOfACall(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	var runs atomic.Int64
	release := make(chan struct{})
	server := r.Serve(rig.Methods{"m": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		runs.Add(1)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return []byte("response"), nil
	}})
	conn := rig.Dial(t, r.URL)
	id := uuid.NewString()
	var addresses []<-chan amqp.Delivery
	for i, headers := range []amqp.Table{{"rpc-resent": true}, nil} {
		ch := channel(t, conn)
		responses, err := ch.Consume("amq.rabbitmq.reply-to", "", true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, responses)
		if err := publishMessage(ch, "", r.Queue.Name, amqp.Publishing{
			Type: "rpc.v1.idempotent", AppId: "m", CorrelationId: id, ReplyTo: "amq.rabbitmq.reply-to", UserId: "guest", Headers: headers,
		}); err != nil {
			t.Fatal(err)
		}
		rig.Eventually(t, "the server has the request", func() bool { return server.Stats().InFlight == uint64(i+1) })
	}
	close(release)
	for _, responses := range addresses {
		if d := rig.Recv(t, responses, "a response"); d.CorrelationId != id || string(d.Body) != "response" {
			t.Errorf("response %q to %q", d.Body, d.CorrelationId)
		}
	}
	if n := runs.Load(); n != 1 {
		t.Errorf("the handler ran %d times, want once", n)
	}
}
