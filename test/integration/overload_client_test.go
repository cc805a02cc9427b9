//go:build integration

package integration

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// overloaded checks the error of a refused call with the outcome "did not run".
func overloaded(t *testing.T, err error, remote bool, is ...error) {
	t.Helper()
	exhausted(t, err, amqpx.DidNotRun, remote, is...)
}

// exhausted checks the error of a refused call.
func exhausted(t *testing.T, err error, outcome amqpx.Outcome, remote bool, is ...error) {
	t.Helper()
	want{code: amqpx.CodeResourceExhausted, outcome: outcome, remote: remote, is: is}.check(t, err)
	var e *amqpx.Error
	if errors.As(err, &e) && e.RetryAfter() <= 0 {
		t.Errorf("%q has no hint when to try again", err)
	}
}

func TestBoundsOfCallsInFlight(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	r.Serve(rig.Methods{"slow": slow.handle})
	for name, c := range map[string]struct {
		opts []amqpx.ClientOption
		body string
	}{
		"calls": {opts: []amqpx.ClientOption{amqpx.WithMaxInFlight(1)}},
		"bytes": {opts: []amqpx.ClientOption{amqpx.WithMaxMessageSize(10), amqpx.WithMaxInFlightBytes(15)}, body: "0123456789"},
	} {
		client := r.Ready(c.opts...)
		first := begin(rig.Patience(t), client, "slow", []byte(c.body))
		rig.Recv(t, slow.entered, "the first call")
		// The first call is still in flight when this call is refused.
		_, err := client.Call(rig.Within(t, 5*time.Second), "slow", []byte(c.body))
		overloaded(t, err, false, amqpx.ErrTooManyCalls)
		slow.release <- struct{}{}
		if got := rig.Recv(t, first, "the first call"); got.err != nil {
			t.Errorf("%s: first call: %v", name, got.err)
		}
		if got := client.Stats(); got.Rejected != 1 || got.Retried != 0 {
			t.Errorf("%s: client counted %+v", name, got)
		}
	}
}

// outage makes calls from many goroutines, all of which must be refused, and returns the
// number of sent requests.
func outage(t *testing.T, client *amqpx.Client, calls int, remote bool, is ...error) (sent int) {
	t.Helper()
	next := make(chan struct{}, calls)
	for range calls {
		next <- struct{}{}
	}
	close(next)
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			for range next {
				var info amqpx.CallInfo
				opts := []amqpx.CallOption{amqpx.WithCallInfo(&info)}
				outcome := amqpx.DidNotRun
				if !remote { // a nack proves nothing, so only idempotent calls are retried
					opts, outcome = append(opts, amqpx.Idempotent()), amqpx.MayHaveRun
				}
				_, err := client.Call(rig.Patience(t), "b", nil, opts...)
				exhausted(t, err, outcome, remote, is...)
				mu.Lock()
				sent += info.Attempts
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return sent
}

// TestRetriesDoNotMultiplyAnOutage: retries stay within the budget while every call is
// refused, by the broker or by a server.
func TestRetriesDoNotMultiplyAnOutage(t *testing.T) {
	t.Parallel()
	const calls = 1000
	const most = calls + amqpx.DefaultRetryBurst + calls*amqpx.DefaultRetryRatio
	const probes = 1 + 100 // a first nack is followed by one probe; the callers may meet it together
	t.Run("full queue", func(t *testing.T) {
		t.Parallel()
		r := rig.New(t)
		r.Declare(true, amqp.Table{amqp.QueueMaxLenArg: 1, amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish})
		fill(t, r)
		client := r.Ready()
		begun := time.Now()
		sent := outage(t, client, calls, false, amqpx.ErrRefused)
		if sent > most+probes {
			t.Errorf("%d requests, want at most %v", sent, most+probes)
		}
		t.Logf("%d calls, %d requests, %v", calls, sent, time.Since(begun))
	})
	t.Run("refusing server", func(t *testing.T) {
		t.Parallel()
		r := rig.New(t)
		requests := rawServer(t, r)
		client := r.Ready()
		responses := r.Raw()
		seen := make(chan int)
		stop, ended := context.WithCancel(t.Context())
		go func() { // ends with stop
			n := 0
			defer func() { seen <- n }()
			for {
				select {
				case d := <-requests:
					n++
					err := responses.PublishWithContext(stop, "", d.ReplyTo, false, false, amqp.Publishing{
						CorrelationId: d.CorrelationId, Headers: amqp.Table{
							"rpc-code": "resource_exhausted", "rpc-ran": false,
							"rpc-retry-after-ms": 5, "rpc-retry": d.Headers["rpc-retry"],
						},
					})
					if err != nil {
						t.Errorf("refuse: %v", err)
					}
				case <-stop.Done():
					return
				}
			}
		}()
		begun := time.Now()
		sent := outage(t, client, calls, true)
		ended()
		if got := <-seen; got != sent || sent > most {
			t.Errorf("%d requests, %d arrived, want at most %v", sent, got, most)
		}
		t.Logf("%d calls, %d requests, %v", calls, sent, time.Since(begun))
	})
}

// TestRefusedByABusyServerThenRun: the retry of a call refused by a busy server succeeds.
func TestRefusedByABusyServerThenRun(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	requests := rawServer(t, r)
	client := r.Ready()
	var info amqpx.CallInfo
	begun := time.Now()
	call := begin(rig.Patience(t), client, "b", []byte("x"), amqpx.WithCallInfo(&info))
	refused := rig.Recv(t, requests, "the request")
	const hint = 300 * time.Millisecond
	r.Publish(refused.ReplyTo, amqp.Publishing{CorrelationId: refused.CorrelationId, Headers: amqp.Table{
		"rpc-code": "resource_exhausted", "rpc-ran": false, "rpc-retry-after-ms": int64(hint / time.Millisecond), "rpc-retry": int64(0),
	}})
	again := rig.Recv(t, requests, "the retry")
	if took := time.Since(begun); took < hint {
		t.Errorf("sent again after %v, want the hint of %v kept", took, hint)
	}
	if again.CorrelationId != refused.CorrelationId || again.Headers["rpc-retry"] != int64(1) || again.Headers["rpc-resent"] != nil {
		t.Errorf("retry of %s has id %s and headers %v", refused.CorrelationId, again.CorrelationId, again.Headers)
	}
	// A second copy of the refusal must not match the retry.
	r.Publish(refused.ReplyTo, amqp.Publishing{CorrelationId: refused.CorrelationId, Headers: amqp.Table{
		"rpc-code": "resource_exhausted", "rpc-ran": false, "rpc-retry": int64(0),
	}})
	r.Publish(again.ReplyTo, amqp.Publishing{CorrelationId: again.CorrelationId, Body: []byte("x")})
	if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "x" {
		t.Errorf("got %q, %v", got.response, got.err)
	}
	if st := client.Stats(); info.Attempts != 2 || st.Retried != 1 || st.Duplicates != 1 {
		t.Errorf("%d attempts, client counted %+v", info.Attempts, st)
	}
}
