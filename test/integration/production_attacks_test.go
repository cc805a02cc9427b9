//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// These tests are the attacks 1 to 6 of docs/security.md: by the user client, with the permissions
// of production, on a server with the settings of the overlay and on calls of the user other.

// besieged is a server in production, a client of the user other and the connection of an attacker.
type besieged struct {
	*production

	server   *rig.Server
	victim   *amqpx.Client
	attacker *rig.Rig
}

// besiege starts a server with the settings of the overlay, and a client. The server's URL is
// changed if change is not nil.
func besiege(t *testing.T, methods rig.Methods, change func(string) string, opts ...amqpx.ServerOption) *besieged {
	t.Helper()
	p := inProduction(t)
	at := p.url(asServer)
	if change != nil {
		at = change(at)
	}
	b := &besieged{production: p, attacker: p.as(asClient)}
	b.server = p.as(asServer).ServeAt(at, methods, append(serverInProduction(t), opts...)...)
	b.victim = p.as(asOther).Client(clientInProduction()...)
	rig.Connected(t, b.victim)
	return b
}

// serverInProduction returns the settings of the overlay.
func serverInProduction(t *testing.T) []amqpx.ServerOption {
	t.Helper()
	rules, err := amqpx.NewAuthorizationRules(map[string][]string{"*": {asClient, asOther}})
	if err != nil {
		t.Fatal(err)
	}
	return []amqpx.ServerOption{
		amqpx.WithReplyPrefix("{queue}.reply.{user}."),
		amqpx.WithPrefetch(overlay(t, "RPC_PREFETCH")),
		amqpx.WithDedup(1<<20, amqpx.DefaultDedupAge),
		amqpx.WithCallerLimits(amqpx.CallerLimits{
			MaxCalls: overlay(t, "RPC_CALLER_MAX_CALLS"), MaxBytes: overlay(t, "RPC_CALLER_MAX_BYTES"),
			MaxRunning: overlay(t, "RPC_CALLER_MAX_RUNNING"),
		}),
		amqpx.WithMiddleware(amqpx.Authorize(func() *amqpx.AuthorizationRules { return rules }, nil)),
	}
}

func clientInProduction() []amqpx.ClientOption {
	return []amqpx.ClientOption{amqpx.WithExchange(exchange)}
}

// send publishes a message of the attacker, and returns the result.
func (b *besieged) send(to, key string, msg amqp.Publishing) string {
	b.t.Helper()
	ch := b.attacker.Raw()
	defer func() { _ = ch.Close() }()
	return result(b.t, ch, publishing(to, key, msg))
}

// inbox returns a queue for responses that a user may have.
func (p *production) inbox(r *rig.Rig, user string) (name string, responses <-chan amqp.Delivery) {
	p.t.Helper()
	ch := r.Raw()
	q, err := ch.QueueDeclare(requests+".reply."+user+"."+uuid.NewString(), false, false, true, false, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	responses, err = ch.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return q.Name, responses
}

// responseTo waits for the response with a correlation id.
func responseTo(t *testing.T, responses <-chan amqp.Delivery, id string) string {
	t.Helper()
	for {
		if d := rig.Recv(t, responses, "the response to "+id); d.CorrelationId == id {
			return string(d.Body)
		}
	}
}

// depth returns the number of ready messages in a queue, which every user may see.
func (b *besieged) depth(queue string) int {
	b.t.Helper()
	ch := b.attacker.Raw()
	defer func() { _ = ch.Close() }()
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		b.t.Fatalf("look at %s: %v", queue, err)
	}
	return q.Messages
}

// unharmed waits until the servers have taken every message, and checks that the victim's calls get
// their responses, that no connection was lost, and that nothing was retried or dead-lettered.
func (b *besieged) unharmed() {
	b.t.Helper()
	rig.Eventually(b.t, "the servers have taken every message", func() bool { return b.depth(requests)+b.depth(batches) == 0 })
	const calls = 100
	for i := range calls {
		if got := rig.Call(b.t, b.victim, "echo", strconv.AppendInt(nil, int64(i), 10)); string(got) != strconv.Itoa(i) {
			b.t.Errorf("call %d got %q", i, got)
		}
	}
	if server, client := b.server.Stats(), b.victim.Stats(); server.Reconnects != 0 || client.Reconnects != 0 || client.Unknown != 0 {
		b.t.Errorf("%d reconnects of the server, %d of the client, which got %d unknown responses", server.Reconnects, client.Reconnects, client.Unknown)
	}
	for _, queue := range []string{deadLetters, retries} {
		if n := b.depth(queue); n != 0 {
			b.t.Errorf("%d messages in %s", n, queue)
		}
	}
}

// TestProductionAttackDirectReplyTo is attack 1: addresses of direct reply-to that end the
// connection of the program that publishes to them.
func TestProductionAttackDirectReplyTo(t *testing.T) {
	t.Parallel()
	b := besiege(t, rig.Methods{"echo": echo}, nil)
	want := func(what, got string) {
		t.Helper()
		if got != allowed {
			t.Errorf("%s: %s, want the server to refuse it", what, got)
		}
	}
	const rounds = 5
	for n := range rounds {
		known := deadNode()
		for what, msg := range map[string]amqp.Publishing{
			"no key":          {AppId: "echo", ReplyTo: deadNode(), CorrelationId: "c"},
			"key":             {AppId: "echo", ReplyTo: known, CorrelationId: "c", MessageId: fmt.Sprint("key", n)},
			"the same key":    {AppId: "echo", ReplyTo: known, CorrelationId: "c", MessageId: fmt.Sprint("key", n)},
			"type":            {AppId: "echo", ReplyTo: known, CorrelationId: "c", Type: "rpc.v1"},
			"with a user":     {AppId: "echo", ReplyTo: deadNode(), CorrelationId: "c", UserId: asClient},
			"unknown method":  {AppId: "unknown", ReplyTo: deadNode(), CorrelationId: "c", UserId: asClient},
			"malformed":       {AppId: "echo", ReplyTo: "amq.rabbitmq.reply-to.garbage", CorrelationId: "c", UserId: asClient},
			"direct reply-to": {AppId: "echo", ReplyTo: deadNode(), CorrelationId: "c", UserId: asClient, Headers: amqp.Table{"rpc-timeout-ms": int32(60000)}},
		} {
			want(what, b.send(exchange, requests, msg))
		}
		want("a batch", b.send(exchange, batches, amqp.Publishing{
			ContentType: rig.CallsType, ReplyTo: deadNode(), UserId: asClient, CorrelationId: "c",
			Body: rig.BatchOf(rig.RawCall("1", "echo", ""), rig.RawCall("2", "unknown", "")),
		}))
		for _, question := range []string{"ping", "info", "stats"} {
			want(question, b.send(control, "", amqp.Publishing{AppId: question, ReplyTo: deadNode(), CorrelationId: "c"}))
		}
	}
	b.unharmed()
	rig.Eventually(t, "nothing is in flight", func() bool { return b.server.Stats().InFlight == 0 })
	if n := b.server.Stats().Undeliverable; n != 0 {
		t.Errorf("the server published %d responses to such addresses", n)
	}
}

// TestProductionAttackBodies is attack 2: bodies that fill the memory of servers. The server is
// the program with the memory of its container.
func TestProductionAttackBodies(t *testing.T) {
	t.Parallel()
	p := inProduction(t)
	const memory = 256 << 20
	limit := rig.NewMemoryLimit(t, memory)
	command := limit.Command(rig.Build(t, "rpc-server"))
	program := rig.Run(t, append(p.serverEnvironment(), "GOMEMLIMIT=200MiB"), command[0], command[1:]...)
	program.Says(`"msg":"ready"`)
	b := &besieged{production: p, attacker: p.as(asClient), victim: p.as(asOther).Client(clientInProduction()...)}
	rig.Connected(t, b.victim)
	works := func(when string) {
		t.Helper()
		for range 20 {
			if got := rig.Call(t, b.victim, "b", nil, amqpx.WaitForServer()); string(got) != "b" {
				t.Errorf("%s: got %q", when, got)
			}
		}
		if !program.Running() {
			t.Fatalf("%s: the server ended", when)
		}
	}
	works("before")
	const mebi = 1 << 20
	if got := b.send(exchange, requests, amqp.Publishing{AppId: "b", Body: make([]byte, 120*mebi)}); got != "406" {
		t.Errorf("120 MiB: %s, want the broker to refuse it", got)
	}
	works("after 120 MiB")
	for user, messages := range map[string]int{"": 24, asClient: 8} {
		taken := 0
		for range messages {
			ch := b.attacker.Raw()
			err := publishing(exchange, requests, amqp.Publishing{
				AppId: "b", UserId: user, CorrelationId: uuid.NewString(), ReplyTo: "nobody", Body: make([]byte, 15*mebi),
			})(ch)
			if err == nil {
				taken++ // otherwise the queue is full, and the broker refuses
			}
			_ = ch.Close()
		}
		if taken == 0 {
			t.Error("the broker took no message of 15 MiB")
		}
		works("after messages of 15 MiB")
	}
	// One call with as many headers as fit.
	header := rig.Record(rig.Field{Number: 1, Value: "k"}, rig.Field{Number: 2, Value: ""})
	fields := slices.Repeat([]rig.Field{{Number: rig.CallHeader, Value: header}}, 15*mebi/(len(header)+2))
	if got := b.send(exchange, batches, amqp.Publishing{
		ContentType: rig.CallsType, ReplyTo: "nobody", UserId: asClient, Body: rig.BatchOf(rig.RawCall("1", "b", "", fields...)),
	}); got != allowed {
		t.Errorf("a batch of headers: %s", got)
	}
	works("after a batch of headers")
	t.Logf("peak memory by %s: %d MiB", limit.Kind, limit.Peak()/mebi)
	if n := b.depth(deadLetters); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	program.Terminate()
	if err := program.Wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
}

// TestProductionAttackHeaders is attack 3: headers that the AMQP library cannot read.
func TestProductionAttackHeaders(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(b *rig.Broker, url string) string
		tls    bool
	}{
		"plain":             {},
		"scheme in capital": {change: func(_ *rig.Broker, at string) string { return strings.Replace(at, "amqp://", "AMQP://", 1) }},
		"TLS": {tls: true, change: func(b *rig.Broker, at string) string {
			secure, _ := url.Parse(b.TLSURL)
			u, _ := url.Parse(at)
			u.Scheme, u.Host = secure.Scheme, secure.Host
			return u.String()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := hardened.For(t)
			change := func(at string) string {
				if c.change == nil {
					return at
				}
				return c.change(broker, at)
			}
			var opts []amqpx.ServerOption
			if c.tls {
				opts = append(opts, showing(t, broker.CAFile))
			}
			b := besiege(t, rig.Methods{"echo": echo}, change, opts...)
			own, responses := b.inbox(b.attacker, asClient)
			for _, headers := range []amqp.Table{{"deep": nested(60)}, many(9000)} {
				for _, user := range []string{"", asClient} {
					msg := amqp.Publishing{AppId: "echo", ReplyTo: own, CorrelationId: uuid.NewString(), UserId: user, Headers: headers}
					for _, key := range []string{requests, batches} {
						if got := b.send(exchange, key, msg); got != allowed {
							t.Errorf("%s: %s", key, got)
						}
					}
					msg.AppId = "ping"
					if got := b.send(control, "", msg); got != allowed {
						t.Errorf("control: %s", got)
					}
				}
			}
			for refused := 0; refused < 2; { // the requests with a user, besides pings
				if d := rig.Recv(t, responses, "a refusal"); d.Headers["rpc-code"] == string(amqpx.CodeInvalidArgument) {
					refused++
				}
			}
			b.unharmed()
		})
	}
}

// TestProductionAttackKeys is attack 4: keys and ids of other callers, to poison, steal or cancel
// their calls.
func TestProductionAttackKeys(t *testing.T) {
	t.Parallel()
	account := new(bank)
	busy := hold()
	b := besiege(t, rig.Methods{"echo": echo, "transfer": account.transfer, "hold": func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		response, _ := busy.handle(ctx, req)
		return response, ctx.Err()
	}}, nil)
	own, responses := b.inbox(b.attacker, asClient)
	victim := b.as(asOther)
	inbox, answers := b.inbox(victim, asOther)
	ask := func(key, id, body string) string {
		t.Helper()
		msg := amqp.Publishing{AppId: "transfer", ReplyTo: own, CorrelationId: id, MessageId: key, Type: "rpc.v1", UserId: asClient, Body: []byte(body)}
		if got := b.send(exchange, requests, msg); got != allowed {
			t.Fatalf("the attacker's call: %s", got)
		}
		return responseTo(t, responses, id)
	}
	want := func(what, got, wanted string) {
		t.Helper()
		if got != wanted {
			t.Errorf("%s: %q, want %q", what, got, wanted)
		}
	}
	key := amqpx.WithIdempotencyKey
	want("poisoning", ask("order-1001", "a1", "to me"), "1 to me")
	want("the victim", string(rig.Call(t, b.victim, "transfer", []byte("to my supplier"), key("order-1001"))), "2 to my supplier")
	want("a secret", string(rig.Call(t, b.victim, "transfer", []byte("secret"), key("order-1002"))), "3 secret")
	want("theft by key", ask("order-1002", "a2", "secret"), "4 secret")
	for i, who := range []string{"", asOther, asServer} { // as nobody, and forged
		got := b.send(exchange, requests, amqp.Publishing{
			AppId: "transfer", ReplyTo: own, CorrelationId: strconv.Itoa(i), MessageId: "order-1002", UserId: who,
			Headers: amqp.Table{"rpc-user": asOther}, Body: []byte("secret"),
		})
		if wanted := map[bool]string{true: allowed, false: "406"}[who == ""]; got != wanted {
			t.Errorf("as %q: %s, want %s", who, got, wanted)
		}
	}

	cancel := func(user, replyTo string, ids ...string) {
		t.Helper()
		var records [][]byte
		for _, id := range ids {
			records = append(records, rig.RawCall(id, "hold", ""), rig.RawCall(id, "transfer", ""))
		}
		got := b.send(control, "", amqp.Publishing{
			AppId: "cancel", ContentType: rig.CallsType, ReplyTo: replyTo, UserId: user, Body: rig.BatchOf(records...),
		})
		if got != allowed {
			t.Errorf("a cancellation: %s", got)
		}
	}
	cancelAll := func(ids ...string) {
		t.Helper()
		for _, user := range []string{"", asClient} {
			for _, replyTo := range []string{"", own, inbox} {
				cancel(user, replyTo, ids...)
			}
		}
		// The response to this ping shows that the server has read the cancellations before it.
		if got := b.send(control, "", amqp.Publishing{AppId: "ping", ReplyTo: own, CorrelationId: "ping", UserId: asClient}); got != allowed {
			t.Fatalf("ping: %s", got)
		}
		responseTo(t, responses, "ping")
	}
	call := func(method, id string) {
		t.Helper()
		ch := victim.Raw()
		defer func() { _ = ch.Close() }()
		if err := publishing(exchange, requests, amqp.Publishing{
			AppId: method, ReplyTo: inbox, CorrelationId: id, Type: "rpc.v1", UserId: asOther, Body: []byte("mine"),
		})(ch); err != nil {
			t.Fatal(err)
		}
	}
	numbers := make([]string, 200)
	for i := range numbers {
		numbers[i] = strconv.Itoa(i + 1)
	}
	cancelAll(numbers...)
	call("transfer", "7")
	want("a call canceled before", responseTo(t, answers, "7"), "5 mine")
	call("hold", "run1")
	rig.Recv(t, busy.entered, "the call to run")
	cancelAll("run1")
	close(busy.release)
	want("a call canceled while it runs", responseTo(t, answers, "run1"), "mine")
	if n := account.transfers.Load(); n != 5 {
		t.Errorf("%d transfers ran, want 5", n)
	}
	b.unharmed()
}

// TestProductionAttackWorkers is attack 5: calls that never end.
func TestProductionAttackWorkers(t *testing.T) {
	t.Parallel()
	forever := make(chan struct{}, 4096)
	b := besiege(t, rig.Methods{"echo": echo, "forever": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		forever <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}}, nil)
	own, _ := b.inbox(b.attacker, asClient)
	running, most := overlay(t, "RPC_CALLER_MAX_RUNNING"), overlay(t, "RPC_CALLER_MAX_CALLS")
	ch := b.attacker.Raw()
	flood := func(n int, msg func(i int) amqp.Publishing) {
		t.Helper()
		for i := range n {
			m := msg(i)
			m.AppId = "forever"
			if err := ch.Publish(exchange, requests, true, false, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	flood(200, func(i int) amqp.Publishing { // each as another caller without a user
		return amqp.Publishing{ReplyTo: fmt.Sprint(requests, ".reply.", asClient, ".", i), CorrelationId: fmt.Sprint(i)}
	})
	flood(4*most, func(i int) amqp.Publishing {
		return amqp.Publishing{ReplyTo: own, CorrelationId: fmt.Sprint(i), UserId: asClient}
	})
	for range running {
		rig.Recv(t, forever, "calls to run")
	}
	rig.Eventually(t, "calls beyond the limit are refused", func() bool { return b.server.Stats().CallerLimited >= uint64(most) })
	b.unharmed()
	if n := len(forever); n != 0 {
		t.Errorf("%d calls more than %d run", n, running)
	}
	rig.Eventually(t, "no more requests in the server than a caller may have", func() bool { // one more while it is refused
		return b.server.Stats().InFlight <= uint64(most)
	})
	if got := b.send(exchange, retries, amqp.Publishing{AppId: "forever"}); got != returned {
		t.Errorf("into the retry queue: %s", got)
	}
}

// TestProductionAttackThirdParty is attack 6: responses to a queue of another user, and messages to
// queues of others. TestProductionPermissions has the rest of it.
func TestProductionAttackThirdParty(t *testing.T) {
	t.Parallel()
	b := besiege(t, rig.Methods{"echo": echo}, nil)
	// The attacker knows the name of the victim's reply queue, as from a log.
	found := b.management.Queues(b.url(asOther), requests+".reply."+asOther+".")
	if len(found) != 1 {
		t.Fatalf("the victim has the reply queues %q", found)
	}
	reply := found[0]
	body := bytes.Repeat([]byte("x"), 1000)
	for _, user := range []string{"", asClient} {
		for i := range 100 {
			for key, msg := range map[string]amqp.Publishing{
				requests: {AppId: "echo", Body: body},
				batches:  {ContentType: rig.CallsType, Body: rig.BatchOf(rig.RawCall("1", "echo", "x"), rig.RawCall("", "echo", ""))},
			} {
				msg.ReplyTo, msg.CorrelationId, msg.UserId = reply, fmt.Sprint(i), user
				if got := b.send(exchange, key, msg); got != allowed {
					t.Fatalf("%s: %s", key, got)
				}
			}
		}
	}
	for _, question := range []string{"ping", "info", "stats"} {
		for _, user := range []string{"", asClient} {
			if got := b.send(control, "", amqp.Publishing{AppId: question, ReplyTo: reply, CorrelationId: "q", UserId: user}); got != allowed {
				t.Errorf("%s: %s", question, got)
			}
		}
	}
	if got := b.send("", reply, amqp.Publishing{Body: body}); got != denied {
		t.Errorf("into the victim's reply queue: %s", got)
	}
	b.unharmed()
}

// TestProductionAttackQueues is attack 6 by the attacker's own reply queues: of types that cost more, with
// arguments for which the server publishes its responses again, and as many as the virtual host may have. The
// broker does not refuse them. The calls of the victim, who is connected, go on.
func TestProductionAttackQueues(t *testing.T) {
	t.Parallel()
	b := besiege(t, rig.Methods{"echo": echo}, nil)
	ch := b.attacker.Raw()
	own := func(name string) string { return requests + ".reply." + asClient + "." + name }
	bad := map[string]amqp.Table{
		"quorum":           {"x-queue-type": "quorum"},
		"stream":           {"x-queue-type": "stream"},
		"takes none":       {"x-max-length": int32(0), "x-overflow": "reject-publish"},
		"keeps none":       {"x-max-length": int32(0)},
		"no bytes":         {"x-max-length-bytes": int32(0), "x-overflow": "reject-publish"},
		"rejects to calls": {"x-max-length": int32(0), "x-overflow": "reject-publish-dlx", "x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": requests},
		"expires to calls": {"x-message-ttl": int32(0), "x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": requests},
	}
	for name, args := range bad {
		if err := declaring(own(name), args)(ch); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	const most = 60 // in place of the limit of the definitions, of which TestProductionLimits is the test
	b.management.Do(http.MethodPut, map[string]int{"value": most}, nil, "vhost-limits", b.vhost, "max-queues")
	types := []string{"quorum", "stream", "classic"}
	made := 0
	for made <= most {
		kind := "classic"
		if made < 3*len(types) {
			kind = types[made%len(types)]
		}
		if err := declaring(own(strconv.Itoa(made)), amqp.Table{"x-queue-type": kind})(ch); err != nil {
			break // which has ended the channel
		}
		made++
	}
	if made > most-len(bad) {
		t.Errorf("%d more queues were made, the virtual host may have %d", made, most)
	}
	const calls = 20
	for name := range bad {
		for i := range calls {
			if got := b.send(exchange, requests, amqp.Publishing{
				AppId: "echo", ReplyTo: own(name), CorrelationId: fmt.Sprint(name, i), UserId: asClient, Type: "rpc.v1", Expiration: "5000",
			}); got != allowed {
				t.Fatalf("a call with the reply queue %q: %s", name, got)
			}
		}
	}
	b.unharmed()
	rig.Eventually(t, "the server has done with the attacker's calls", func() bool { return b.server.Stats().InFlight == 0 })
	b.unharmed()
	late := b.as(asOther).Client(clientInProduction()...)
	if _, err := late.Call(rig.Within(t, 2*time.Second), "echo", nil); err == nil {
		t.Error("a client that connects while there are as many queues as allowed has a reply queue")
	}
	if err := late.Close(rig.Patience(t)); err != nil {
		t.Error(err)
	}
	for i := range made { // some queues go, as they do when they expire
		if i%10 == 0 {
			ch := b.attacker.Raw()
			if err := deleting(own(strconv.Itoa(i)))(ch); err != nil {
				t.Fatal(err)
			}
			_ = ch.Close()
		}
	}
	later := b.as(asOther).Client(clientInProduction()...)
	rig.Connected(t, later)
	if got := rig.Call(t, later, "echo", []byte("x")); string(got) != "x" {
		t.Errorf("the client that connects later got %q", got)
	}
}
