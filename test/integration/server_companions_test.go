//go:build integration

package integration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// stopQueue kills a queue's process until its supervisor stops restarting it. From then on
// RabbitMQ never responds to methods with the queue's name.
func stopQueue(t *testing.T, b *rig.Broker, queue string) {
	t.Helper()
	const kill = `N = rabbit_misc:r(<<"/">>, queue, <<"%s">>),
		K = fun(F, 0) -> still_up; (F, Left) -> case rabbit_amqqueue:lookup(N) of
			{ok, Q} -> P = amqqueue:get_pid(Q), case is_process_alive(P) of
				true -> exit(P, kill), timer:sleep(100), F(F, Left - 1);
				false -> timer:sleep(500), {ok, Q2} = rabbit_amqqueue:lookup(N),
					case is_process_alive(amqqueue:get_pid(Q2)) of true -> F(F, Left - 1); false -> stopped end
				end
		end end, K(K, 50).`
	if got := b.Ctl("eval", fmt.Sprintf(kill, queue)); !strings.Contains(got, "stopped") {
		t.Fatalf("the queue was not stopped: %s", got)
	}
}

func TestServerServesWithoutAQueueThatNeverAnswers(t *testing.T) {
	t.Parallel()
	broker := limited.For(t)
	for _, suffix := range []string{".batch", ".retry", ".dead"} {
		t.Run(suffix, func(t *testing.T) {
			t.Parallel()
			r := rig.On(t, broker.URL)
			r.Serve(rig.Methods{"b": letter}, amqpx.WithBatch(amqpx.BatchAuto)).Drain() //nolint:errcheck // it only makes the queues.
			stopQueue(t, broker, r.Queue.Name+suffix)
			var server *rig.Server
			var warned []observer.LoggedEntry
			for range 5 { // one queue is named, and it is another if the machine takes a second to declare that one
				core, logs := observer.New(zap.WarnLevel)
				server = r.Serve(rig.Methods{"b": letter}, amqpx.WithBatch(amqpx.BatchAuto), amqpx.WithLogger(zap.New(core)))
				warned = logs.FilterMessage("a queue cannot be used, the server does without it").All()
				if len(warned) != 1 || warned[0].ContextMap()["queue"] == r.Queue.Name+suffix {
					break
				}
				if err := server.Drain(); err != nil {
					t.Errorf("drain: %v", err)
				}
			}
			client := r.Ready()
			for range 100 {
				if got := rig.Call(t, client, "b", nil); string(got) != "b" {
					t.Fatalf("got %q", got)
				}
			}
			if len(warned) != 1 || warned[0].ContextMap()["queue"] != r.Queue.Name+suffix || warned[0].ContextMap()["step"] != "declare queue" {
				t.Errorf("warned %v", warned)
			}
			if got := server.Stats().Reconnects; got != 0 {
				t.Errorf("the connection was lost %d times", got)
			}
			if err := server.Drain(); err != nil {
				t.Errorf("drain: %v", err)
			}
		})
	}
}

// TestOptionalQueueDeletedUnderAServer deletes the queues beside the request queue.
func TestOptionalQueueDeletedUnderAServer(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"b": letter}, amqpx.WithBatch(amqpx.BatchAuto))
	client := r.Ready()
	for _, suffix := range []string{".batch", ".retry", ".dead"} {
		if _, err := r.Raw().QueueDelete(r.Queue.Name+suffix, false, false, false); err != nil {
			t.Fatal(err)
		}
		if got := rig.Call(t, client, "b", nil); string(got) != "b" {
			t.Errorf("got %q", got)
		}
	}
	// A request at the delivery limit is dead-lettered, and its queue is declared again.
	inbox := r.Inbox()
	giveBack(t, r, amqp.Publishing{
		AppId: "b", ReplyTo: inbox.Name, CorrelationId: "1", Headers: amqp.Table{"rpc-deliveries": int64(amqpx.DefaultDeliveryLimit)},
	})
	if got := inbox.Next(); got.Headers["rpc-code"] != "internal" {
		t.Errorf("answered with %v", got.Headers)
	}
	if got := server.Stats(); got.Reconnects != 0 || got.Dead != 1 {
		t.Errorf("%d reconnects, %d dead letters", got.Reconnects, got.Dead)
	}
}

// giveBack delivers a request to a consumer of the test and then requeues the request, which
// the server consumes. The request is published as a copy by the server, whose count of deliveries
// the server trusts.
func giveBack(t *testing.T, r *rig.Rig, msg amqp.Publishing) {
	t.Helper()
	uri, err := amqp.ParseURI(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	msg.UserId = uri.Username
	headers := amqp.Table{"rpc-user": ""} // the caller of the copied request: anonymous
	maps.Copy(headers, msg.Headers)
	msg.Headers = headers
	ch := r.Raw()
	if err := ch.Qos(1, 0, false); err != nil {
		t.Fatal(err)
	}
	taken, err := ch.Consume(r.Queue.Name, "", false, false, false, false, amqp.Table{"x-priority": int32(10)})
	if err != nil {
		t.Fatal(err)
	}
	r.Request(msg)
	rig.Recv(t, taken, "the request")
	if err := ch.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAdoptedQueueClosesTheLane(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args  amqp.Table
		cause string // reason for the absence of batches
		kind  string // of the companions
	}{
		"single active consumer": {amqp.Table{"x-single-active-consumer": true}, "x-single-active-consumer", "classic"},
		"priorities":             {amqp.Table{"x-max-priority": int8(5)}, "", "classic"},
		"length, and harmless":   {amqp.Table{"x-expires": int64(3_600_000), "x-queue-mode": "lazy", "x-max-length": int64(1000)}, "x-max-length", "classic"},
		"ttl of a quorum queue":  {amqp.Table{"x-queue-type": "quorum", "x-message-ttl": int64(60_000)}, "x-message-ttl", "quorum"},
		"quorum":                 {amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": int64(7)}, "", "quorum"},
		"harmless":               {amqp.Table{"x-expires": int64(3_600_000)}, "", "classic"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Declare(true, c.args)
			core, logs := observer.New(zap.WarnLevel)
			r.Serve(rig.Methods{"b": letter}, amqpx.WithBatch(amqpx.BatchAuto), amqpx.WithLogger(zap.New(core)))
			if got := rig.Call(t, r.Ready(), "b", nil); string(got) != "b" {
				t.Errorf("got %q", got)
			}
			warned := logs.FilterMessage("queue exists with other properties and is used as it is").All()
			if len(warned) != 1 {
				t.Fatalf("warned %v", logs.All())
			}
			why, _ := warned[0].ContextMap()["no_batches"].(string)
			if !strings.HasSuffix(why, c.cause) || (why == "") != (c.cause == "") {
				t.Errorf("the warning says of batches: %q", why)
			}
			// The server, which is ready after a second at the latest, may still be declaring the others.
			var names []string
			rig.Eventually(t, "the queues beside the request queue exist", func() bool {
				names = rig.Manage(t).Queues(r.URL, r.Queue.Name+".")
				return slices.Contains(names, r.Queue.Name+".dead") && slices.Contains(names, r.Queue.Name+".retry") &&
					(c.cause != "" || slices.Contains(names, r.BatchQueue()))
			})
			if c.cause != "" && slices.Contains(names, r.BatchQueue()) {
				t.Errorf("queues %v", names)
			}
			// A companion of the other type could not be declared again with this type.
			ch := r.Raw()
			_, err := ch.QueueDeclare(r.Queue.Name+".retry", true, false, false, false, amqp.Table{"x-queue-type": c.kind})
			if err != nil {
				t.Errorf("the companion is not %s: %v", c.kind, err)
			}
		})
	}
}

func TestStreamIsRefused(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Declare(true, amqp.Table{"x-queue-type": "stream"})
	server := r.Start(rig.Methods{"b": letter})
	rig.Eventually(t, "the server says why it does not serve", func() bool {
		err := server.Status().Err
		return err != nil && strings.Contains(err.Error(), "is a stream: it hands every request to every server")
	})
}
