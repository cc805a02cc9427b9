//go:build integration

package integration

import (
	"context"
	"errors"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// serveAll starts a server with a method for calls to all servers.
func serveAll(t *testing.T, r *rig.Rig, url string, opts ...amqpx.ServerOption) {
	t.Helper()
	server, err := amqpx.NewServer(url, append(opts, amqpx.WithQueue(r.Queue))...)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Handle("echo", echo, amqpx.OnEveryServer()); err != nil {
		t.Fatal(err)
	}
	if err := server.Handle("one", echo); err != nil {
		t.Fatal(err)
	}
	serveUntilEnd(t, server)
}

// serveUntilEnd runs a server until the test ends, and waits until it is ready.
func serveUntilEnd(t *testing.T, server *amqpx.Server) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }() // ends with the cleanup
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	if err := server.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
}

// responses returns the number of servers that responded with a result, and the error of a call to all
// servers, or else the last error of a server.
func responses(ctx context.Context, client *amqpx.Client, method string, most int) (servers int, err error) {
	ids := make(map[string]bool)
	all := 0
	for r, failed := range client.CallAll(ctx, method, []byte("x")) {
		if failed != nil {
			err = failed
		} else if string(r.Body) == "x" {
			ids[r.Server] = true
		}
		if all++; all == most {
			break
		}
	}
	return len(ids), err
}

// TestCallAll: every server with a method for such calls runs it once, servers without do not disturb.
func TestCallAll(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	client := r.Ready()
	want{code: amqpx.CodeUnavailable, outcome: amqpx.DidNotRun, is: []error{amqpx.ErrUnroutable}}.check(t, errorOf(responses(rig.Patience(t), client, "echo", 1)))
	for range 3 {
		serveAll(t, r, r.URL)
	}
	r.Serve(rig.Methods{"echo": echo})
	for name, c := range map[string]*amqpx.Client{"reply queue": client, "direct reply-to": r.Ready(amqpx.WithReplyMode(amqpx.ReplyDirect))} {
		if n, err := responses(rig.Patience(t), c, "echo", 3); n != 3 || err != nil {
			t.Errorf("%s: %d servers, %v", name, n, err)
		}
		if n, err := responses(rig.Within(t, time.Second), c, "echo", 0); n != 3 || err != nil {
			t.Errorf("%s: %d servers in a second, %v", name, n, err)
		}
		n, err := responses(rig.Patience(t), c, "one", 3)
		if want := (want{code: amqpx.CodeFailedPrecondition, outcome: amqpx.DidNotRun, remote: true}); n != 0 {
			t.Errorf("%s: %d servers ran a method for one server", name, n)
		} else {
			want.check(t, err)
		}
	}
}

// TestCallAllNeedsAPermission: with the documented permissions of a client the broker refuses, with the
// further one it does not; a server needs no further permission.
func TestCallAllNeedsAPermission(t *testing.T) {
	t.Parallel()
	c := confine(t, rig.Methods{"m": echo})
	server := permitted(t, c.tenant, "server")
	serveAll(t, c.owner, server, amqpx.WithReplyPrefix("{queue}.reply.{user}."))
	want{code: amqpx.CodePermissionDenied, outcome: amqpx.DidNotRun}.check(t, errorOf(responses(rig.Patience(t), c.client, "echo", 1)))
	rig.Call(t, c.client, "m", nil) // the connection is as before
	configure, write, read := c.permissions(t)
	c.user.Permit(configure, write+`|^rpc_queue\.control\.all$`, read)
	rig.Eventually(t, "the server responds", func() bool { // the broker remembers permissions for a moment
		n, _ := responses(rig.Within(t, 5*time.Second), c.client, "echo", 1)
		return n == 1
	})
}

// TestCallAllIsGivenUp: a loop that ends early ends the contexts of the handlers on all servers.
func TestCallAllIsGivenUp(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	begun, ended := make(chan struct{}, 3), make(chan error, 3)
	for i := range 3 {
		server, err := amqpx.NewServer(r.URL, amqpx.WithQueue(r.Queue))
		if err != nil {
			t.Fatal(err)
		}
		err = server.Handle("wait", func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
			if i == 0 {
				return nil, nil
			}
			begun <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		}, amqpx.OnEveryServer())
		if err != nil {
			t.Fatal(err)
		}
		serveUntilEnd(t, server)
	}
	for name, c := range map[string]*amqpx.Client{"reply queue": r.Ready(), "direct reply-to": r.Ready(amqpx.WithReplyMode(amqpx.ReplyDirect))} {
		for _, err := range c.CallAll(rig.Patience(t), "wait", nil) {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for range 2 {
				rig.Recv(t, begun, "a handler")
			}
			break
		}
		for range 2 {
			if err := rig.Recv(t, ended, "the end of a handler"); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: a handler ended with %v", name, err)
			}
		}
	}
}

// errorOf returns the second of two results.
func errorOf(_ int, err error) error { return err }
