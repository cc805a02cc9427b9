//go:build integration

package integration

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// unheard cuts a client's connection after the arrival of its request and before the broker's
// confirm.
func unheard(t *testing.T, opts ...amqpx.CallOption) (*amqpx.Client, *held, <-chan outcome) {
	t.Helper()
	r := rig.New(t)
	slow := hold()
	slow.server = r.Serve(rig.Methods{"slow": slow.handle})
	proxy := r.Proxy()
	client := r.ClientAt(proxy.URL())
	rig.Connected(t, client)
	proxy.Mute()
	call := begin(rig.Patience(t), client, "slow", []byte("once"), opts...)
	rig.Recv(t, slow.entered, "the request to arrive")
	proxy.Cut()
	proxy.Unmute()
	return client, slow, call
}

func TestConnectionLostBeforeTheConfirm(t *testing.T) {
	t.Parallel()
	client, slow, call := unheard(t)
	want{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, is: []error{amqpx.ErrOutcomeUnknown}}.
		check(t, rig.Recv(t, call, "the call to settle").err)
	close(slow.release)
	rig.Eventually(t, "the late response is counted", func() bool { return client.Stats().Late == 1 })
	if got := client.Stats(); got.Resent != 0 || got.Reconnects != 1 {
		t.Errorf("client counted %+v, want one reconnect and nothing sent again", got)
	}
}

func TestConnectionLostBeforeTheConfirmOfAnIdempotentCall(t *testing.T) {
	t.Parallel()
	var info amqpx.CallInfo
	client, slow, call := unheard(t, amqpx.WithIdempotencyKey("order 7"), amqpx.WithCallInfo(&info))
	slow.joined(t)
	close(slow.release)
	if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "once" {
		t.Errorf("got %q, %v", got.response, got.err)
	}
	if info.Attempts != 2 {
		t.Errorf("%d attempts, want 2", info.Attempts)
	}
	if got := client.Stats(); got.Duplicates != 0 || len(slow.entered) != 0 {
		t.Errorf("client counted %+v, %d further runs; want one response and one run", got, len(slow.entered))
	}
}

// joined waits until the repeated request has joined the running one.
func (h *held) joined(t *testing.T) {
	t.Helper()
	rig.Eventually(t, "the request is sent again", func() bool { return h.server.Stats().InFlight == 2 })
}

// confirmed cuts a client's connection after the broker confirmed its request.
func confirmed(t *testing.T, client []amqpx.ClientOption, opts ...amqpx.CallOption) (*amqpx.Client, *held, <-chan outcome) {
	t.Helper()
	r := rig.New(t)
	slow := hold()
	slow.server = r.Serve(rig.Methods{"slow": slow.handle, "echo": echo})
	proxy := r.Proxy()
	c := r.ClientAt(proxy.URL(), client...)
	rig.Connected(t, c)
	call := begin(rig.Patience(t), c, "slow", []byte("once"), opts...)
	rig.Recv(t, slow.entered, "the request to arrive")
	rig.Recv(t, proxy.Heard(rig.Ack), "the confirm")
	rig.Call(t, c, "echo", nil) // the response to another call shows that the client has read the confirm
	proxy.Cut()
	return c, slow, call
}

// reconnected waits for the next connection.
func reconnected(t *testing.T, c *amqpx.Client) {
	t.Helper()
	rig.Eventually(t, "the client is ready again", func() bool {
		st := c.Status()
		return st.Ready() && st.Generation > 1
	})
}

func TestConnectionLostAfterTheConfirm(t *testing.T) {
	t.Parallel()
	var info amqpx.CallInfo
	client, slow, call := confirmed(t, nil, amqpx.WithCallInfo(&info))
	reconnected(t, client)
	close(slow.release)
	if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "once" {
		t.Errorf("got %q, %v, want the response over the next connection", got.response, got.err)
	}
	if info.Attempts != 1 {
		t.Errorf("%d attempts, want 1", info.Attempts)
	}
}

func TestResponsesWaitWhileTheClientIsAway(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	server := r.Serve(rig.Methods{"slow": slow.handle, "echo": echo})
	proxy := r.Proxy()
	client := r.ClientAt(proxy.URL())
	rig.Connected(t, client)
	call := begin(rig.Patience(t), client, "slow", []byte("once"))
	rig.Recv(t, slow.entered, "the request to arrive")
	rig.Recv(t, proxy.Heard(rig.Ack), "the confirm")
	rig.Call(t, client, "echo", nil) // the response to another call shows that the client has read the confirm
	proxy.Refuse(true)
	proxy.Cut()
	rig.Eventually(t, "the client noticed", func() bool { return !client.Status().Ready() })
	close(slow.release)
	if err := server.Drain(); err != nil { // so the broker has the response
		t.Fatalf("drain: %v", err)
	}
	proxy.Refuse(false)
	if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "once" {
		t.Errorf("got %q, %v, want the response that waited", got.response, got.err)
	}
}

func TestConnectionLostAfterTheConfirmWithDirectReplies(t *testing.T) {
	t.Parallel()
	direct := []amqpx.ClientOption{amqpx.WithReplyMode(amqpx.ReplyDirect)}
	t.Run("once", func(t *testing.T) {
		t.Parallel()
		_, slow, call := confirmed(t, direct)
		defer close(slow.release)
		want{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, is: []error{amqpx.ErrOutcomeUnknown}}.
			check(t, rig.Recv(t, call, "the call to settle").err)
	})
	t.Run("idempotent", func(t *testing.T) {
		t.Parallel()
		_, slow, call := confirmed(t, direct, amqpx.Idempotent())
		slow.joined(t)
		close(slow.release)
		if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "once" {
			t.Errorf("got %q, %v", got.response, got.err)
		}
	})
}

// TestServerCutOffWithUnansweredRequests: the requests of a server without a connection are
// redelivered to other servers.
func TestServerCutOffWithUnansweredRequests(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	proxy := r.Proxy()
	slow := hold()
	first := r.StartAt(proxy.URL(), rig.Methods{"slow": slow.handle})
	if err := first.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	client := r.Ready()
	const calls = 20
	var pending []<-chan outcome
	for i := range calls {
		pending = append(pending, begin(rig.Patience(t), client, "slow", []byte(strconv.Itoa(i))))
	}
	for range calls {
		rig.Recv(t, slow.entered, "the first server to hold the requests")
	}
	redelivered := make(chan bool, calls)
	second := r.Serve(rig.Methods{"slow": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		redelivered <- req.Redelivered
		return req.Body, nil
	}})
	proxy.Refuse(true)
	proxy.Cut()
	for i, p := range pending {
		if got := rig.Recv(t, p, "the response"); got.err != nil || string(got.response) != strconv.Itoa(i) {
			t.Errorf("call %d: got %q, %v", i, got.response, got.err)
		}
		if !rig.Recv(t, redelivered, "the second server") {
			t.Error("the second server was not told that the request was handed out before")
		}
	}
	close(slow.release) // the first server's responses are no longer needed
	if err := second.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if left := r.Inspect().Messages; left != 0 {
		t.Errorf("%d requests are left", left)
	}
}

// TestConnectionsCutAgainAndAgain: frequent connection losses cost attempts, but no calls.
func TestConnectionsCutAgainAndAgain(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	ours, theirs := r.Proxy(), r.Proxy()
	server := r.StartAt(theirs.URL(), rig.Methods{"echo": echo})
	if err := server.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	client := r.ClientAt(ours.URL(), amqpx.WithCallOptions(amqpx.Idempotent(), amqpx.WaitForServer()))
	var callers sync.WaitGroup
	ctx, stop := context.WithCancel(rig.Patience(t))
	for range 8 {
		callers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				body := strconv.Itoa(i)
				// A started call is finished, so its context does not depend on ctx.
				got, err := client.Call(rig.Patience(t), "echo", []byte(body))
				if err != nil || string(got) != body {
					t.Errorf("got %q, %v, want %q", got, err, body)
					return
				}
			}
		})
	}
	const cuts = 10
	for i := range cuts {
		before := client.Stats().OK
		rig.Eventually(t, "calls flow", func() bool { return client.Stats().OK > before+50 || t.Failed() })
		if i%2 == 0 {
			ours.Cut()
		} else {
			theirs.Cut()
		}
	}
	stop()
	callers.Wait()
	if got := client.Stats(); got.Failed != 0 || got.Reconnects == 0 {
		t.Errorf("client counted %+v, want reconnects and no failed call", got)
	}
	// Requests with a lost acknowledgement run again; then no request is left.
	rig.Eventually(t, "the server is ready and idle", func() bool {
		return server.Status().Ready() && server.Stats().InFlight == 0 && r.Inspect().Messages == 0
	})
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if left := r.Inspect().Messages; left != 0 {
		t.Errorf("%d requests are left", left)
	}
}

// TestDrainWhileTheConnectionIsDown: a server stopped without a connection waits for the next
// connection, within its drain timeout, to deliver its responses.
func TestDrainWhileTheConnectionIsDown(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	proxy := r.Proxy()
	slow := hold()
	server := r.StartAt(proxy.URL(), rig.Methods{"slow": slow.handle})
	if err := server.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	client := r.Ready()
	call := begin(rig.Patience(t), client, "slow", []byte("once"), amqpx.WaitForServer())
	rig.Recv(t, slow.entered, "the request to arrive")
	proxy.Refuse(true)
	proxy.Cut()
	rig.Eventually(t, "the server noticed", func() bool { return !server.Status().Ready() })
	close(slow.release)
	server.Stop()
	proxy.Refuse(false)
	if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "once" {
		t.Errorf("got %q, %v, want the response over the last connection", got.response, got.err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

// TestDrainWithoutConnectionOrWork: a drain without responses to deliver ends at once.
func TestDrainWithoutConnectionOrWork(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	proxy := r.Proxy()
	server := r.StartAt(proxy.URL(), rig.Methods{"echo": echo}, amqpx.WithDrainTimeout(time.Hour))
	if err := server.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	proxy.Refuse(true)
	proxy.Cut()
	rig.Eventually(t, "the server noticed", func() bool { return !server.Status().Ready() })
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
}
