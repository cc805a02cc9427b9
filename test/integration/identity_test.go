//go:build integration

package integration

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// user responds with the caller's user name.
func user(_ context.Context, req *amqpx.Request) ([]byte, error) { return []byte(req.User), nil }

// TestUserIsTheBrokers: handlers receive the user validated by the broker, for single calls,
// for batches and for copies made by servers, and no user that is only claimed.
func TestUserIsTheBrokers(t *testing.T) {
	t.Parallel()
	owner := rig.Manage(t).Tenant()
	owner.Grant(".*")
	caller := owner.Another()
	caller.Grant(".*")
	r := rig.On(t, owner.URL())
	r.Serve(rig.Methods{"user": user, "echo": echo})
	client := r.ClientAt(caller.URL())
	rig.Connected(t, client)
	wantUser := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	wantUser("a call", string(rig.Call(t, client, "user", nil)), caller.User)
	openLane(t, client)
	var calls []<-chan outcome
	for range 64 {
		calls = append(calls, begin(rig.Patience(t), client, "user", nil))
	}
	for _, call := range calls {
		got := rig.Recv(t, call, "a call to end")
		wantUser("a call among many", string(got.response), caller.User)
	}
	wantUser("a client that sends none", string(rig.Call(t, func() *amqpx.Client {
		c := r.ClientAt(caller.URL(), amqpx.WithUserID(false))
		rig.Connected(t, c)
		return c
	}(), "user", nil)), "")

	raw := rig.Beyond(t, caller.URL())
	raw.Queue = r.Queue
	inbox := raw.Inbox()
	for _, c := range []struct {
		what, userID string
		headers      amqp.Table
		want         string
	}{
		{"no user_id", "", nil, ""},
		{"its own", caller.User, nil, caller.User},
		{"a forged copy", caller.User, amqp.Table{"rpc-user": "admin"}, caller.User},
		{"a forged copy without user_id", "", amqp.Table{"rpc-user": "admin"}, ""},
		{"a dead letter", caller.User, amqp.Table{"x-death": []any{}}, ""},
	} {
		raw.Request(amqp.Publishing{AppId: "user", ReplyTo: inbox.Name, CorrelationId: c.what, UserId: c.userID, Headers: c.headers})
		wantUser(c.what, string(inbox.Next().Body), c.want)
	}
}

// TestMovedRequestKeepsItsCaller: a redelivered and republished request keeps its user.
func TestMovedRequestKeepsItsCaller(t *testing.T) {
	t.Parallel()
	owner := rig.Manage(t).Tenant()
	owner.Grant(".*")
	caller := owner.Another()
	caller.Grant(".*")
	r := rig.On(t, owner.URL())
	raw := rig.Beyond(t, caller.URL())
	raw.Queue = r.Queue
	entered := make(chan struct{}, 1)
	first := r.Serve(rig.Methods{"user": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	inbox := raw.Inbox()
	raw.Request(amqp.Publishing{AppId: "user", ReplyTo: inbox.Name, CorrelationId: "1", UserId: caller.User})
	rig.Recv(t, entered, "the request to run")
	first.Close()
	second := r.Serve(rig.Methods{"user": user})
	if got := inbox.Next(); string(got.Body) != caller.User || second.Stats().Republished != 1 {
		t.Errorf("got %q, %v, want %q; moved %d", got.Body, got.Headers, caller.User, second.Stats().Republished)
	}
}

// TestBrokerTellsTheUser checks an assumption of the library: a wrong user_id ends the channel
// with an error that contains the right user, also for an unroutable message.
func TestBrokerTellsTheUser(t *testing.T) {
	t.Parallel()
	ch := rig.New(t).Raw()
	ended := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ch.Publish("", "", true, false, amqp.Publishing{UserId: "somebody else"}); err != nil {
		t.Fatal(err)
	}
	refused := rig.Recv(t, ended, "the end of the channel")
	if refused.Code != amqp.PreconditionFailed || !strings.Contains(refused.Reason, "authenticated user was 'guest'") {
		t.Errorf("got %v", refused)
	}
}

// bank is a service that counts its executions.
type bank struct{ transfers atomic.Int64 }

func (b *bank) transfer(_ context.Context, req *amqpx.Request) ([]byte, error) {
	return []byte(fmt.Sprint(b.transfers.Add(1), " ", string(req.Body))), nil
}

// TestKeysBelongToTheirCallers: another user of an idempotency key, whether guessed or
// observed, harms no caller: a caller never gets a stranger's response, and its own request
// always runs.
func TestKeysBelongToTheirCallers(t *testing.T) {
	t.Parallel()
	owner := rig.Manage(t).Tenant()
	owner.Grant(".*")
	attacker := owner.Another()
	attacker.Grant(".*")
	r := rig.On(t, owner.URL())
	r.Serve(rig.Methods{"transfer": new(bank).transfer}, amqpx.WithDedup(1<<20, amqpx.DefaultDedupAge))
	theirs := rig.Beyond(t, attacker.URL())
	theirs.Queue = r.Queue
	victims, attackers := r.Inbox(), theirs.Inbox()
	send := func(from *rig.Rig, inbox *rig.Inbox, body, correlationID string, change func(*amqp.Publishing)) string {
		t.Helper()
		msg := amqp.Publishing{AppId: "transfer", ReplyTo: inbox.Name, CorrelationId: correlationID, Type: "rpc.v1", Body: []byte(body)}
		change(&msg)
		from.Request(msg)
		d := inbox.Next()
		if code, failed := d.Headers["rpc-code"].(string); failed {
			return code
		}
		return string(d.Body)
	}
	key := func(key, user string) func(*amqp.Publishing) {
		return func(p *amqp.Publishing) { p.MessageId, p.UserId = key, user }
	}
	want := func(what, got, wanted string) {
		t.Helper()
		if got != wanted {
			t.Errorf("%s: %q, want %q", what, got, wanted)
		}
	}
	// Poisoning: the attacker uses the key first.
	want("the attacker", send(theirs, attackers, "to me", "a", key("order-1001", "")), "1 to me")
	want("the victim", send(r, victims, "to my supplier", "v", key("order-1001", "")), "2 to my supplier")
	want("the attacker as a user", send(theirs, attackers, "to me", "a", key("order-1002", attacker.User)), "3 to me")
	want("the victim as a user", send(r, victims, "to my supplier", "v", key("order-1002", owner.User)), "4 to my supplier")
	// Theft: the attacker requests the response of a key or of an ID.
	want("theft by key", send(theirs, attackers, "to my supplier", "a", key("order-1001", "")), "failed_precondition")
	want("theft by another's key", send(theirs, attackers, "to my supplier", "a", key("order-1002", "")), "5 to my supplier")
	want("a call by its id", send(r, victims, "secret", "77", key("", "")), "6 secret")
	want("theft by id", send(theirs, attackers, "secret", "77", key("", "")), "7 secret")
	want("theft by id as key", send(theirs, attackers, "secret", "a", key("77", "")), "7 secret") // the attacker's own response
	// The victim's own duplicates are recognised on any connection.
	want("the victim again", send(r, victims, "to my supplier", "v2", key("order-1002", owner.User)), "4 to my supplier")
	want("the victim elsewhere", send(r, r.Inbox(), "to my supplier", "v3", key("order-1002", owner.User)), "4 to my supplier")
	want("the victim's other order", send(r, victims, "to another", "v4", key("order-1002", owner.User)), "failed_precondition")
	client := r.Client()
	rig.Connected(t, client)
	if got := rig.Call(t, client, "transfer", []byte("to my supplier"), amqpx.WithIdempotencyKey("order-1002")); string(got) != "4 to my supplier" {
		t.Errorf("the victim's client got %q", got)
	}
	_, err := client.Call(rig.Patience(t), "transfer", []byte("more"), amqpx.WithIdempotencyKey("order-1002"))
	if amqpx.CodeOf(err) != amqpx.CodeFailedPrecondition || amqpx.OutcomeOf(err) != amqpx.DidNotRun && amqpx.OutcomeOf(err) != amqpx.MayHaveRun {
		t.Errorf("another body under the key: %v", err)
	}
}

// TestProgramsThatNumberTheirCalls: programs with sequential correlation IDs, like Java's
// RpcClient, get their own responses.
func TestProgramsThatNumberTheirCalls(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	var b bank
	r.Serve(rig.Methods{"count": b.transfer})
	n := 0
	for program := range 3 {
		ch := r.Raw()
		responses, err := ch.Consume("amq.rabbitmq.reply-to", "", true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		for call := range 3 {
			n++
			err := ch.Publish("", r.Queue.Name, true, false, amqp.Publishing{
				AppId: "count", ReplyTo: "amq.rabbitmq.reply-to", CorrelationId: strconv.Itoa(call), Type: "rpc.v1", Expiration: "30000", Body: []byte("order"),
			})
			if err != nil {
				t.Fatal(err)
			}
			if d := rig.Recv(t, responses, "a response"); string(d.Body) != fmt.Sprint(n, " order") {
				t.Errorf("program %d, call %d: %q, %v, want %d", program, call, d.Body, d.Headers, n)
			}
		}
	}
}

// TestCancellationsBelongToTheirCallers: a caller cannot cancel another user's calls, neither
// before their arrival nor while they run.
func TestCancellationsBelongToTheirCallers(t *testing.T) {
	t.Parallel()
	owner := rig.Manage(t).Tenant()
	owner.Grant(".*")
	attacker := owner.Another()
	attacker.Grant(".*")
	r := rig.On(t, owner.URL())
	busy := hold()
	server := r.Serve(rig.Methods{"echo": echo, "hold": func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		response, _ := busy.handle(ctx, req)
		return response, ctx.Err()
	}})
	theirs := rig.Beyond(t, attacker.URL())
	theirs.Queue = r.Queue
	cancel := func(from *rig.Rig, msg amqp.Publishing, method string, ids ...string) {
		t.Helper()
		var records [][]byte
		for _, id := range ids {
			records = append(records, rig.RawCall(id, method, ""))
		}
		msg.AppId, msg.ContentType, msg.Body = "cancel", rig.CallsType, rig.BatchOf(records...)
		ch := from.Raw()
		if err := ch.Confirm(false); err != nil {
			t.Fatal(err)
		}
		word, err := ch.PublishWithDeferredConfirm(r.Queue.Name+".control", "", true, false, msg)
		if err != nil {
			t.Fatal(err)
		}
		rig.Recv(t, word.Done(), "the confirm of a cancellation")
		// The response to this ping shows that the server has read the cancellation before it.
		inbox := from.Inbox()
		if err := ch.Publish(r.Queue.Name+".control", "", true, false, amqp.Publishing{AppId: "ping", ReplyTo: inbox.Name, CorrelationId: "1"}); err != nil {
			t.Fatal(err)
		}
		inbox.Next()
	}
	inbox, other := r.Inbox(), theirs.Inbox()
	numbers := make([]string, 200)
	for i := range numbers {
		numbers[i] = strconv.Itoa(i + 1)
	}
	cancel(theirs, amqp.Publishing{}, "echo", numbers...)
	cancel(theirs, amqp.Publishing{ReplyTo: other.Name}, "echo", numbers...)
	cancel(theirs, amqp.Publishing{ReplyTo: inbox.Name, UserId: attacker.User}, "echo", numbers...)
	for i, msg := range []amqp.Publishing{
		{CorrelationId: "1"},
		{CorrelationId: "2", Type: "rpc.v1", MessageId: "key"},
		{CorrelationId: "3", Type: "rpc.v1"},
		{CorrelationId: "4", Type: "rpc.v1", UserId: owner.User},
	} {
		msg.AppId, msg.ReplyTo, msg.Body = "echo", inbox.Name, []byte("x")
		r.Request(msg)
		if d := inbox.Next(); d.CorrelationId != msg.CorrelationId || string(d.Body) != "x" {
			t.Errorf("request %d: %q, %v", i, d.Body, d.Headers)
		}
	}
	r.Request(amqp.Publishing{AppId: "hold", CorrelationId: "5", Type: "rpc.v1"}) // one way
	rig.Recv(t, busy.entered, "the one-way request to run")

	r.Request(amqp.Publishing{AppId: "hold", ReplyTo: inbox.Name, CorrelationId: "run1", Type: "rpc.v1", Body: []byte("y")})
	rig.Recv(t, busy.entered, "the request to run")
	cancel(theirs, amqp.Publishing{}, "hold", "run1", "5")
	cancel(theirs, amqp.Publishing{ReplyTo: other.Name}, "hold", "run1", "5")
	if n := server.Stats().Canceled; n != 0 {
		t.Errorf("%d canceled", n)
	}
	// The call's own caller may cancel, and gets the response.
	cancel(r, amqp.Publishing{ReplyTo: inbox.Name}, "hold", "run1")
	if n := server.Stats().Canceled; n != 1 {
		t.Errorf("%d canceled, want 1", n)
	}
	cancel(r, amqp.Publishing{ReplyTo: inbox.Name}, "echo", "6")
	r.Request(amqp.Publishing{AppId: "echo", ReplyTo: inbox.Name, CorrelationId: "6", Type: "rpc.v1"})
	close(busy.release)
	for range 2 {
		if d := inbox.Next(); d.Headers["rpc-code"] != string(amqpx.CodeCanceled) {
			t.Errorf("a canceled call got %q, %v", d.Body, d.Headers)
		}
	}
}

// TestCancelWithDirectReplyTo: calls can be canceled with direct reply-to, although the client
// does not know its own address.
func TestCancelWithDirectReplyTo(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	c := &canceled{begun: make(chan string, 2), ended: make(chan string, 2)}
	r.Serve(rig.Methods{"wait": c.handle})
	client := r.Ready(amqpx.WithReplyMode(amqpx.ReplyDirect))
	stays, endStays := context.WithCancel(rig.Patience(t))
	ctx, cancel := context.WithCancel(rig.Patience(t))
	goes := begin(ctx, client, "wait", []byte("goes"))
	rig.Recv(t, c.begun, "a call to run")
	other := begin(stays, client, "wait", []byte("stays"))
	rig.Recv(t, c.begun, "a call to run")
	cancel()
	if got := rig.Recv(t, c.ended, "a handler to end"); got != "goes context canceled" {
		t.Errorf("ended: %s", got)
	}
	rig.Recv(t, goes, "the canceled call to end")
	endStays()
	rig.Recv(t, other, "the other call to end")
}
