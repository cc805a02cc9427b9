//go:build integration

package integration

import (
	"fmt"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// callersOf returns a rig of a server with the documented permissions, and two users with the
// documented permissions of clients.
func callersOf(t *testing.T) (servers *rig.Rig, one, other *rig.Tenant) {
	t.Helper()
	owner := rig.Manage(t).Tenant()
	owner.Grant(".*")
	r := rig.On(t, owner.URL())
	r.Queue.Name = amqpx.DefaultQueue // the permissions are for this name, and only this test uses the virtual host
	servers = rig.Beyond(t, permitted(t, owner, "server"))
	servers.Queue = r.Queue
	client := documented(t, "client")
	one, other = owner.Another(), owner.Another()
	for _, user := range []*rig.Tenant{one, other} {
		user.Permit(client[0], client[1], client[2])
	}
	return servers, one, other
}

// TestFloodingUserDoesNotStopAnother: calls of one user that never end hold no more workers and
// no more of the prefetch than one caller may, and every call of another user gets its response.
func TestFloodingUserDoesNotStopAnother(t *testing.T) {
	t.Parallel()
	servers, greedy, polite := callersOf(t)
	busy := hold()
	server := servers.Serve(rig.Methods{"hold": busy.handle, "echo": echo}, amqpx.WithWorkers(8), amqpx.WithPrefetch(32),
		amqpx.WithCallerLimits(amqpx.CallerLimits{MaxCalls: 12, MaxRunning: 4}))
	flood, calls := servers.ClientAt(greedy.URL()), servers.ClientAt(polite.URL())
	rig.Connected(t, flood)
	rig.Connected(t, calls)
	var begun []<-chan outcome
	for range 300 {
		begun = append(begun, begin(rig.Patience(t), flood, "hold", nil))
	}
	for range 4 {
		if req := rig.Recv(t, busy.entered, "calls to run"); req.User != greedy.User {
			t.Errorf("a call of %q runs", req.User)
		}
	}
	rig.Eventually(t, "requests beyond the quota are refused", func() bool { return server.Stats().CallerLimited > 100 })
	for i := range 100 {
		if got := rig.Call(t, calls, "echo", fmt.Append(nil, i)); string(got) != fmt.Sprint(i) {
			t.Errorf("call %d got %q", i, got)
		}
	}
	if n := len(busy.entered); n != 0 {
		t.Errorf("%d more calls of the flooding user run", n)
	}
	close(busy.release)
	ran := 0
	for _, call := range begun {
		switch got := rig.Recv(t, call, "a call of the flood to settle"); {
		case got.err == nil:
			ran++
		case amqpx.CodeOf(got.err) != amqpx.CodeResourceExhausted, amqpx.OutcomeOf(got.err) != amqpx.DidNotRun:
			t.Errorf("a call of the flood: %v, %v", got.err, amqpx.OutcomeOf(got.err))
		}
	}
	if ran < 12 {
		t.Errorf("%d calls of the flood ran, want at least 12", ran)
	}
	if n := server.Stats().Reconnects + calls.Stats().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}
}

// TestRulesHoldAgainstForgedUsers: no client can call a method of another user, neither with the
// other's name as user_id nor in the header of servers.
func TestRulesHoldAgainstForgedUsers(t *testing.T) {
	t.Parallel()
	servers, admin, attacker := callersOf(t)
	rules, err := amqpx.NewAuthorizationRules(map[string][]string{"user": {admin.User}})
	if err != nil {
		t.Fatal(err)
	}
	servers.Serve(rig.Methods{"user": user},
		amqpx.WithMiddleware(amqpx.Authorize(func() *amqpx.AuthorizationRules { return rules }, nil)))
	for who, want := range map[*rig.Tenant]amqpx.Code{admin: "", attacker: amqpx.CodePermissionDenied} {
		client := servers.ClientAt(who.URL())
		rig.Connected(t, client)
		got, err := client.Call(rig.Patience(t), "user", nil)
		if code := amqpx.CodeOf(err); code != want || err == nil && string(got) != admin.User || err != nil && amqpx.OutcomeOf(err) != amqpx.DidNotRun {
			t.Errorf("%s: got %q, %v, want the code %q", who.User, got, err, want)
		}
	}

	theirs := rig.Beyond(t, attacker.URL())
	theirs.Queue = servers.Queue
	ch := theirs.Raw()
	inbox, err := ch.QueueDeclare(servers.Queue.Name+".reply.theirs", false, false, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	responses, err := ch.Consume(inbox.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	claim := amqp.Table{"rpc-user": admin.User}
	for _, c := range []struct {
		what, userID string
		headers      amqp.Table
		want         amqpx.Code
	}{
		{"its own name and a claim", attacker.User, claim, amqpx.CodePermissionDenied},
		{"no name and a claim", "", claim, amqpx.CodeUnauthenticated},
		{"no name", "", nil, amqpx.CodeUnauthenticated},
	} {
		theirs.Request(amqp.Publishing{AppId: "user", ReplyTo: inbox.Name, CorrelationId: c.what, UserId: c.userID, Headers: c.headers})
		if d := rig.Recv(t, responses, "a response"); d.Headers["rpc-code"] != string(c.want) || d.Headers["rpc-ran"] != false {
			t.Errorf("%s: %v", c.what, d.Headers)
		}
	}
	forged := amqp.Publishing{AppId: "user", ReplyTo: inbox.Name, CorrelationId: "forged", UserId: admin.User}
	ended := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ch.Publish("", servers.Queue.Name, true, false, forged); err != nil {
		t.Fatal(err)
	}
	if refused := rig.Recv(t, ended, "the end of the channel"); refused.Code != amqp.PreconditionFailed {
		t.Errorf("a forged user_id: %v, want 406", refused)
	}
}
