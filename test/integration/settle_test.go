//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// These tests check the table of outcomes in docs/protocol.md, row by row, against a real
// broker.

// want describes an expected error.
type want struct {
	code    amqpx.Code
	outcome amqpx.Outcome
	remote  bool
	is      []error
}

func (w want) check(t *testing.T, err error) {
	t.Helper()
	var e *amqpx.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want an *amqpx.Error with code %s", err, err, w.code)
	}
	if e.Code() != w.code || e.Outcome() != w.outcome || e.Remote() != w.remote {
		t.Errorf("%q: code %s, outcome %q, remote %v; want %s, %q, %v",
			e, e.Code(), e.Outcome(), e.Remote(), w.code, w.outcome, w.remote)
	}
	for _, target := range w.is {
		if !errors.Is(err, target) {
			t.Errorf("%q does not match %q", err, target)
		}
	}
}

// message returns the text of a coded error.
func message(err error) string {
	var e *amqpx.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Message()
}

func TestHandlersErrorReachesTheCaller(t *testing.T) {
	t.Parallel()
	const secret = "password of the database"
	core, logs := observer.New(zap.ErrorLevel)
	r := rig.New(t)
	server := r.Serve(rig.Methods{
		"coded": func(context.Context, *amqpx.Request) ([]byte, error) {
			return nil, fmt.Errorf("look up: %w", amqpx.Errorf(amqpx.CodeNotFound, "no user %d: ä\x00€", 7))
		},
		"uncoded": func(context.Context, *amqpx.Request) ([]byte, error) { return nil, errors.New(secret) },
		"panic":   func(context.Context, *amqpx.Request) ([]byte, error) { panic(secret) },
		"late": func(_ context.Context, _ *amqpx.Request) ([]byte, error) {
			return nil, fmt.Errorf("%s: %w", secret, context.DeadlineExceeded)
		},
	}, amqpx.WithLogger(zap.New(core)))
	if got := server.Stats(); got != (amqpx.ServerStats{Workers: amqpx.DefaultWorkers}) {
		t.Errorf("an idle server counted %+v", got)
	}
	client := r.Ready()
	for _, c := range []struct {
		method, message string
		want            want
	}{
		{"coded", "no user 7: ä\x00€", want{code: amqpx.CodeNotFound, outcome: amqpx.Ran, remote: true}},
		{"uncoded", "internal error", want{code: amqpx.CodeInternal, outcome: amqpx.Ran, remote: true}},
		{"panic", "internal error", want{code: amqpx.CodeInternal, outcome: amqpx.Ran, remote: true}},
		{"unknown", `method "unknown" is unknown to this server`, want{code: amqpx.CodeUnimplemented, outcome: amqpx.DidNotRun, remote: true}},
	} {
		_, err := client.Call(rig.Patience(t), c.method, nil)
		c.want.check(t, err)
		if got := message(err); got != c.message {
			t.Errorf("%s: message %q, want %q", c.method, got, c.message)
		}
	}
	_, err := client.Call(rig.Patience(t), "late", nil)
	want{code: amqpx.CodeDeadlineExceeded, outcome: amqpx.Ran, remote: true}.check(t, err)
	if strings.Contains(err.Error(), secret) {
		t.Errorf("%q tells the caller what a handler did not mean to", err)
	}
	if n := logs.Len(); n != 2 {
		t.Errorf("%d lines at error level, want one for the error and one for the panic: %v", n, logs.All())
	}
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	counted := amqpx.ServerStats{Requests: 5, DefaultExchange: 5, Failed: 4, Panics: 1, Refused: 1, Workers: amqpx.DefaultWorkers}
	if got := server.Stats(); got != counted {
		t.Errorf("server counted %+v, want %+v", got, counted)
	}
}

func TestWithoutQueueACallFailsAtOnce(t *testing.T) {
	t.Parallel()
	client := rig.New(t).Ready()
	begun := time.Now()
	_, err := client.Call(rig.Patience(t), "b", nil)
	want{code: amqpx.CodeUnavailable, outcome: amqpx.DidNotRun, is: []error{amqpx.ErrUnroutable}}.check(t, err)
	if took := time.Since(begun); took > 15*time.Second { // milliseconds on an idle machine; the call itself has 30 s
		t.Errorf("took %v, want the broker's word only", took)
	}
}

func TestWaitForServer(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	proxy := r.Proxy()
	client := r.ClientAt(proxy.URL(), amqpx.WithCallOptions(amqpx.WaitForServer()))
	rig.Connected(t, client)
	want{
		code: amqpx.CodeUnavailable, outcome: amqpx.DidNotRun,
		is: []error{amqpx.ErrUnroutable, context.DeadlineExceeded},
	}.check(t, atDeadline(t, client, amqpx.ErrUnroutable))

	waiting := begin(rig.Patience(t), client, "b", nil)
	heardAnew(t, proxy, rig.Return)
	r.Serve(rig.Methods{"b": letter})
	if got := rig.Recv(t, waiting, "the response"); got.err != nil || string(got.response) != "b" {
		t.Errorf("got %q, %v, want the response once a server is there", got.response, got.err)
	}
}

func TestFullQueueRefuses(t *testing.T) {
	t.Parallel()
	for _, kind := range []amqpx.QueueType{amqpx.QueueClassic, amqpx.QueueQuorum} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Queue.Type = kind
			const room = 1
			args := amqp.Table{amqp.QueueMaxLenArg: room, amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish}
			outcome := amqpx.MayHaveRun
			if kind == amqpx.QueueQuorum {
				args[amqp.QueueTypeArg] = amqp.QueueTypeQuorum
				outcome = amqpx.DidNotRun // a quorum queue's nack proves it
			}
			r.Declare(true, args)
			proxy := r.Proxy()
			client := r.ClientAt(proxy.URL())
			rig.Connected(t, client)
			fill(t, r)

			want{
				code: amqpx.CodeResourceExhausted, outcome: outcome,
				is: []error{amqpx.ErrRefused},
			}.check(t, atDeadline(t, client, amqpx.ErrRefused, amqpx.Idempotent()))

			waiting := begin(rig.Patience(t), client, "b", nil, amqpx.Idempotent())
			heardAnew(t, proxy, rig.Nack)
			r.Serve(rig.Methods{"b": letter}) // adopts the queue and empties it
			if got := rig.Recv(t, waiting, "the response"); got.err != nil || string(got.response) != "b" {
				t.Errorf("got %q, %v, want the response once there is room", got.response, got.err)
			}
		})
	}
}

// TestServerBoundsItsQueue: the servers, which declare the queue, set its limits.
func TestServerBoundsItsQueue(t *testing.T) {
	t.Parallel()
	for name, bound := range map[string]amqpx.Queue{"messages": {MaxLength: 3}, "bytes": {MaxBytes: 10}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Queue.MaxLength, r.Queue.MaxBytes = bound.MaxLength, bound.MaxBytes
			if err := r.Serve(rig.Methods{"b": letter}).Drain(); err != nil {
				t.Fatal(err)
			}
			fill(t, r)
			client := r.Ready(amqpx.WithRetryBudget(0, 0))
			_, err := client.Call(rig.Patience(t), "b", []byte("0123456789"))
			want{code: amqpx.CodeResourceExhausted, outcome: amqpx.MayHaveRun, is: []error{amqpx.ErrRefused}}.check(t, err)
			var e *amqpx.Error
			if errors.As(err, &e) && e.RetryAfter() <= 0 {
				t.Error("no hint when to call again")
			}
			r.Serve(rig.Methods{"b": letter})
			rig.Call(t, r.Ready(), "b", nil)
		})
	}
}

// atDeadline returns the error of a call sent repeatedly in vain. If the deadline falls
// between an attempt and its confirm or nack, the outcome is rightly unknown, and the call is
// made again; and so it is if the deadline falls before the first attempt.
func atDeadline(t *testing.T, client *amqpx.Client, reason error, opts ...amqpx.CallOption) (err error) {
	t.Helper()
	for range 10 {
		if _, err = client.Call(rig.Within(t, 300*time.Millisecond), "b", nil, opts...); errors.Is(err, reason) {
			break
		}
		if !errors.Is(err, amqpx.ErrQueueUnavailable) { // and the reason of the broker's refusal is not known yet
			outcome := amqpx.MayHaveRun
			if amqpx.OutcomeOf(err) == amqpx.DidNotRun { // on a slow broker the request waits for confirms, and is not sent
				outcome = amqpx.DidNotRun
			}
			want{code: amqpx.CodeDeadlineExceeded, outcome: outcome}.check(t, err)
		}
	}
	return err
}

// expires makes a call whose deadline passes after the request was sent, see sent.
func expires(t *testing.T, client *amqpx.Client, timeout time.Duration, method, body string) {
	t.Helper()
	err := sent(func() error {
		_, err := client.Call(rig.Within(t, timeout), method, []byte(body))
		return err
	})
	want{code: amqpx.CodeDeadlineExceeded, outcome: amqpx.MayHaveRun, is: []error{context.DeadlineExceeded}}.check(t, err)
}

// sent returns the error of a call whose request was sent. If the deadline passes earlier, the
// call rightly did not run, and is made again.
func sent(call func() error) (err error) {
	for range 10 {
		if err = call(); amqpx.OutcomeOf(err) != amqpx.DidNotRun {
			break
		}
	}
	return err
}

// heardAnew waits until the broker has sent the method w twice more.
func heardAnew(t *testing.T, proxy *rig.Proxy, w rig.Word) {
	t.Helper()
	heard := proxy.Heard(w)
	for range len(heard) + 2 {
		rig.Recv(t, heard, "the call to be sent again")
	}
}

// fill makes one-way requests until the broker refuses a request. A quorum queue accepts a few
// more than its limit.
func fill(t *testing.T, r *rig.Rig) {
	t.Helper()
	ch := r.Raw()
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		word, err := ch.PublishWithDeferredConfirm("", r.Queue.Name, true, false, amqp.Publishing{AppId: "b", Body: []byte("xxxx")})
		if err != nil {
			t.Fatal(err)
		}
		if rig.Recv(t, word.Done(), "the broker's word"); !word.Acked() {
			return
		}
	}
	t.Fatal("the queue takes everything")
}

func TestExpiredBehindBusyWorkersNeverRuns(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	busy, runs := hold(), hold()
	close(runs.release)
	server := r.Serve(rig.Methods{"busy": busy.handle, "run": runs.handle},
		amqpx.WithWorkers(1), amqpx.WithPrefetch(8))
	client := r.Ready()
	first := begin(rig.Patience(t), client, "busy", nil)
	rig.Recv(t, busy.entered, "the worker to be busy")

	// The server measures from the arrival, so the end of the other call shows that the first
	// call has expired there, too.
	expires(t, client, 100*time.Millisecond, "run", "too late")
	expires(t, client, 400*time.Millisecond, "run", "on the edge")

	close(busy.release)
	rig.Recv(t, first, "the worker to be free")
	rig.Call(t, client, "run", []byte("in time"))
	for body := ""; body != "in time"; {
		if body = string(rig.Recv(t, runs.entered, "the handler").Body); body == "too late" {
			t.Error("a call ran after its time")
		}
	}
	// On a busy machine the broker may drop an expired request before it delivers it.
	const others = 2
	if st := server.Stats(); st.Expired == 0 && st.Requests > others {
		t.Error("server counted no expired call")
	}
	rig.Eventually(t, "the responses to the calls that ended are counted", func() bool {
		return client.Stats().Late == server.Stats().Requests-others
	})
}

func TestExpiredInTheQueueNeverRuns(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Declare(true, nil)
	client := r.Ready()
	// The broker measures from the arrival, so the end of the other call shows that the first
	// call has expired there, too.
	expires(t, client, 100*time.Millisecond, "run", "too late")
	expires(t, client, 400*time.Millisecond, "run", "on the edge")

	runs := hold()
	close(runs.release)
	r.Serve(rig.Methods{"run": runs.handle})
	rig.Call(t, client, "run", []byte("in time"))
	for body := ""; body != "in time"; {
		if body = string(rig.Recv(t, runs.entered, "the handler").Body); body == "too late" {
			t.Error("a call ran after its time")
		}
	}
}

func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	server := r.Serve(rig.Methods{"slow": slow.handle, "b": letter})
	const timeout = 3 * time.Second // so that the handler runs before the timeout, also on a busy machine
	client := r.Ready(amqpx.WithTimeout(timeout))

	expires(t, client, timeout, "slow", "")
	err := sent(func() error {
		_, err := client.Call(t.Context(), "slow", nil) // the client's own timeout
		return err
	})
	want{code: amqpx.CodeDeadlineExceeded, outcome: amqpx.MayHaveRun, is: []error{context.DeadlineExceeded}}.check(t, err)

	ctx, cancel := context.WithCancel(rig.Patience(t))
	canceled := begin(ctx, client, "slow", nil)
	for range 3 {
		rig.Recv(t, slow.entered, "the handler to run")
	}
	cancel()
	want{code: amqpx.CodeCanceled, outcome: amqpx.MayHaveRun, is: []error{context.Canceled}}.
		check(t, rig.Recv(t, canceled, "the call to end").err)

	_, err = client.Call(ctx, "b", nil)
	want{code: amqpx.CodeCanceled, outcome: amqpx.DidNotRun, is: []error{context.Canceled}}.check(t, err)

	rig.Eventually(t, "the server learns of the one that was cancelled", func() bool { return server.Stats().Canceled == 1 })
	close(slow.release)
	rig.Eventually(t, "the late responses are counted", func() bool { return client.Stats().Late == 3 })
	if got := rig.Call(t, client, "b", nil); string(got) != "b" {
		t.Errorf("got %q after late responses, want %q", got, "b")
	}
}

func TestCloseSettlesEveryCall(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	r.Serve(rig.Methods{"slow": slow.handle})
	client := r.Ready()
	const calls = 32
	var pending []<-chan outcome
	for range calls {
		pending = append(pending, begin(rig.Patience(t), client, "slow", nil))
	}
	for range calls {
		rig.Recv(t, slow.entered, "the handlers to run")
	}
	for range 2 {
		if err := client.Close(rig.Patience(t)); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	for _, p := range pending {
		want{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, is: []error{amqpx.ErrClosed}}.
			check(t, rig.Recv(t, p, "the call to settle").err)
	}
	_, err := client.Call(rig.Patience(t), "slow", nil)
	want{code: amqpx.CodeUnavailable, outcome: amqpx.DidNotRun, is: []error{amqpx.ErrClosed}}.check(t, err)
	close(slow.release) // the responses have no receiver; this does not disturb the server
}

func TestCallInfo(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	const pause = 20 * time.Millisecond
	r.Serve(rig.Methods{"pause": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		if d, ok := ctx.Deadline(); !ok || time.Until(d) > 3*time.Minute { // without a deadline of the call it is 5 minutes
			return nil, amqpx.Errorf(amqpx.CodeFailedPrecondition, "deadline %v, %v", d, ok)
		}
		<-time.After(pause)
		return nil, nil
	}})
	client := r.Ready()
	var info amqpx.CallInfo
	rig.Call(t, client, "pause", nil, amqpx.WithCallInfo(&info))
	if info.Attempts != 1 || info.HandlerTime < pause || info.HandlerTime > time.Minute {
		t.Errorf("got %+v, want one attempt and a handler of at least %v", info, pause)
	}
}
