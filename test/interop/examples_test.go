//go:build integration

package interop

import (
	"context"
	"errors"
	"strings"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// example starts a program of docs/interop.md.
func example(t *testing.T, name string, args ...string) *rig.Program {
	t.Helper()
	return script(t, "../../../docs/interop/"+name, args...)
}

// exampleServer starts the server of docs/interop.md on the rig's queue.
func exampleServer(t *testing.T, r *rig.Rig) *rig.Program {
	t.Helper()
	p := example(t, "server.py", r.URL, r.Queue.Name)
	p.Says("ready")
	return p
}

// TestExampleServer: the server of docs/interop.md answers every kind of request and
// continues.
func TestExampleServer(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := exampleServer(t, r)
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
}

// TestExampleServerTakesWhatComesAgain: a request left unacknowledged by a killed server is
// redelivered to the server in another language. The refusal of a redelivered request does not
// claim "did not run".
func TestExampleServerTakesWhatComesAgain(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
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
	server := exampleServer(t, r)
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
}

// TestExampleClient: the client of docs/interop.md distinguishes errors from results.
func TestExampleClient(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	missing := example(t, "client.py", r.URL, r.Queue.Name, "b=")
	if got, want := missing.Says(": "), "error: unavailable: no such queue (did not run)"; got != want {
		t.Errorf("without a queue: got %q, want %q", got, want)
	}
	server := r.Serve(rig.Methods{
		"b": letter,
		"find": func(context.Context, *amqpx.Request) ([]byte, error) {
			return nil, amqpx.Errorf(amqpx.CodeNotFound, "no such thing")
		},
		"break": func(context.Context, *amqpx.Request) ([]byte, error) { panic("broken") },
	})
	p := example(t, "client.py", r.URL, r.Queue.Name, "b=request", "find=x", "break=", "nope=", "b=again")
	for _, want := range []string{
		"result: b",
		"error: not_found: no such thing (ran)",
		"error: internal: internal error (ran)",
		`error: unimplemented: method "nope" is unknown to this server (did not run)`,
		"result: b",
	} {
		if got := p.Says(": "); strings.TrimSpace(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the client ended with %v", err)
	}
	if st := server.Stats(); st.Requests != 5 || st.Unroutable != 0 {
		t.Errorf("the server counted %+v", st)
	}
}
