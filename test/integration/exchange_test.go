//go:build integration

package integration

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// confined has a server and a client with the documented permissions for the request exchange,
// on the queue amqpx.DefaultQueue of a virtual host of its own.
type confined struct {
	owner    *rig.Rig // may do everything
	server   *rig.Server
	client   *amqpx.Client
	tenant   *rig.Tenant // of the owner
	user     *rig.Tenant // of the client
	exchange string
}

// confine starts a server, which responds only to its callers' reply queues, and a client.
func confine(t *testing.T, methods rig.Methods) *confined {
	t.Helper()
	owner := rig.Manage(t).Tenant()
	owner.Grant(".*")
	c := &confined{owner: rig.On(t, owner.URL()), tenant: owner, user: owner.Another()}
	c.owner.Queue.Name = amqpx.DefaultQueue
	c.exchange = c.owner.Queue.Name + ".rpc"
	c.user.Permit(c.permissions(t))
	servers := rig.Beyond(t, permitted(t, owner, "server"))
	servers.Queue = c.owner.Queue
	c.server = servers.Serve(methods, amqpx.WithReplyPrefix("{queue}.reply.{user}."))
	c.client = c.owner.ClientAt(c.user.URL(), amqpx.WithExchange(c.exchange))
	rig.Connected(t, c.client)
	return c
}

// permissions returns the documented permissions of the client's user.
func (c *confined) permissions(t *testing.T) (configure, write, read string) {
	t.Helper()
	p := documented(t, "orders")
	for i := range p {
		p[i] = strings.ReplaceAll(p[i], "orders", c.user.User)
	}
	return p[0], p[1], p[2]
}

// replies is the beginning of the names of the client's reply queues.
func (c *confined) replies() string { return c.owner.Queue.Name + ".reply." + c.user.User + "." }

// TestConfinedClient: a client without the permission for the default exchange makes calls, alone
// and in batches, cancels them, and lists the servers.
func TestConfinedClient(t *testing.T) {
	t.Parallel()
	waiting := &canceled{begun: make(chan string, 1), ended: make(chan string, 1)}
	c := confine(t, rig.Methods{"echo": echo, "user": user, "wait": waiting.handle})
	if got := string(rig.Call(t, c.client, "user", nil)); got != c.user.User {
		t.Errorf("the caller is %q, want %q", got, c.user.User)
	}
	openLane(t, c.client)
	ctx, cancel := context.WithCancel(rig.Patience(t))
	call := begin(ctx, c.client, "wait", []byte("goes"))
	rig.Recv(t, waiting.begun, "the handler to begin")
	cancel()
	rig.Recv(t, waiting.ended, "the handler's context to end")
	rig.Recv(t, call, "the call to settle")
	listed(t, c.client, 1)
	if _, err := c.client.Ping(rig.Patience(t)); err != nil {
		t.Errorf("ping: %v", err)
	}
	if _, err := c.server.Ping(rig.Patience(t)); err != nil {
		t.Errorf("ping of the server: %v", err)
	}
	st := c.server.Stats()
	if st.DefaultExchange != 0 || st.ReplyRefused != 0 || st.Reconnects != 0 || c.client.Stats().Reconnects != 0 {
		t.Errorf("server %+v, client %+v", st, c.client.Stats())
	}

	before := c.owner.Ready() // of another user, over the default exchange: an old client beside the new
	old := c.owner.ClientAt(c.owner.URL, amqpx.WithUserID(true))
	rig.Connected(t, old)
	for _, client := range []*amqpx.Client{before, old, c.client} {
		rig.Call(t, client, "echo", []byte("x"))
	}
	if got := c.server.Stats().DefaultExchange; got != 2 {
		t.Errorf("%d requests over the default exchange, want 2", got)
	}
}

// TestConfinedClientByDirectReply: direct reply-to works over the exchange, where the server
// allows its addresses.
func TestConfinedClientByDirectReply(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prefixes []string
		want     amqpx.Code
	}{
		"refused": {nil, amqpx.CodeDeadlineExceeded},
		"allowed": {[]string{"{queue}.reply.{user}.", "amq.rabbitmq.reply-to."}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := confine(t, rig.Methods{"echo": echo})
			if c.prefixes != nil {
				if err := r.server.Drain(); err != nil {
					t.Fatal(err)
				}
				r.owner.Serve(rig.Methods{"echo": echo}, amqpx.WithReplyPrefix(c.prefixes...))
			}
			direct := r.owner.ClientAt(r.user.URL(), amqpx.WithExchange(r.exchange), amqpx.WithReplyMode(amqpx.ReplyDirect))
			rig.Connected(t, direct)
			ctx := rig.Patience(t)
			if c.want != "" {
				ctx = rig.Within(t, time.Second)
			}
			if _, err := direct.Call(ctx, "echo", nil); amqpx.CodeOf(err) != c.want {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestDeniedToAConfinedClient: the acts with which a client harms others when it may publish to
// the default exchange.
func TestDeniedToAConfinedClient(t *testing.T) {
	t.Parallel()
	c := confine(t, rig.Methods{"echo": echo})
	queue := c.owner.Queue.Name
	for _, name := range []string{"other_service", queue + ".reply.somebody.1"} {
		if _, err := c.owner.Raw().QueueDeclare(name, true, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	conn := rig.Dial(t, c.user.URL())
	own := c.replies() + "raw"
	declare := func(ch *amqp.Channel, name string, args amqp.Table) error {
		_, err := ch.QueueDeclare(name, true, false, false, false, args)
		return err
	}
	for act, run := range map[string]func(*amqp.Channel) error{
		"publish to the request queue over the default exchange": publishTo("", queue),
		"publish to another service":                             publishTo("", "other_service"),
		"publish to the dead letters":                            publishTo("", queue+".dead"),
		"publish to the retry queue":                             publishTo("", queue+".retry"),
		"publish to another's reply queue":                       publishTo("", queue+".reply.somebody.1"),
		"publish to amq.direct":                                  publishTo("amq.direct", queue),
		"publish to amq.topic":                                   publishTo("amq.topic", queue),
		"bind another queue to the exchange":                     func(ch *amqp.Channel) error { return ch.QueueBind("other_service", queue, c.exchange, false, nil) },
		"bind an own queue to the exchange": func(ch *amqp.Channel) error {
			return errors.Join(declare(ch, own, nil), ch.QueueBind(own, queue, c.exchange, false, nil))
		},
		"delete the exchange": func(ch *amqp.Channel) error { return ch.ExchangeDelete(c.exchange, false, false) },
		"declare the exchange": func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare(c.exchange, "direct", true, false, false, false, nil)
		},
		"consume from another's reply queue": func(ch *amqp.Channel) error {
			_, err := ch.Consume(queue+".reply.somebody.1", "", true, false, false, false, nil)
			return err
		},
		"delete another's reply queue": func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete(queue+".reply.somebody.1", false, false, false)
			return err
		},
		"read the dead letters": func(ch *amqp.Channel) error {
			_, _, err := ch.Get(queue+".dead", true)
			return err
		},
		"read the request queue": func(ch *amqp.Channel) error {
			_, _, err := ch.Get(queue, true)
			return err
		},
		"dead-letter into every queue": func(ch *amqp.Channel) error {
			return declare(ch, c.replies()+"dead", amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue + ".dead"})
		},
	} {
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		var refused *amqp.Error
		if err := run(ch); !errors.As(err, &refused) || refused.Code != amqp.AccessRefused {
			t.Errorf("%s: %v, want 403", act, err)
		}
	}
	for _, key := range []string{"other_service", queue + ".dead", queue + ".retry", queue + ".control", "unknown"} {
		if err := publishTo(c.exchange, key)(channel(t, conn)); !errors.Is(err, errReturned) {
			t.Errorf("publish to the exchange with key %q: %v, want a return", key, err)
		}
	}
	for _, header := range []string{"CC", "BCC"} {
		ch := channel(t, conn)
		msg := amqp.Publishing{AppId: "echo", Headers: amqp.Table{header: []any{"other_service", queue + ".dead"}}}
		if err := publishMessage(ch, c.exchange, queue, msg); err != nil {
			t.Errorf("publish with %s: %v", header, err)
		}
	}
	for _, name := range []string{"other_service", queue + ".dead"} {
		if q, err := c.owner.Raw().QueueDeclarePassive(name, true, false, false, false, nil); err != nil || q.Messages != 0 {
			t.Errorf("%d messages in %q, %v", q.Messages, name, err)
		}
	}
	_, err := c.owner.Raw().QueueDelete(own, false, false, false)
	if err != nil {
		t.Error(err)
	}
}

// channel opens a channel.
func channel(t *testing.T, conn *amqp.Connection) *amqp.Channel {
	t.Helper()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// errReturned means that the broker returned a message.
var errReturned = errors.New("returned")

// publishTo returns a function that publishes a message.
func publishTo(exchange, key string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { return publishMessage(ch, exchange, key, amqp.Publishing{AppId: "echo"}) }
}

// publishMessage publishes a message. It returns the broker's refusal, or errReturned.
func publishMessage(ch *amqp.Channel, exchange, key string, msg amqp.Publishing) error {
	returns := ch.NotifyReturn(make(chan amqp.Return, 1))
	ended := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ch.Confirm(false); err != nil {
		return err
	}
	confirm, err := ch.PublishWithDeferredConfirm(exchange, key, true, false, msg)
	if err != nil {
		return err
	}
	select {
	case <-confirm.Done():
		if !confirm.Acked() { // the channel has ended, or the queue is full
			select {
			case reason := <-ended:
				if reason != nil {
					return reason
				}
			default:
			}
			return errors.New("nacked")
		}
	case reason := <-ended:
		if reason == nil { // a nil *amqp.Error would be an error that is not nil
			return amqp.ErrClosed
		}
		return reason
	}
	select {
	case <-returns:
		return errReturned
	default:
		return nil
	}
}

// TestRequestsForAnothersReplyQueue: a server runs no request whose response would go to another
// user, and believes no header that only servers may send.
func TestRequestsForAnothersReplyQueue(t *testing.T) {
	t.Parallel()
	c := confine(t, rig.Methods{"user": user})
	conn := rig.Dial(t, c.user.URL())
	ch := channel(t, conn)
	own := c.replies() + "raw"
	if _, err := ch.QueueDeclare(own, false, true, true, false, nil); err != nil {
		t.Fatal(err)
	}
	responses, err := ch.Consume(own, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	victim := c.owner.Queue.Name + ".reply.victim.1"
	if _, err := c.owner.Raw().QueueDeclare(victim, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	send := func(id, replyTo, userID string, headers amqp.Table) {
		t.Helper()
		msg := amqp.Publishing{AppId: "user", ReplyTo: replyTo, CorrelationId: id, UserId: userID, Headers: headers}
		if err := publishMessage(channel(t, conn), c.exchange, c.owner.Queue.Name, msg); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	forged := amqp.Table{"rpc-user": "admin", "rpc-deliveries": int64(4)}
	send("another's", victim, c.user.User, nil)
	send("another's, forged", victim, c.user.User, amqp.Table{"rpc-user": "victim"})
	send("anonymous", own, "", nil)
	send("anonymous, forged", own, "", forged)
	send("forged", own, c.user.User, forged)
	send("honest", own, c.user.User, nil)
	responded := make(map[string]bool) // the handlers run at the same time
	for range 2 {
		d := rig.Recv(t, responses, "a response")
		responded[d.CorrelationId] = true
		if string(d.Body) != c.user.User {
			t.Errorf("response %q to %q, want %q", d.Body, d.CorrelationId, c.user.User)
		}
	}
	if !responded["forged"] || !responded["honest"] {
		t.Errorf("responses to %v, want one to the forged and one to the honest request", responded)
	}
	rig.Eventually(t, "four requests were refused", func() bool { return c.server.Stats().ReplyRefused == 4 })
	if q, err := c.owner.Raw().QueueDeclarePassive(victim, true, false, false, false, nil); err != nil || q.Messages != 0 {
		t.Errorf("%d responses for the victim, %v", q.Messages, err)
	}
}

// TestRequestLaunderedByADeadLetterExchange: a client dead-letters a message of its reply queue
// into the request queue. The request has no caller.
func TestRequestLaunderedByADeadLetterExchange(t *testing.T) {
	t.Parallel()
	c := confine(t, rig.Methods{"user": user})
	ch := channel(t, rig.Dial(t, c.user.URL()))
	own := c.replies() + "laundry"
	args := amqp.Table{"x-message-ttl": int64(1), "x-dead-letter-exchange": c.exchange, "x-dead-letter-routing-key": c.owner.Queue.Name}
	if _, err := ch.QueueDeclare(own, true, false, false, false, args); err != nil {
		t.Fatal(err)
	}
	refused := c.server.Stats().ReplyRefused
	// The response of a call goes to the laundry, and comes back as a request without a caller.
	msg := amqp.Publishing{AppId: "user", ReplyTo: own, CorrelationId: "1", UserId: c.user.User}
	if err := publishMessage(ch, c.exchange, c.owner.Queue.Name, msg); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the response came back", func() bool { return c.server.Stats().Requests >= 2 })
	rig.Eventually(t, "all requests are finished", func() bool { return c.server.Stats().InFlight == 0 })
	st := c.server.Stats()
	if st.OK != 1 || st.ReplyRefused != refused {
		t.Errorf("server %+v", st)
	}
	if _, err := c.owner.Raw().QueueDelete(own, false, false, false); err != nil {
		t.Error(err)
	}
}

// TestExchangeDeletedWhileInUse: clients get through again, over the exchange or the default
// exchange by their settings, and the server restores exchange and bindings.
func TestExchangeDeletedWhileInUse(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Serve(rig.Methods{"echo": echo})
	exchange := r.Queue.Name + ".rpc"
	named, auto := r.Ready(amqpx.WithExchange(exchange)), r.Ready(amqpx.WithExchange(amqpx.ExchangeAuto))
	for _, client := range []*amqpx.Client{named, auto} {
		rig.Call(t, client, "echo", []byte("x"))
	}
	if err := r.Raw().ExchangeDelete(exchange, false, false); err != nil {
		t.Fatal(err)
	}
	again := begin(rig.Within(t, 2*time.Minute), named, "echo", []byte("named"), amqpx.Idempotent(), amqpx.WaitForServer())
	if got := rig.Call(t, auto, "echo", []byte("auto"), amqpx.Idempotent()); string(got) != "auto" {
		t.Errorf("got %q", got)
	}
	select {
	case got := <-again:
		if got.err != nil || string(got.response) != "named" {
			t.Errorf("got %q, %v", got.response, got.err)
		}
	case <-rig.Within(t, 2*time.Minute).Done():
		t.Fatal("the call over the exchange did not settle")
	}
	if n := named.Stats().Reconnects; n < 1 || n > 3 {
		t.Errorf("%d reconnects of the client", n)
	}
}

// TestServerFindsAnotherExchange: an exchange of another type costs only the function.
func TestServerFindsAnotherExchange(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	if err := r.Raw().ExchangeDeclare(r.Queue.Name+".rpc", "fanout", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	server := r.Serve(rig.Methods{"echo": echo})
	client := r.Ready()
	openLane(t, client)
	if n := server.Stats().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}
}
