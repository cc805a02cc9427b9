//go:build integration

package interop

import (
	"context"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

const (
	generous = "20000" // ms, for a call that is answered
	short    = "1000"  // ms, for a call that is not
)

// forEachClient runs f for every client, in parallel.
func forEachClient(t *testing.T, f func(t *testing.T, c *caller)) {
	t.Helper()
	for _, p := range clients() {
		t.Run(p.language, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			env := environment(t, r)
			if p.stomp {
				env = append(env, stompURL(t, r))
			}
			f(t, &caller{r, p, env, p.command(t)})
		})
	}
}

// TestExampleClients: the clients of docs/interop.md distinguish errors from results, and print
// code, message and outcome of an error.
func TestExampleClients(t *testing.T) {
	t.Parallel()
	forEachClient(t, func(t *testing.T, c *caller) {
		t.Helper()
		server := c.Serve(rig.Methods{
			"echo": func(_ context.Context, req *amqpx.Request) ([]byte, error) { return req.Body, nil },
			"find": func(context.Context, *amqpx.Request) ([]byte, error) {
				return nil, amqpx.Errorf(amqpx.CodeNotFound, "no such thing: größe")
			},
			"break": func(context.Context, *amqpx.Request) ([]byte, error) { panic("broken") },
		})
		cases := []struct {
			method, body string
			want         output
		}{
			{"echo", "grüße 你好: \"x\"\n", output{stdout: "grüße 你好: \"x\"\n"}},
			{"echo", "", output{}},
			{"find", "x", output{stderr: "not_found: no such thing: größe (ran)", code: 1}},
			{"break", "x", output{stderr: "internal: internal error (ran)", code: 1}},
			{"nope", "x", output{stderr: `unimplemented: method "nope" is unknown to this server (did not run)`, code: 1}},
		}
		for _, one := range cases {
			if c.stomp { // RabbitMQ drops rpc-ran
				one.want.stderr = strings.Replace(one.want.stderr, "(ran)", "(may have run)", 1)
			}
			if got := c.call(t, generous, one.method, one.body); got != one.want {
				t.Errorf("%s(%q): got %+v, want %+v", one.method, one.body, got, one.want)
			}
		}
		if st := server.Stats(); st.Requests != uint64(len(cases)) || st.Unroutable != 0 || st.ReplyRefused != 0 {
			t.Errorf("the server counted %+v", st)
		}
	})
}

// TestExampleClientsCallTheService: the clients of docs/interop.md call the service rpc-server.
func TestExampleClientsCallTheService(t *testing.T) {
	t.Parallel()
	forEachClient(t, func(t *testing.T, c *caller) {
		t.Helper()
		rig.Run(t, settings(c.Rig), rig.Build(t, "rpc-server")).Says(`"ready"`)
		if got, want := c.call(t, generous, "b", "request"), (output{stdout: "b"}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		want := output{stderr: `unimplemented: method "nope" is unknown to this server (did not run)`, code: 1}
		if got := c.call(t, generous, "nope", ""); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// TestExampleClientsEndAtTheDeadline: without a response the clients of docs/interop.md end at the
// deadline, whether a server runs the call or no server has taken the request; such a request
// expires in the queue.
func TestExampleClientsEndAtTheDeadline(t *testing.T) {
	t.Parallel()
	forEachClient(t, func(t *testing.T, c *caller) {
		t.Helper()
		c.Declare(true, nil)
		silence := output{stderr: "deadline_exceeded: no response (may have run)", code: 1}
		if got := c.call(t, short, "echo", "x"); got != silence {
			t.Errorf("without a server: got %+v, want %+v", got, silence)
		}
		rig.Eventually(t, "the request has expired", func() bool { return c.Inspect().Messages == 0 })

		started := make(chan struct{}, 1)
		c.Serve(rig.Methods{"hang": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
			started <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}}, amqpx.WithBatch(amqpx.BatchOff))
		begun := time.Now()
		got := c.call(t, short, "hang", "x")
		// The server's response says the same if it arrives first.
		if !strings.HasPrefix(got.stderr, "deadline_exceeded: ") || got.stdout != "" || got.code != 1 {
			t.Errorf("a server that hangs: got %+v", got)
		}
		if took := time.Since(begun); took < time.Second {
			t.Errorf("a server that hangs: took %v, want the deadline", took)
		}
		rig.Recv(t, started, "the request")
	})
}

// TestExampleClientsWithoutAQueue: the broker returns a request that no queue accepts, and the
// clients of docs/interop.md end at once, except over STOMP, which returns nothing.
func TestExampleClientsWithoutAQueue(t *testing.T) {
	t.Parallel()
	forEachClient(t, func(t *testing.T, c *caller) {
		t.Helper()
		timeout, want := generous, output{stderr: "unavailable: no such queue (did not run)", code: 1}
		if c.stomp {
			timeout, want = short, output{stderr: "deadline_exceeded: no response (may have run)", code: 1}
		}
		if got := c.call(t, timeout, "echo", "x"); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// TestExampleClientsDropOtherResponses: the clients of docs/interop.md drop a response with another
// id. A response without headers is a result; a failure without rpc-ran leaves open whether a
// handler ran.
func TestExampleClientsDropOtherResponses(t *testing.T) {
	t.Parallel()
	forEachClient(t, func(t *testing.T, c *caller) {
		t.Helper()
		c.Declare(true, nil)
		ch := c.Raw()
		requests, err := ch.Consume(c.Queue.Name, "", true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range []struct {
			headers amqp.Table
			want    output
		}{
			{nil, output{stdout: "right"}},
			{amqp.Table{"more": int32(1)}, output{stdout: "right"}},
			{amqp.Table{"rpc-code": "aborted"}, output{stderr: "aborted: right (may have run)", code: 1}},
		} {
			got := make(chan output, 1)
			go func() { got <- c.call(t, generous, "any", "x") }() // received below
			request := rig.Recv(t, requests, "a request")
			for _, response := range []amqp.Publishing{
				{CorrelationId: "another", Body: []byte("wrong"), Headers: one.headers},
				{CorrelationId: request.CorrelationId, Body: []byte("right"), Headers: one.headers},
			} {
				if err := ch.PublishWithContext(rig.Patience(t), "", request.ReplyTo, false, false, response); err != nil {
					t.Error(err)
				}
			}
			if got := rig.Recv(t, got, "the client's end"); got != one.want {
				t.Errorf("headers %v: got %+v, want %+v", one.headers, got, one.want)
			}
		}
	})
}
