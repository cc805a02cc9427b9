package amqpx

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

const controlExchangeName = DefaultQueue + ".control"

// startControlled starts a rig with a control plane.
func startControlled(t *testing.T, methods handlers, opts ...Option) *rig {
	t.Helper()
	return startRig(t, methods, append([]Option{WithControl(true)}, opts...)...)
}

// toControl publishes to the control plane from another connection.
func (r *rig) toControl(msg amqp.Publishing) {
	r.t.Helper()
	l, err := r.broker.Dial(r.t.Context(), testURL, "somebody")
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	ch, err := l.Channel()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := ch.PublishFanout(controlExchangeName, msg); err != nil {
		r.t.Fatal(err)
	}
	settle()
}

func TestFleetListsEveryServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fail := func(context.Context, *Request) ([]byte, error) {
			pass(2 * time.Second)
			return nil, Errorf(CodeNotFound, "no")
		}
		r := startControlled(t, handlers{"m": echo, "fail": fail}, WithName("one"), WithVersion("1.2.3"))
		other := startServer(t, r.broker, handlers{"m": echo}, WithControl(true), WithName("other"), WithWorkers(7), WithBatch(BatchAuto))
		ready(t, other.WaitReady)
		<-goCall(r.client, within(t, time.Minute), "fail", nil)
		begun := time.Now()
		servers, err := r.client.Servers(within(t, time.Minute))
		if err != nil || len(servers) != 2 {
			t.Fatalf("servers %+v, %v", servers, err)
		}
		wantSame(t, "took", time.Since(begun), fleetQuiet)
		one, two := servers[0], servers[1]
		wantSame(t, "names", one.Name+" "+two.Name, "one other")
		wantSame(t, "version", one.Version, "1.2.3")
		wantSame(t, "state", one.State, "ready")
		wantSame(t, "queue", one.Queue, DefaultQueue)
		wantSame(t, "workers", two.Workers, 7)
		wantSame(t, "batch", two.Batch, true)
		wantSame(t, "uptime", one.UptimeSeconds, 2)
		wantSame(t, "requests", one.Stats.Requests+two.Stats.Requests, 1)
		if one.ID == two.ID || one.ID == "" || one.PID == 0 || one.Host == "" {
			t.Errorf("identities %+v and %+v", one, two)
		}
		wantSame(t, "methods", len(one.Methods)+len(two.Methods), 3)
		failed := one.Methods[0]
		wantSame(t, "method", failed.Name, "fail")
		wantSame(t, "failed", failed.Failed, 1)
		if ms := failed.LatencyMS; ms.Mean < 1980 || ms.P99 < 1980 || ms.Max > 2020 {
			t.Errorf("latency %+v", ms)
		}
		wantSame(t, "queues for responses", strings.Count(strings.Join(r.queueNames(), " "), DefaultQueue+".reply.app."), 2)
	})
}

// declare creates a queue.
func (r *rig) declare(name string) {
	r.broker.With(func(b *brokertest.Broker) {
		if refused := b.Declare(name, true, nil); refused != nil {
			r.t.Error(refused)
		}
	})
}

// queueNames lists the broker's queues.
func (r *rig) queueNames() (names []string) {
	r.broker.With(func(b *brokertest.Broker) {
		for name := range b.Queues {
			names = append(names, name)
		}
	})
	return names
}

func TestQuestionsWithoutAnybodyToAnswer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		arrange func(*rig)
		is      error
	}{
		"no exchange": {func(r *rig) { r.broker.With(func(b *brokertest.Broker) { delete(b.Fanouts, controlExchangeName) }) }, ErrUnroutable},
		"no server": {func(r *rig) {
			r.server.stop()
			_ = r.server.wait(r.t)
		}, ErrUnroutable},
		"no link": {func(r *rig) {
			r.broker.With(func(b *brokertest.Broker) { b.OnDial = refusing(1<<30, brokertest.ErrCut) })
			r.broker.Kick(nil)
		}, ErrNotConnected},
		"blocked": {func(r *rig) {
			_, _ = r.client.Call(within(r.t, time.Minute), "m", nil)
			r.broker.SetAlarm("low on memory")
		}, ErrBlocked},
		"closed": {func(r *rig) { _ = r.client.Close(within(r.t, time.Minute)) }, ErrClosed},
		"never answered": {func(r *rig) {
			r.broker.With(func(b *brokertest.Broker) { b.Fanouts[controlExchangeName] = []string{DefaultQueue + ".dead"} })
		}, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startControlled(t, handlers{"m": echo})
				c.arrange(r)
				settle()
				_, err := r.client.Servers(within(t, 10*time.Second))
				wantIs(t, err, c.is)
				_, err = r.client.Ping(within(t, 10*time.Second))
				wantIs(t, err, c.is)
			})
		})
	}
}

func TestPings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startControlled(t, handlers{"m": echo})
		for range 3 {
			if _, err := r.client.Ping(within(t, time.Minute)); err != nil {
				t.Errorf("client: %v", err)
			}
			if _, err := r.server.Ping(within(t, time.Minute)); err != nil {
				t.Errorf("server: %v", err)
			}
		}
		r.broker.SetAlarm("low on memory")
		_, err := r.server.Ping(within(t, time.Second))
		wantIs(t, err, ErrBlocked, context.DeadlineExceeded)
		r.broker.SetAlarm("")
		settle()
		r.broker.With(func(b *brokertest.Broker) { b.OnDial = refusing(1<<30, brokertest.ErrCut) })
		r.broker.Kick(nil)
		settle()
		_, err = r.server.Ping(within(t, time.Second))
		wantIs(t, err, ErrNotConnected)
		wantNoQuery(t, r.server.Server)
	})
}

// Only the server itself answers its ping: a program that can write to the server's control
// queue, or a late response, must not make a server look well whose responses do not arrive.
func TestServersPingIsAnsweredByTheServerItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startControlled(t, handlers{"m": echo})
		var id atomic.Pointer[string]
		r.broker.With(func(b *brokertest.Broker) {
			b.OnDial = func(_ context.Context, _, name string) error {
				if strings.Contains(name, "direct") { // the connection of the response
					return brokertest.ErrCut
				}
				return nil
			}
			b.OnPublish = func(_ string, msg amqp.Publishing) *amqp.Error {
				if msg.AppId == wire.ControlPing {
					id.Store(&msg.CorrelationId)
				}
				return nil
			}
		})
		pinged := make(chan error, 1)
		go func() {
			_, err := r.server.Ping(within(t, 10*time.Second))
			pinged <- err
		}()
		settle()
		for _, body := range []string{"", "not JSON", `{"id":"another server"}`} {
			r.broker.PutIn(r.controlQueue(), amqp.Publishing{CorrelationId: *id.Load(), Body: []byte(body)})
			settle()
		}
		r.broker.PutIn(r.controlQueue(), amqp.Publishing{CorrelationId: "earlier ping", Body: []byte(`{"id":"` + r.server.self.id + `"}`)})
		wantIs(t, <-pinged, context.DeadlineExceeded)
		r.broker.With(func(b *brokertest.Broker) { b.OnDial = nil })
		_, err := r.server.Ping(within(t, time.Minute))
		wantSame(t, "error", err, nil)
	})
}

// wantNoQuery fails the test if a server waits for a response to a query of its own.
func wantNoQuery(t *testing.T, s *Server) {
	t.Helper()
	s.queries.Range(func(id, _ any) bool {
		t.Errorf("query %v is open", id)
		return true
	})
}

// controlQueue returns the queue of the only server's control plane.
func (r *rig) controlQueue() string {
	r.t.Helper()
	for _, name := range r.queueNames() {
		if strings.HasPrefix(name, controlExchangeName+".") {
			return name
		}
	}
	r.t.Fatal("no control queue")
	return ""
}

func TestServersPingWhoseConnectionIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startControlled(t, handlers{"m": echo})
		r.broker.Fail(r.controlQueue(), brokertest.FaultCutUnconfirmed)
		begun := time.Now()
		_, err := r.server.Ping(t.Context())
		wantIs(t, err, ErrNotConnected)
		wantSame(t, "took", time.Since(begun), 0)
		wantNoQuery(t, r.server.Server)
		settle()
		ready(t, r.server.WaitReady)
		_, err = r.server.Ping(within(t, time.Minute))
		wantSame(t, "error", err, nil)
	})
}

func TestServerWithoutAControlPlane(t *testing.T) {
	t.Parallel()
	for _, code := range []int{amqp.AccessRefused, amqp.PreconditionFailed} {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New()
			b.OnCall = func(op, _ string) error {
				if op == "declare exchange" {
					return &amqp.Error{Code: code, Server: true, Reason: "refused"}
				}
				return nil
			}
			core, logs := observer.New(zap.WarnLevel)
			s := startServer(t, b, handlers{"m": echo}, WithControl(true), WithLogger(zap.New(core)))
			c := startClient(t, b, WithControl(true))
			ready(t, s.WaitReady)
			b.Kick(nil)
			settle()
			ready(t, s.WaitReady)
			ready(t, c.WaitReady)
			wantResponse(t, <-goCall(c, within(t, time.Minute), "m", []byte("x")), "x")
			wantSame(t, "warnings", logs.FilterMessage("no control plane: the broker refused it").Len(), 1)
			_, err := s.Ping(within(t, time.Minute))
			wantSame(t, "code", CodeOf(err), CodeUnimplemented)
		})
	}
}

func TestStrangeControlMessagesAreDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		r := startControlled(t, handlers{"m": echo}, WithLogger(zap.New(core)))
		for range 3 {
			for _, msg := range []amqp.Publishing{
				{AppId: "reboot", ReplyTo: "somewhere"},
				{AppId: strings.Repeat("x", 255)},
				{AppId: wire.ControlPing},
				{AppId: wire.ControlStats, ReplyTo: wire.DirectReplyTo + ".made.up"},
				{AppId: wire.ControlCancel, Body: []byte("\xff\xff\xff")},
				{AppId: wire.ControlCancel, Body: []byte{0x0a, 0}},
				{CorrelationId: "nobody asked"},
			} {
				r.toControl(msg)
			}
		}
		wantSame(t, "warnings", logs.FilterMessage("dropped a control message that cannot be read").Len(), 1)
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
		wantSame(t, "reconnects", r.server.Stats().Reconnects, 0)
	})
}

func TestFloodOfQuestionsIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startControlled(t, handlers{"m": echo})
		r.declare("flooder")
		r.broker.HoldConfirms()
		for range 10 * controlResponses {
			r.toControl(amqp.Publishing{AppId: wire.ControlPing, ReplyTo: "flooder", CorrelationId: "1"})
		}
		wantSame(t, "responses", r.broker.Ready("flooder"), controlResponses)
		r.broker.ReleaseConfirms()
		settle()
		wantSame(t, "under way", r.server.controlResponses.Load(), 0)
		r.toControl(amqp.Publishing{AppId: wire.ControlInfo, ReplyTo: "flooder", CorrelationId: "1"})
		wantSame(t, "responses", r.broker.Ready("flooder"), controlResponses+1)
	})
}

func TestResponsesTellAsMuchAsWasAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startControlled(t, handlers{"m": echo})
		r.declare("asker")
		for question, want := range map[string][2]bool{wire.ControlPing: {}, wire.ControlInfo: {true, false}, wire.ControlStats: {true, true}} {
			r.toControl(amqp.Publishing{AppId: question, ReplyTo: "asker", CorrelationId: "7"})
			var got ServerInfo
			r.broker.With(func(b *brokertest.Broker) {
				q := b.Queues["asker"]
				msg := q.Messages[0].Msg
				q.Messages = nil
				wantSame(t, "correlation id", msg.CorrelationId, "7")
				if err := json.Unmarshal(msg.Body, &got); err != nil {
					t.Error(err)
				}
			})
			wantSame(t, question+" tells of methods and counts", [2]bool{got.Methods != nil, got.Stats != nil}, want)
		}
	})
}

func TestControlPlaneSurvivesTheLossOfItsQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startControlled(t, handlers{"m": echo})
		r.broker.With(func(b *brokertest.Broker) {
			for name, q := range b.Queues {
				if strings.HasPrefix(name, controlExchangeName) {
					b.Remove(q)
				}
			}
		})
		settle()
		ready(t, r.server.WaitReady)
		_, err := r.server.Ping(within(t, time.Minute))
		wantSame(t, "error", err, nil)
		wantSame(t, "reconnects", r.server.Stats().Reconnects, 1)
	})
}

func TestNothingIsPublishedWhileNobodyAsks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startControlled(t, handlers{"m": counted(&runs, echo)})
		for range 10 {
			<-goCall(r.client, within(t, time.Minute), "m", nil)
		}
		r.broker.With(func(b *brokertest.Broker) {
			wantSame(t, "messages", len(b.Sent), 20)
			for _, m := range b.Sent {
				wantSame(t, "to the control plane", strings.HasPrefix(m.Key, controlExchangeName), false)
			}
		})
	})
}

func TestLogLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.WarnLevel)
		var limit logLimit
		for range 10 {
			limit.of(log).Warn("fault")
		}
		wantSame(t, "lines", logs.Len(), 1)
		pass(logInterval)
		limit.of(log).Warn("fault")
		wantSame(t, "lines", logs.Len(), 2)
		wantSame(t, "not logged", logs.All()[1].ContextMap()["not_logged"], any(int64(9)))
	})
}

func TestBadBatchesFillNoLogAndGetNoResponses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.WarnLevel)
		b, s := serve(t, handlers{"m": echo}, WithBatch(BatchAuto), WithLogger(log))
		put := func(body []byte) {
			b.PutIn(batchQueueName, amqp.Publishing{ContentType: wire.ContentTypeRequests, ReplyTo: rawQueue, Body: body})
		}
		for range 100 {
			put([]byte("no batch"))
			put([]byte{0x0a, 0, 0x0a, 0, 0x0a, 0}) // three empty records
		}
		// Of three calls, only the second has an id and is answered.
		put(append(append([]byte{0x0a, 0}, 0x0a, 6, 0x0a, 1, 'i', 0x12, 1, 'm'), 0x0a, 0))
		settle()
		wantSame(t, "lines", logs.FilterMessageSnippet("dropped a batch").Len(), 1)
		wantSame(t, "responses", len(takeResponses(b)), 1)
		wantSame(t, "refused", s.Stats().Refused, 302)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		wantSame(t, "left", b.Ready(batchQueueName)+b.Unacked(batchQueueName), 0)
	})
}
