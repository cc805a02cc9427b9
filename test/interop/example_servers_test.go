//go:build integration

package interop

import (
	"errors"
	"os"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// start starts a server of docs/interop.md on the rig's queue.
func start(t *testing.T, r *rig.Rig, command []string) *rig.Program {
	t.Helper()
	p := rig.Run(t, environment(t, r), command[0], command[1:]...)
	p.Says("ready")
	return p
}

// forEachServer runs f for every server, in parallel.
func forEachServer(t *testing.T, f func(t *testing.T, r *rig.Rig, command []string)) {
	t.Helper()
	for _, p := range servers() {
		t.Run(p.language, func(t *testing.T) {
			t.Parallel()
			f(t, rig.New(t), p.command(t))
		})
	}
}

// TestExampleServers: the servers of docs/interop.md answer every kind of request and continue.
func TestExampleServers(t *testing.T) {
	t.Parallel()
	forEachServer(t, func(t *testing.T, r *rig.Rig, command []string) {
		t.Helper()
		server := start(t, r, command)
		client := r.Ready()
		for _, c := range []struct {
			method, body, result string
			code                 amqpx.Code // "" expects a result
			message              string
			outcome              amqpx.Outcome
		}{
			{method: "echo", body: "grüße 你好", result: "grüße 你好"},
			{method: "echo"},
			{method: "divide", body: "42 2", result: "21"},
			{method: "divide", body: "42 0", code: amqpx.CodeInternal, message: "internal error", outcome: amqpx.Ran},
			{method: "divide", body: "\xff", code: amqpx.CodeInternal, message: "internal error", outcome: amqpx.Ran},
			{method: "find", body: "x", code: amqpx.CodeNotFound, message: "no such thing: x", outcome: amqpx.Ran},
			{method: "nope", code: amqpx.CodeUnimplemented, message: `method "nope" is unknown to this server`, outcome: amqpx.DidNotRun},
			{method: "echo", body: "after all of it", result: "after all of it"},
		} {
			got, err := client.Call(rig.Patience(t), c.method, []byte(c.body))
			if string(got) != c.result || amqpx.CodeOf(err) != c.code {
				t.Errorf("%s(%q): got %q, %v, want %q, %s", c.method, c.body, got, err, c.result, c.code)
				continue
			}
			if coded, ok := errors.AsType[*amqpx.Error](err); ok && (coded.Message() != c.message || coded.Outcome() != c.outcome) {
				t.Errorf("%s(%q): got %q, %v, want %q, %v", c.method, c.body, coded.Message(), coded.Outcome(), c.message, c.outcome)
			}
		}
		if !server.Running() {
			t.Error("the server ended")
		}
	})
}

// TestExampleServersOnBadRequests: the servers of docs/interop.md refuse malformed and expired
// requests, drop requests whose response could end their connection, and continue.
func TestExampleServersOnBadRequests(t *testing.T) {
	t.Parallel()
	forEachServer(t, func(t *testing.T, r *rig.Rig, command []string) {
		t.Helper()
		server := start(t, r, command)
		inbox := r.Inbox()
		refused := func(code string) amqp.Table { return amqp.Table{"rpc-code": code, "rpc-ran": false} }
		for name, c := range map[string]struct {
			request amqp.Publishing
			headers amqp.Table // of the response
		}{
			"no method":         {amqp.Publishing{}, refused("invalid_argument")},
			"rpc-method":        {amqp.Publishing{Headers: amqp.Table{"rpc-method": "echo"}}, amqp.Table{}},
			"no method's type":  {amqp.Publishing{Headers: amqp.Table{"rpc-method": nil}}, refused("invalid_argument")},
			"budget of 0":       {amqp.Publishing{AppId: "echo", Headers: amqp.Table{"rpc-timeout-ms": int32(0)}}, refused("deadline_exceeded")},
			"budget as text":    {amqp.Publishing{AppId: "echo", Headers: amqp.Table{"rpc-timeout-ms": "0"}}, refused("deadline_exceeded")},
			"negative budget":   {amqp.Publishing{AppId: "echo", Headers: amqp.Table{"rpc-timeout-ms": int32(-1)}}, refused("invalid_argument")},
			"budget is a word":  {amqp.Publishing{AppId: "echo", Headers: amqp.Table{"rpc-timeout-ms": "soon"}}, refused("invalid_argument")},
			"budget is a table": {amqp.Publishing{AppId: "echo", Headers: amqp.Table{"rpc-timeout-ms": amqp.Table{}}}, refused("invalid_argument")},
			"expiration":        {amqp.Publishing{AppId: "echo", Type: "rpc.v1", Expiration: "20000"}, amqp.Table{}},
			"no text":           {amqp.Publishing{AppId: "\xff", ContentType: "\xff", MessageId: "\xff", Headers: amqp.Table{"\xff": "\xff"}}, nil},
		} {
			c.request.ReplyTo, c.request.CorrelationId = inbox.Name, name
			r.Request(c.request)
			response := inbox.Next()
			if response.CorrelationId != name {
				t.Errorf("%s: got the id %q", name, response.CorrelationId)
			}
			if c.headers == nil { // any refusal
				c.headers = response.Headers
			}
			if response.Headers["rpc-code"] != c.headers["rpc-code"] || response.Headers["rpc-ran"] != c.headers["rpc-ran"] {
				t.Errorf("%s: got %v %q, want %v", name, response.Headers, response.Body, c.headers)
			}
		}
		for _, replyTo := range []string{"", "no such queue", "amq.rabbitmq.reply-to.forged", "amq.rabbitmq.reply-to.Zm9yZ2Vk.key", "\xff"} {
			r.Request(amqp.Publishing{AppId: "echo", CorrelationId: "lost", ReplyTo: replyTo})
		}
		r.Request(amqp.Publishing{AppId: "echo", MessageId: "instead", ReplyTo: inbox.Name, Body: []byte("after all of it")})
		if got := inbox.Next(); got.CorrelationId != "instead" || string(got.Body) != "after all of it" {
			t.Errorf("got %q for %q", got.Body, got.CorrelationId)
		}
		if !server.Running() {
			t.Error("the server ended")
		}
	})
}

// TestExampleServersContinueWithoutAConfirm: a response refused by the broker is lost, and the
// servers of docs/interop.md acknowledge its request and continue.
func TestExampleServersContinueWithoutAConfirm(t *testing.T) {
	t.Parallel()
	forEachServer(t, func(t *testing.T, r *rig.Rig, command []string) {
		t.Helper()
		ch := r.Raw()
		full, err := ch.QueueDeclare("", false, false, true, false, amqp.Table{"x-max-length": 0, "x-overflow": "reject-publish"})
		if err != nil {
			t.Fatal(err)
		}
		server := start(t, r, command)
		r.Request(amqp.Publishing{AppId: "echo", ReplyTo: full.Name, CorrelationId: "refused"})
		server.Says("response lost")
		if got := rig.Call(t, r.Ready(), "echo", []byte("body")); string(got) != "body" {
			t.Errorf("got %q", got)
		}
		if got := answered(t, server); got != 2 {
			t.Errorf("the server answered %d, want 2", got)
		}
		if left := r.Inspect().Messages; left != 0 {
			t.Errorf("%d requests were not acknowledged", left)
		}
	})
}

// TestExampleServersAcknowledgeAfterTheConfirm: a server of docs/interop.md that dies after its
// response, and before the broker's confirm, has not acknowledged the request.
func TestExampleServersAcknowledgeAfterTheConfirm(t *testing.T) {
	t.Parallel()
	forEachServer(t, func(t *testing.T, r *rig.Rig, command []string) {
		t.Helper()
		proxy, inbox := r.Proxy(), r.Inbox()
		direct := *r
		direct.URL = proxy.URL()
		server := start(t, &direct, command)
		proxy.MuteAt(rig.Ack)
		r.Request(amqp.Publishing{AppId: "echo", ReplyTo: inbox.Name, CorrelationId: "1"})
		inbox.Next()
		server.Signal(os.Kill)
		_ = server.Wait() // it was killed
		proxy.Cut()
		rig.Eventually(t, "the request is delivered again", func() bool { return r.Inspect().Messages == 1 })
	})
}

// TestExampleServersTakeWhatComesAgain: a request left unacknowledged by a killed server is
// redelivered to the server in another language. The refusal of a redelivered request does not
// claim "did not run".
func TestExampleServersTakeWhatComesAgain(t *testing.T) {
	t.Parallel()
	forEachServer(t, func(t *testing.T, r *rig.Rig, command []string) {
		t.Helper()
		ours := r.Serve(rig.Methods{}, amqpx.WithBatch(amqpx.BatchOff)) // declares the queue
		if err := ours.Drain(); err != nil {
			t.Fatal(err)
		}
		client := r.Ready()
		ch := r.Raw()
		taken, err := ch.Consume(r.Queue.Name, "", false, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		echoed := client.Go(rig.Patience(t), "echo", []byte("body"))
		unknown := client.Go(rig.Patience(t), "nope", nil)
		for range 2 {
			rig.Recv(t, taken, "a request")
		}
		server := start(t, r, command)
		if err := ch.Close(); err != nil { // requeues both requests, like the death of a server
			t.Fatal(err)
		}
		if got, err := echoed.Wait(); string(got) != "body" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if _, err := unknown.Wait(); amqpx.CodeOf(err) != amqpx.CodeUnimplemented || amqpx.OutcomeOf(err) != amqpx.MayHaveRun {
			t.Errorf("got %v, %v", err, amqpx.OutcomeOf(err))
		}
		if got := answered(t, server); got != 2 {
			t.Errorf("the server answered %d, want 2", got)
		}
	})
}
