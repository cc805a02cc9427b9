//go:build integration

package integration

import (
	"errors"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestWithoutAnyServerCallersHearSoon: callers soon get an error if the request queue has no
// servers, although the broker accepts the requests.
func TestWithoutAnyServerCallersHearSoon(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]amqpx.CallOption{"": nil, "idempotent": {amqpx.Idempotent()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			if err := r.Serve(rig.Methods{"b": letter}).Drain(); err != nil {
				t.Fatal(err)
			}
			client := r.Ready()
			waits := begin(rig.Patience(t), client, "b", nil, append(opts, amqpx.WaitForServer())...)
			begun := time.Now()
			_, err := client.Call(rig.Patience(t), "b", nil, opts...)
			want{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, is: []error{amqpx.ErrNoServer}}.check(t, err)
			if took := time.Since(begun); took > 15*time.Second { // 2 s on an idle machine; the call itself has 30 s
				t.Errorf("took %v", took)
			}
			r.Serve(rig.Methods{"b": letter})
			if got := rig.Recv(t, waits, "the response"); got.err != nil {
				t.Errorf("a call that waits for a server: %v", got.err)
			}
		})
	}
}

// TestServerThatDrainsIsNotTakenForNone: a draining server, which has no consumers any more,
// still answers its running calls.
func TestServerThatDrainsIsNotTakenForNone(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	server := r.Serve(rig.Methods{"slow": slow.handle})
	client := r.Ready()
	done := begin(rig.Patience(t), client, "slow", []byte("x"))
	rig.Recv(t, slow.entered, "the handler to run")
	server.Stop()
	_, err := client.Call(rig.Within(t, 5*time.Second), "slow", nil) // long enough for several checks
	want{code: amqpx.CodeDeadlineExceeded, outcome: amqpx.MayHaveRun}.check(t, err)
	close(slow.release)
	if got := rig.Recv(t, done, "the response"); got.err != nil || string(got.response) != "x" {
		t.Errorf("got %q, %v, want the response of the server that drains", got.response, got.err)
	}
}

// TestConfirmedCallOfAQueueThatEndedIsSentAgain: a confirmed request lost with its deleted
// queue is sent again, although the client's connection stays open.
func TestConfirmedCallOfAQueueThatEndedIsSentAgain(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Declare(true, nil)
	client := r.Ready(amqpx.WithCallOptions(amqpx.WaitForServer(), amqpx.Idempotent()))
	done := begin(rig.Patience(t), client, "b", []byte("x"))
	raw := r.Raw()
	rig.Eventually(t, "the request is in the queue", func() bool {
		q, err := raw.QueueDeclarePassive(r.Queue.Name, true, false, false, false, nil)
		return err == nil && q.Messages == 1
	})
	// A queue that is deleted and declared again between two checks goes unnoticed.
	if n, err := client.Consumers(rig.Patience(t)); n != 0 || err != nil {
		t.Fatalf("%d consumers, error %v", n, err)
	}
	if _, err := raw.QueueDelete(r.Queue.Name, false, false, false); err != nil {
		t.Fatal(err)
	}
	r.Serve(rig.Methods{"b": letter})
	if got := rig.Recv(t, done, "the response"); got.err != nil {
		t.Errorf("got %v, want the response", got.err)
	}
	if st := client.Status(); st.Generation != 1 {
		t.Errorf("link %d, want the first", st.Generation)
	}
}

// TestMethodOfOneServerIsFound: a call finds its method during a rolling deployment, while the
// servers of a queue have different methods.
func TestMethodOfOneServerIsFound(t *testing.T) {
	t.Parallel()
	for _, mode := range []amqpx.BatchMode{amqpx.BatchAuto, amqpx.BatchOff} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			for i := range 3 {
				methods := rig.Methods{"old": letter}
				if i == 2 {
					methods["b"] = letter
				}
				r.Serve(methods, amqpx.WithBatch(mode))
			}
			client := r.Ready(amqpx.WithBatch(mode), amqpx.WithRetryBudget(0, 0))
			var callers sync.WaitGroup
			var failed sync.Map
			for range 32 {
				callers.Go(func() {
					for range 30 {
						if _, err := client.Call(rig.Patience(t), "b", nil); err != nil {
							failed.Store(err.Error(), true)
						}
					}
				})
			}
			callers.Wait()
			failed.Range(func(text, _ any) bool { t.Error(text); return true })

			begun := time.Now()
			_, err := client.Call(rig.Patience(t), "of no server", nil)
			want{code: amqpx.CodeUnimplemented, outcome: amqpx.DidNotRun, remote: true}.check(t, err)
			if took := time.Since(begun); took > 15*time.Second { // some 100 ms on an idle machine
				t.Errorf("a method of no server took %v", took)
			}
		})
	}
}

// queueThatStoppedIsNoOverload ends the process of a queue for good, so the queue accepts no
// messages. Patient calls must wait, and no connection may be closed for this reason.
func queueThatStoppedIsNoOverload(t *testing.T, b *rig.Broker) {
	t.Helper()
	r := rig.On(t, b.URL)
	r.Serve(rig.Methods{"b": letter}, amqpx.WithBatch(amqpx.BatchOff))
	client := r.Ready(amqpx.WithBatch(amqpx.BatchOff))
	rig.Call(t, client, "b", nil)
	stopQueue(t, b, r.Queue.Name)
	err := sent(func() error {
		_, err := client.Call(rig.Within(t, 5*time.Second), "b", nil)
		return err
	})
	if errors.Is(err, amqpx.ErrRefused) || amqpx.CodeOf(err) == amqpx.CodeResourceExhausted {
		t.Errorf("%v: the queue is not full", err)
	}
	if amqpx.OutcomeOf(err) != amqpx.MayHaveRun {
		t.Errorf("%v, want an open outcome", err)
	}
	done := begin(rig.Within(t, callTime(amqpx.Idempotent())), client, "b", nil, amqpx.Idempotent())
	b.Do("restart")
	if got := rig.Recv(t, done, "the response after the restart"); got.err != nil {
		t.Errorf("an idempotent call: %v", got.err)
	}
}

// TestMixedFleetSharesTheCalls: servers in other languages, which read no batches, get their
// share beside a server that does.
func TestMixedFleetSharesTheCalls(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	const callers, each = 64, 10
	ours := r.Serve(rig.Methods{"b": letter})
	for range 2 {
		requests := rawServer(t, r)
		responses := r.Raw()
		go func() { // ends with the test's channels
			for d := range requests {
				_ = responses.PublishWithContext(t.Context(), "", d.ReplyTo, false, false, amqp.Publishing{CorrelationId: d.CorrelationId, Body: []byte("b")})
			}
		}()
	}
	client := r.Ready()
	if n, err := client.Consumers(rig.Patience(t)); n != 3 || err != nil { // makes the client check
		t.Fatalf("%d consumers, %v, want 3", n, err)
	}
	before := ours.Stats().Requests
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for range each {
				if _, err := client.Call(rig.Patience(t), "b", nil); err != nil {
					t.Errorf("call: %v", err)
				}
			}
		})
	}
	all.Wait()
	if got := ours.Stats().Requests - before; got > callers*each*2/3 {
		t.Errorf("ours took %d of %d calls, want about half", got, callers*each)
	}
}

// TestSwallowedCallIsSentAgain: an idempotent call is sent again after the attempt timeout if
// a server acknowledged the request without a response.
func TestSwallowedCallIsSentAgain(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	requests := rawServer(t, r)
	responses := r.Raw()
	client := r.Ready(amqpx.WithAttemptTimeout(200 * time.Millisecond))
	done := begin(rig.Patience(t), client, "b", []byte("x"), amqpx.Idempotent())
	first := rig.Recv(t, requests, "the request")
	again := rig.Recv(t, requests, "the request, sent again")
	if again.CorrelationId != first.CorrelationId || again.MessageId != first.MessageId || again.Headers["rpc-resent"] != true {
		t.Errorf("sent again as %+v", again)
	}
	if err := responses.PublishWithContext(t.Context(), "", first.ReplyTo, false, false, amqp.Publishing{
		CorrelationId: first.CorrelationId, Body: []byte("x"),
	}); err != nil {
		t.Fatal(err)
	}
	if got := rig.Recv(t, done, "the response"); got.err != nil || string(got.response) != "x" {
		t.Errorf("got %q, %v, want the response to the first attempt", got.response, got.err)
	}
}
