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

// A dead letter that is moved back with the servers' user as its user_id keeps its caller, whose rules,
// reply queues and count of deliveries then hold as before. Moved back in any other way it is
// anonymous: rules that do not allow anonymous callers refuse it, and it is lost.
func TestDeadLetterThatIsMovedBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		user    string // the user_id of the message that is moved back
		change  change // of the dead letter
		rules   string
		ran     string // the caller that the handler got; "-": the handler did not run
		refused string // the caller in the log
		answers int    // the responses to the caller, the error of the dead-lettering among them
	}{
		{"with the servers' user", "app", nil, `{"m": ["a"]}`, "a", "", 2},
		{"with a trusted user", "redriver", nil, `{"m": ["a"]}`, "a", "", 2},
		{"without a user", "", nil, `{"m": ["a"]}`, "-", "", 1},
		{"without a user, which the rules allow", "", nil, `{"m": [""]}`, "", "", 1},
		{"with another user", "b", nil, `{"m": ["a"]}`, "-", "b", 1},
		{"of a caller whom the rules do not allow", "app", nil, `{"m": ["b", "app"]}`, "-", "a", 2},
		{"without the name of its caller", "app", func(p *amqp.Publishing) { delete(p.Headers, wire.HeaderUser) }, `{"m": ["*"]}`, "-", "", 1},
		{"with the servers' user, after a dead-lettering by the broker", "app", func(p *amqp.Publishing) {
			p.Headers[wire.HeaderDeath] = []any{}
		}, `{"m": ["*"]}`, "-", "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rules := rulesOf(t, `{"methods": `+c.rules+`}`)
				log, logs := observed(zap.WarnLevel)
				ran := "-"
				b, s := serve(t, handlers{"m": func(ctx context.Context, req *Request) ([]byte, error) {
					ran = req.User
					return whoCalls(ctx, req)
				}}, WithDeliveryLimit(1), WithReplyPrefix("reply.{user}."), WithTrustedUsers("redriver"),
					WithMiddleware(Authorize(func() *AuthorizationRules { return rules }, log)))
				const answers = "reply.a.1"
				b.With(func(b *brokertest.Broker) { _ = b.Declare(answers, true, nil) })
				putLost(b, sent("1", "", ofUser("a"), from(answers)))
				settle()
				letters := b.MessagesTo(DefaultQueue + deadSuffix)
				wantSame(t, "dead letters", len(letters), 1)
				letter := letters[0].Msg
				letter.UserId = c.user
				if c.change != nil {
					c.change(&letter)
				}
				putRequest(b, letter)
				settle()
				wantSame(t, "ran as", ran, c.ran)
				wantSame(t, "requests left", b.Ready(DefaultQueue), 0)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
				wantSame(t, "dead letters after the move", len(b.MessagesTo(DefaultQueue+deadSuffix)), 1)
				wantSame(t, "responses", b.Ready(answers), c.answers)
				refused := logs.FilterMessageSnippet("the authorization rules do not allow").All()
				if c.ran != "-" {
					wantSame(t, "refused", len(refused), 0)
				} else if len(refused) != 1 || refused[0].ContextMap()["user"] != c.refused {
					t.Errorf("refused %v, want the user %q", refused, c.refused)
				}
			})
		})
	}
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
