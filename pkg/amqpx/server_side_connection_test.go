package amqpx

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// deadNode is a well-formed direct reply-to address of a stopped node.
const deadNode = wire.DirectReplyTo + ".g1h3DnJlcGx5QDEyMzQ1Njc4AAADAQAAAABmESIz.MDEyMzQ1Njc4OWFiY2RlZg=="

// endsAtDeadNodes makes the broker end the connection of a publisher to a deadNode address.
func endsAtDeadNodes(b *brokertest.Broker) {
	b.With(func(b *brokertest.Broker) {
		b.Fatal = func(key string, _ amqp.Publishing) bool { return strings.HasPrefix(key, deadNode) }
	})
}

func TestResponseThatEndsItsConnectionHarmsNobodyElse(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*amqp.Publishing){
		"without a key": func(*amqp.Publishing) {},
		"with a key":    func(msg *amqp.Publishing) { msg.MessageId = "key" },
		"our contract":  func(msg *amqp.Publishing) { msg.Type = wire.TypeRequest },
		"unknown method": func(msg *amqp.Publishing) {
			msg.AppId = "unknown" // the refusal says "did not run" and is sent after the request is acknowledged
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, logs := observed(zap.WarnLevel)
				r := startRig(t, handlers{"m": echo}, WithLogger(log))
				endsAtDeadNodes(r.broker)
				direct := startClient(t, r.broker, WithReplyMode(ReplyDirect))
				ready(t, direct.WaitReady)
				for n := range 5 {
					msg := amqp.Publishing{AppId: "m", ReplyTo: deadNode, CorrelationId: fmt.Sprint("id", n)}
					change(&msg)
					putRequest(r.broker, msg)
					putRequest(r.broker, msg) // again, when the server knows the address
					wantResponse(t, <-goCall(direct, within(t, time.Minute), "m", []byte("x")), "x")
					wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("y")), "y")
				}
				pass(30 * time.Second)
				settle()
				stats := r.server.Stats()
				wantSame(t, "reconnects", stats.Reconnects, 0)
				wantSame(t, "undeliverable", stats.Undeliverable, 10)
				wantSame(t, "in flight", stats.InFlight, 0)
				wantSame(t, "left", r.broker.Ready(DefaultQueue)+r.broker.Unacked(DefaultQueue), 0)
				wantSame(t, "lines", logs.FilterMessageSnippet("dropped a response").Len(), 1)
			})
		})
	}
}

func TestInnocentResponsesArriveAfterTheEndOfTheirConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		direct := startClient(t, r.broker, WithReplyMode(ReplyDirect))
		ready(t, direct.WaitReady)
		endsAtDeadNodes(r.broker)
		r.broker.HoldConfirms() // all responses are unconfirmed when the connection ends
		var calls []<-chan result
		for n := range 20 {
			calls = append(calls, goCall(direct, within(t, time.Minute), "m", []byte(fmt.Sprint(n))))
		}
		settle()
		putRequest(r.broker, amqp.Publishing{AppId: "m", ReplyTo: deadNode, CorrelationId: "id"})
		settle()
		r.broker.ReleaseConfirms()
		for n, call := range calls {
			wantResponse(t, <-call, fmt.Sprint(n))
		}
		pass(time.Minute)
		settle()
		wantSame(t, "undeliverable", r.server.Stats().Undeliverable, 1)
		wantSame(t, "reconnects", r.server.Stats().Reconnects, 0)
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
		wantSame(t, "duplicates are not more than what was unconfirmed", direct.Stats().Duplicates <= 20, true)
	})
}

func TestControlMessageFromADeadNodeHarmsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startControlled(t, handlers{"m": echo})
		endsAtDeadNodes(r.broker)
		for _, question := range []string{wire.ControlPing, wire.ControlInfo, wire.ControlStats} {
			r.toControl(amqp.Publishing{AppId: question, ReplyTo: deadNode + question, CorrelationId: "id"})
		}
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
		pass(10 * time.Second)
		servers, err := r.client.Servers(within(t, time.Minute))
		if err != nil || len(servers) != 1 {
			t.Errorf("servers %v, %v", servers, err)
		}
		wantSame(t, "reconnects", r.server.Stats().Reconnects, 0)
		wantSame(t, "undeliverable", r.server.Stats().Undeliverable, 3)
		wantSame(t, "under way", r.server.controlResponses.Load(), 0)
	})
}

// TestMessageThatEndsTheServersConnection tries messages to ordinary queues for which the broker
// ends the server's connection.
func TestMessageThatEndsTheServersConnection(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fatal func(key string, msg amqp.Publishing) bool
		// reconnects is the most reconnects of the server for one request.
		reconnects uint64
	}{
		"response":      {func(key string, _ amqp.Publishing) bool { return key == "evil" }, 1},
		"every message": {func(_ string, msg amqp.Publishing) bool { return msg.CorrelationId == "evil" }, 2},
		"burial, and its response": {func(key string, _ amqp.Publishing) bool {
			return key == "evil" || key == DefaultQueue+deadSuffix
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": echo})
				client := startClient(t, b)
				ready(t, client.WaitReady)
				b.With(func(b *brokertest.Broker) { _ = b.Declare("evil", true, nil); b.Fatal = c.fatal })
				putRequest(b, amqp.Publishing{AppId: "m", ReplyTo: "evil", CorrelationId: "evil", MessageId: "key"})
				putRequest(b, amqp.Publishing{
					AppId: "m", ReplyTo: "evil", CorrelationId: "evil",
					// The next loss is the last.
					UserId: "app", Headers: amqp.Table{wire.HeaderUser: "", wire.HeaderDeliveries: int64(DefaultDeliveryLimit - 1)},
				})
				putRequest(b, amqp.Publishing{AppId: "m", ReplyTo: "evil", CorrelationId: "evil"})
				pass(time.Minute)
				settle()
				wantSame(t, "in flight", s.Stats().InFlight, 0)
				wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
				if got := s.Stats().Reconnects; got > 3*c.reconnects {
					t.Errorf("%d reconnects, want at most %d", got, 3*c.reconnects)
				}
				wantSame(t, "some were dropped", s.Stats().Undeliverable > 0, true)
				wantResponse(t, <-goCall(client, within(t, time.Minute), "m", []byte("x")), "x")
			})
		})
	}
}

func TestSideConnectionThatCannotBeDialed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.WarnLevel)
		r := startRig(t, handlers{"m": echo}, WithLogger(log))
		direct := startClient(t, r.broker, WithReplyMode(ReplyDirect))
		ready(t, direct.WaitReady)
		var away atomic.Bool
		away.Store(true)
		var dials atomic.Int64
		r.broker.With(func(b *brokertest.Broker) {
			b.OnDial = func(_ context.Context, _, name string) error {
				if strings.Contains(name, "server direct") {
					if dials.Add(1); away.Load() {
						return brokertest.ErrCut
					}
				}
				return nil
			}
		})
		call := goCall(direct, within(t, time.Minute), "m", []byte("x"))
		pass(20 * time.Second)
		if n := dials.Load(); n < 5 || n > 100 {
			t.Errorf("%d dials in 20 s", n)
		}
		wantSame(t, "lines", logs.FilterMessageSnippet("a connection for responses ended").Len(), 1)
		away.Store(false)
		wantResponse(t, <-call, "x")
	})
}
