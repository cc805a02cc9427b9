package amqpx

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// usersOf returns the user_id of each message to a queue.
func usersOf(b *brokertest.Broker, queue string) (users []string) {
	for _, m := range b.MessagesTo(queue) {
		users = append(users, m.Msg.UserId)
	}
	return users
}

// whoCalls is a handler that returns the caller's user.
func whoCalls(_ context.Context, req *Request) ([]byte, error) { return []byte(req.User), nil }

func TestMessagesCarryTheUserThatTheBrokerKnows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, brokers string // user of every connection
		opts          []Option
		want          string
	}{
		{"the URL's", "app", nil, "app"},
		{"another than the URL's", "CN=somebody", nil, "CN=somebody"},
		{"switched off", "app", []Option{WithUserID(false)}, ""},
	} {
		for _, mode := range []BatchMode{BatchOff, BatchAuto} {
			t.Run(c.name+", batch "+string(mode), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := brokertest.New()
					b.User = c.brokers
					opts := append([]Option{WithBatch(mode)}, c.opts...)
					serverOpts, clientOpts := make([]ServerOption, 0), make([]ClientOption, 0)
					for _, o := range opts {
						serverOpts, clientOpts = append(serverOpts, o), append(clientOpts, o)
					}
					s := startServer(t, b, handlers{"who": whoCalls, "start batching": echo}, serverOpts...)
					client := startClient(t, b, clientOpts...)
					ready(t, s.WaitReady)
					ready(t, client.WaitReady)
					r := &rig{t: t, broker: b, client: client, server: s}
					if mode == BatchAuto {
						r.awaitBatching()
						for _, call := range r.batchOf(3, "who") {
							wantResponse(t, <-call, c.want)
						}
					}
					wantResponse(t, <-goCall(client, within(t, time.Minute), "who", nil), c.want)
					for _, user := range usersOf(b, DefaultQueue) {
						wantSame(t, "user of a request", user, c.want)
					}
					for _, user := range usersOf(b, brokertest.RouteReplies) {
						wantSame(t, "user of a response", user, "")
					}
					b.Kick(brokertest.BrokenSocket())
					pass(10 * time.Second)
					wantResponse(t, <-goCall(client, within(t, time.Minute), "who", nil), c.want)
				})
			})
		}
	}
}

// The session tries the user name on a separate channel, so neither a refusal nor a missing
// answer harms the session.
func TestBrokerThatDoesNotConfirmTheUser(t *testing.T) {
	t.Parallel()
	refused := &amqp.Error{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED - write access to exchange 'amq.default' refused"}
	for name, c := range map[string]struct {
		hook func(tries int64) error
		took time.Duration
	}{
		"refused": {func(int64) error { return refused }, 0},
		"silent": {func(tries int64) error {
			if tries > 2 {
				return nil // the broker answers from the next session on
			}
			return brokertest.ErrHang
		}, userWait},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				var tries atomic.Int64
				b.OnCall = func(op, name string) error {
					if op != "publish" || name != "" {
						return nil
					}
					return c.hook(tries.Add(1))
				}
				log, logs := observed(zap.WarnLevel)
				begun := time.Now()
				s := startServer(t, b, handlers{"who": whoCalls}, WithLogger(log))
				client := startClient(t, b, WithLogger(log))
				ready(t, s.WaitReady)
				ready(t, client.WaitReady)
				wantSame(t, "took", time.Since(begun), c.took)
				wantResponse(t, <-goCall(client, within(t, time.Minute), "who", nil), "")
				wantSame(t, "reconnects", client.Stats().Reconnects+s.Stats().Reconnects, 0)
				warned := logs.FilterMessageSnippet("did not confirm the user").Len()
				wantSame(t, "warned", warned, map[string]int{"refused": 2, "silent": 0}[name])
			})
		})
	}
}

func TestUserInARefusal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want string
	}{
		{&amqp.Error{Code: amqp.PreconditionFailed, Reason: "PRECONDITION_FAILED - user_id property set to 'srv' but authenticated user was 'cli'"}, "cli"},
		{&amqp.Error{Code: amqp.PreconditionFailed, Reason: "PRECONDITION_FAILED - user_id property set to 'authenticated user was 'x'' but authenticated user was 'cli'"}, "cli"},
		{&amqp.Error{Code: amqp.PreconditionFailed, Reason: "PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was 'O'Brien'"}, "O'Brien"},
		{&amqp.Error{Code: amqp.PreconditionFailed, Reason: "PRECONDITION_FAILED - something else"}, ""},
		{&amqp.Error{Code: amqp.AccessRefused, Reason: "authenticated user was 'cli'"}, ""},
		{amqp.ErrClosed, ""},
	} {
		wantSame(t, c.err.Error(), userIn(c.err), c.want)
	}
}

// A republished request keeps its caller. The user header of another sender is ignored.
func TestWhoCalledAfterAMove(t *testing.T) {
	t.Parallel()
	claim := func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderUser: "admin"} }
	dead := func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderUser: "admin", wire.HeaderDeath: []any{}} }
	for _, c := range []struct {
		name    string
		changes []change
		want    string
	}{
		{"a user", []change{ofUser("a")}, "a"},
		{"nobody", nil, ""},
		{"a user's claim", []change{ofUser("a"), claim}, "a"},
		{"nobody's claim", []change{claim}, ""},
		{"the server's user after a dead-lettering", []change{ofUser("app"), dead}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": whoCalls})
				msg := sent("1", "")
				for _, change := range c.changes {
					change(&msg)
				}
				putRequest(b, with(msg, func(p *amqp.Publishing) { p.CorrelationId = "2" }))
				settle()
				wantSame(t, "at first", onlyResponse(t, b), c.want)
				putLost(b, msg)
				settle()
				wantSame(t, "moved", s.Stats().Republished, 1)
				wantSame(t, "after the move", onlyResponse(t, b), c.want)
				if copies := usersOf(b, DefaultQueue); !slices.Equal(copies, []string{"app"}) {
					t.Errorf("users of the copies: %q", copies)
				}
			})
		})
	}
}

// A dead letter has no user_id, so any user can move the message back, and names its caller in a
// header.
func TestDeadLetterNamesItsCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := serve(t, handlers{"m": whoCalls}, WithDeliveryLimit(1))
		putLost(b, sent("1", "", ofUser("a")))
		settle()
		letters := b.MessagesTo(DefaultQueue + deadSuffix)
		wantSame(t, "dead letters", len(letters), 1)
		wantSame(t, "user", letters[0].Msg.UserId, "")
		wantSame(t, "caller", letters[0].Msg.Headers[wire.HeaderUser], any("a"))
	})
}

// A server that does not know its own user cannot tell another server's copy from a forgery:
// the request has no caller, and in particular not the servers' user.
func TestCopyWhileTheServersUserIsUnknown(t *testing.T) {
	t.Parallel()
	copied := amqp.Table{wire.HeaderUser: "a"}
	for _, c := range []struct {
		name, own string
		msg       amqp.Delivery
		want      string
	}{
		{"a copy", "servers", amqp.Delivery{UserId: "servers", Headers: copied}, "a"},
		{"a copy of an anonymous request", "servers", amqp.Delivery{UserId: "servers", Headers: amqp.Table{wire.HeaderUser: ""}}, ""},
		{"a forgery", "servers", amqp.Delivery{UserId: "b", Headers: copied}, "b"},
		{"a copy or a forgery", "", amqp.Delivery{UserId: "servers", Headers: copied}, ""},
		{"a request", "", amqp.Delivery{UserId: "b"}, "b"},
	} {
		s := &Server{cfg: &serverConfig{config: config{userID: true}}}
		if c.own != "" {
			s.user.name.Store(&c.own)
		}
		wantSame(t, c.name, s.callerOf(&c.msg), c.want)
	}
}
