//go:build integration

package integration

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestDrainUnderLoad drains one of two servers under load. No caller may notice: the calls are
// not idempotent and not repeated, so a lost call would show.
func TestDrainUnderLoad(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	leaving, staying := r.Serve(rig.Methods{"echo": echo}), r.Serve(rig.Methods{"echo": echo})
	client := r.Ready()
	ctx, stop := context.WithCancel(rig.Patience(t))
	var callers sync.WaitGroup
	for caller := range 32 {
		callers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				body := strconv.Itoa(caller) + "." + strconv.Itoa(i)
				got, err := client.Call(rig.Patience(t), "echo", []byte(body))
				if err != nil || string(got) != body {
					t.Errorf("got %q, %v, want %q", got, err, body)
					return
				}
			}
		})
	}
	flows := func() {
		before := client.Stats().OK
		rig.Eventually(t, "calls flow", func() bool { return client.Stats().OK > before+500 || t.Failed() })
	}
	flows()
	if err := leaving.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	flows()
	stop()
	callers.Wait()
	if got := client.Stats(); got.Failed != 0 || got.Late+got.Duplicates+got.Unknown != 0 {
		t.Errorf("client counted %+v, want no failed call and no stray answer", got)
	}
	if err := staying.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if left := r.Inspect().Messages; left != 0 {
		t.Errorf("%d requests were not acknowledged", left)
	}
	a, b := leaving.Stats(), staying.Stats()
	if a.OK == 0 || b.OK == 0 || a.InFlight+b.InFlight != 0 || a.OK+b.OK != client.Stats().OK {
		t.Errorf("servers counted %+v and %+v, client %+v", a, b, client.Stats())
	}
}

func TestDrainGivesBackWhatWasNotStarted(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	busy := hold()
	server := r.Serve(rig.Methods{"run": busy.handle}, amqpx.WithWorkers(1), amqpx.WithPrefetch(8), amqpx.WithBatch(amqpx.BatchOff))
	client := r.Ready(amqpx.WithBatch(amqpx.BatchOff))
	const calls = 5
	var pending []<-chan outcome
	for range calls {
		pending = append(pending, begin(rig.Patience(t), client, "run", nil))
	}
	rig.Recv(t, busy.entered, "the worker to be busy")
	rig.Eventually(t, "the server has all requests", func() bool { return server.Stats().Requests == calls })
	if got := server.Stats().InFlight; got != calls {
		t.Errorf("%d requests in flight, want %d", got, calls)
	}
	r.Serve(rig.Methods{"run": echo})
	server.Stop()
	rig.Eventually(t, "the server drains", func() bool { return server.Status().State == amqpx.StateDraining })
	close(busy.release)
	for i, p := range pending {
		if got := rig.Recv(t, p, "the response"); got.err != nil {
			t.Errorf("call %d: %v", i, got.err)
		}
	}
	if err := server.Wait(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if got, want := server.Stats(), (amqpx.ServerStats{Requests: calls, DefaultExchange: calls, OK: 1, Requeued: calls - 1, Workers: 1}); got != want {
		t.Errorf("server counted %+v, want %+v", got, want)
	}
	if got := len(busy.entered); got != 0 {
		t.Errorf("the draining server started %d more", got)
	}
}

// TestDrainTimeLimit: the drain timeout cancels an endless handler, and its request is
// redelivered to another server.
func TestDrainTimeLimit(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	entered := make(chan struct{}, 1)
	server := r.Serve(rig.Methods{"run": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		entered <- struct{}{}
		<-ctx.Done() // only the hard stop ends it: the call has more time than the drain
		return nil, ctx.Err()
	}}, amqpx.WithDrainTimeout(200*time.Millisecond))
	client := r.Ready()
	call := begin(rig.Patience(t), client, "run", []byte("x"))
	rig.Recv(t, entered, "the handler to run")
	if err := server.Drain(); !errors.Is(err, amqpx.ErrDrainTimeout) {
		t.Errorf("drain: %v, want %v", err, amqpx.ErrDrainTimeout)
	}
	redelivered := make(chan bool, 1)
	r.Serve(rig.Methods{"run": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		redelivered <- req.Redelivered
		return req.Body, nil
	}})
	if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "x" {
		t.Errorf("got %q, %v, want the other server's response", got.response, got.err)
	}
	if !rig.Recv(t, redelivered, "the other server") {
		t.Error("the other server was not told that the request was handed out before")
	}
}

// TestResponseIsConfirmedBeforeItsRequestIsAcknowledged: a request is acknowledged only after
// the broker confirmed the response.
func TestResponseIsConfirmedBeforeItsRequestIsAcknowledged(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		heard bool
		left  int
	}{{"confirmed", true, 0}, {"not confirmed", false, 1}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			proxy := r.Proxy()
			slow := hold()
			server := r.StartAt(proxy.URL(), rig.Methods{"slow": slow.handle})
			if err := server.WaitReady(rig.Patience(t)); err != nil {
				t.Fatal(err)
			}
			inbox := r.Inbox()
			r.Request(amqp.Publishing{AppId: "slow", ReplyTo: inbox.Name, CorrelationId: "1", Body: []byte("x")})
			rig.Recv(t, slow.entered, "the request to arrive")
			if !c.heard {
				proxy.Mute()
			}
			close(slow.release)
			if got := inbox.Next(); string(got.Body) != "x" {
				t.Fatalf("got %q", got.Body)
			}
			if c.heard {
				if err := server.Drain(); err != nil {
					t.Errorf("drain: %v", err)
				}
			} else if got := server.Stats().InFlight; got != 1 {
				t.Errorf("%d requests in flight, want the one whose answer is not confirmed", got)
			}
			proxy.Refuse(true)
			proxy.Cut()
			proxy.Unmute()
			rig.Eventually(t, "the broker counts what is left", func() bool { return r.Inspect().Messages == c.left })
		})
	}
}

// TestReplyQueueThatRefuses: a nacked response is published again until the call's deadline.
// Then the server abandons the request with a warning, instead of running it forever.
func TestReplyQueueThatRefuses(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	core, logs := observer.New(zap.WarnLevel)
	server := r.Serve(rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core)))
	full := r.Queue.Name + ".full"
	if _, err := r.Raw().QueueDeclare(full, false, false, true, false, amqp.Table{
		amqp.QueueMaxLenArg: 0, amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish,
	}); err != nil {
		t.Fatal(err)
	}
	r.Request(amqp.Publishing{AppId: "b", ReplyTo: full, CorrelationId: "1", Headers: amqp.Table{"rpc-timeout-ms": 2000}})
	const warning = "the broker refused a response, its caller gets none"
	rig.Eventually(t, "the server warned", func() bool { return logs.FilterMessage(warning).Len() == 1 })
	if got := string(rig.Call(t, r.Ready(), "b", nil)); got != "b" {
		t.Errorf("got %q afterwards", got)
	}
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if left := r.Inspect().Messages; left != 0 {
		t.Errorf("%d requests were not acknowledged", left)
	}
}
