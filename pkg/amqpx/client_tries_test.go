package amqpx

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// fails answers with an error of the handler.
func fails(code Code, hint time.Duration) script {
	return func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
		send(errorTo(d, Errorf(code, "not now").WithRetryAfter(hint)))
	}
}

// keyOf returns the idempotency key that a server finds in a request.
func keyOf(msg amqp.Publishing) string {
	var r wire.Request
	if err := r.Decode(&amqp.Delivery{AppId: msg.AppId, Type: msg.Type, CorrelationId: msg.CorrelationId, MessageId: msg.MessageId}, ""); err != nil {
		return err.Error()
	}
	return r.Key
}

func TestRetryPolicy(t *testing.T) {
	t.Parallel()
	idempotent := []CallOption{Idempotent()}
	flat := RetryPolicy{MinBackoff: time.Nanosecond, MaxBackoff: time.Nanosecond}
	with := func(change func(*RetryPolicy)) RetryPolicy {
		p := flat
		change(&p)
		return p
	}
	for _, c := range []struct {
		name     string
		script   script
		policy   RetryPolicy
		opts     []CallOption
		client   []ClientOption
		code     Code
		outcome  Outcome
		requests int
		took     time.Duration
	}{
		{name: "a handler fails twice", script: each(fails(CodeUnavailable, 0), fails(CodeAborted, 0), runs), policy: flat, opts: idempotent, outcome: Ran, requests: 3},
		{name: "not idempotent", script: each(fails(CodeUnavailable, 0), runs), policy: flat, code: CodeUnavailable, outcome: Ran, requests: 1},
		{name: "no policy", script: each(fails(CodeUnavailable, 0), runs), policy: with(func(p *RetryPolicy) { p.MaxRetries = -1 }), opts: idempotent, code: CodeUnavailable, outcome: Ran, requests: 1},
		{name: "always", script: fails(CodeUnavailable, 0), policy: flat, opts: idempotent, code: CodeUnavailable, outcome: Ran, requests: 1 + DefaultMaxRetries},
		{name: "once", script: fails(CodeUnavailable, 0), policy: with(func(p *RetryPolicy) { p.MaxRetries = 1 }), opts: idempotent, code: CodeUnavailable, outcome: Ran, requests: 2},
		{name: "other code", script: each(fails(CodeInternal, 0), runs), policy: flat, opts: idempotent, code: CodeInternal, outcome: Ran, requests: 1},
		{name: "own code", script: each(fails(CodeInternal, 0), runs), policy: with(func(p *RetryPolicy) { p.Codes = []Code{CodeInternal} }), opts: idempotent, outcome: Ran, requests: 2},
		{name: "hint", script: each(fails(CodeUnavailable, 3*time.Second), runs), policy: flat, opts: idempotent, outcome: Ran, requests: 2, took: 3 * time.Second},
		{name: "hint beyond the deadline", script: each(fails(CodeUnavailable, time.Hour), runs), policy: flat, opts: idempotent, code: CodeUnavailable, outcome: Ran, requests: 1},
		{name: "no budget", script: each(fails(CodeUnavailable, 0), runs), policy: flat, opts: idempotent, client: []ClientOption{WithRetryBudget(0, 0)}, code: CodeUnavailable, outcome: Ran, requests: 1},
		{name: "a little budget", script: fails(CodeUnavailable, 0), policy: flat, opts: idempotent, client: []ClientOption{WithRetryBudget(0, 1)}, code: CodeUnavailable, outcome: Ran, requests: 2},
		{name: "later refused", script: each(fails(CodeUnavailable, 0), refuses(time.Hour)), policy: flat, opts: idempotent, code: CodeResourceExhausted, outcome: MayHaveRun, requests: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, c.script, append(c.client, WithMethod("m", WithRetry(c.policy)))...)
				var info CallInfo
				got := <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), append(c.opts, WithCallInfo(&info))...)
				wantSame(t, "code", CodeOf(got.err), c.code)
				wantSame(t, "outcome", OutcomeOf(got.err), c.outcome)
				sent := r.requests()
				wantSame(t, "requests", len(sent), c.requests)
				wantSame(t, "attempts", info.Attempts, c.requests)
				if got.took < c.took || got.took > c.took+time.Millisecond*time.Duration(c.requests) {
					t.Errorf("took %v, want %v", got.took, c.took)
				}
				ids := make(map[string]bool)
				for i, msg := range sent {
					wantSame(t, "key", keyOf(msg), keyOf(sent[0]))
					wantSame(t, "resent", msg.Headers[wire.HeaderResent] == true, i > 0)
					ids[msg.CorrelationId] = true
				}
				wantSame(t, "correlation ids", len(ids), len(sent))
				stats := r.client.Stats()
				wantSame(t, "calls", stats.OK+stats.Failed, 1)
				wantSame(t, "retried", stats.Retried, uint64(c.requests-1))
			})
		})
	}
}

func TestRetriesWaitLongerAndLonger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		r := startScripted(t, func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
			at = append(at, time.Now())
			send(errorTo(d, Errorf(CodeUnavailable, "no")))
		})
		longest := make([]time.Duration, 5)
		for range 50 {
			at = nil
			<-goCall(r.client, within(t, time.Hour), "m", nil, Idempotent(),
				WithRetry(RetryPolicy{MaxRetries: 5, MinBackoff: time.Second, MaxBackoff: 4 * time.Second}))
			for i := range longest {
				longest[i] = max(longest[i], at[i+1].Sub(at[i]))
			}
			r.client.budget.tokens.Store(r.client.budget.most)
		}
		for i, bound := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 4 * time.Second, 4 * time.Second} {
			if longest[i] > bound+time.Millisecond || longest[i] < bound*7/10 {
				t.Errorf("longest wait before retry %d: %v, want nearly %v", i+1, longest[i], bound)
			}
		}
	})
}

// A call that did not run is made again although it is not idempotent; after it may have run, it is not.
func TestRetryOfACallThatIsNotIdempotent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		policy := WithRetry(RetryPolicy{MaxRetries: 10, MinBackoff: time.Second, MaxBackoff: time.Second})
		c := startClient(t, b, WithCallOptions(policy))
		ready(t, c.WaitReady)
		done := goCall(c, within(t, time.Minute), "m", []byte("x"))
		future := c.Go(within(t, time.Minute), "m", []byte("y"))
		send := goSend(c, within(t, time.Minute), "m", []byte("z"))
		pass(time.Second)
		var runs atomic.Int64
		startServer(t, b, handlers{"m": counted(&runs, echo)})
		wantResponse(t, <-done, "x")
		body, err := future.Wait()
		wantResponse(t, result{response: body, err: err}, "y")
		wantSend(t, <-send, "", Ran)
		settle()
		wantSame(t, "runs", runs.Load(), 3)
		b.Fail(DefaultQueue, brokertest.FaultCutUnconfirmed)
		got := <-goCall(c, within(t, time.Minute), "m", nil)
		wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
		wantIs(t, got.err, ErrOutcomeUnknown)
		settle()
		wantSame(t, "runs", runs.Load(), 4)
	})
}

func TestCallEndsWhileItWaitsForARetry(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(c *Client, cancel func())
		code Code
		is   error
	}{
		{"canceled", func(_ *Client, cancel func()) { cancel() }, CodeCanceled, context.Canceled},
		{"closed", func(c *Client, _ func()) { _ = c.Close(context.Background()) }, CodeUnavailable, ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, fails(CodeUnavailable, 10*time.Second), WithTimeout(time.Hour))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := goCall(r.client, ctx, "m", nil, Idempotent(), WithRetry(RetryPolicy{}))
				pass(5 * time.Second)
				c.end(r.client, cancel)
				got := <-done
				wantSame(t, "code", CodeOf(got.err), c.code)
				wantSame(t, "outcome", OutcomeOf(got.err), Ran)
				wantIs(t, got.err, c.is)
				wantSame(t, "took", got.took, 5*time.Second)
				wantSame(t, "requests", len(r.requests()), 1)
			})
		})
	}
}

func TestRetryPolicyDefaultsAndMistakes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy      RetryPolicy
		first, most time.Duration
		faulty      bool
	}{
		{RetryPolicy{}, DefaultRetryBackoffMin, DefaultRetryBackoffMax, false},
		{RetryPolicy{MinBackoff: time.Hour}, time.Hour, time.Hour, false},
		{RetryPolicy{MaxBackoff: time.Millisecond}, time.Millisecond, time.Millisecond, false},
		{RetryPolicy{MinBackoff: 2, MaxBackoff: 1}, 2, 1, true},
		{RetryPolicy{MinBackoff: -1}, -1, DefaultRetryBackoffMax, true},
		{RetryPolicy{Codes: []Code{CodeCanceled}}, DefaultRetryBackoffMin, DefaultRetryBackoffMax, true},
		{RetryPolicy{Codes: []Code{"busy"}}, DefaultRetryBackoffMin, DefaultRetryBackoffMax, true},
	} {
		full := c.policy.complete()
		wantSame(t, "first", full.MinBackoff, c.first)
		wantSame(t, "most", full.MaxBackoff, c.most)
		wantSame(t, "retries", full.MaxRetries, DefaultMaxRetries)
		wantSame(t, "faulty", full.fault != nil, c.faulty)
		_, err := NewClient(testURL, WithCallOptions(WithRetry(c.policy)), WithTimeout(0)) // the timeout is faulty in any case
		wantSame(t, "named", strings.Contains(err.Error(), "WithCallOptions: WithRetry: "), c.faulty)
	}
	synctest.Test(t, func(t *testing.T) {
		c := startClient(t, brokertest.New())
		for _, o := range []CallOption{WithRetry(RetryPolicy{Codes: []Code{"busy"}}), WithHedge(0)} {
			_, err := c.Call(t.Context(), "m", nil, o)
			wantSend(t, result{err: err}, CodeInvalidArgument, DidNotRun)
			_, err = c.Go(t.Context(), "m", nil, o).Wait()
			wantSend(t, result{err: err}, CodeInvalidArgument, DidNotRun)
			_, err = c.Open(t.Context(), "m", o)
			wantSend(t, result{err: err}, CodeInvalidArgument, DidNotRun)
		}
	})
}

func TestHedge(t *testing.T) {
	t.Parallel()
	idempotent := []CallOption{Idempotent()}
	slow := after(10*time.Second, runs)
	for _, c := range []struct {
		name     string
		script   script
		opts     []CallOption
		client   []ClientOption
		code     Code
		outcome  Outcome
		requests int
		took     time.Duration
	}{
		{name: "fast", script: runs, opts: idempotent, outcome: Ran, requests: 1},
		{name: "slow", script: each(slow, runs), opts: idempotent, outcome: Ran, requests: 2, took: time.Second},
		{name: "both slow", script: slow, opts: idempotent, outcome: Ran, requests: 2, took: 10 * time.Second},
		{name: "not idempotent", script: each(slow, runs), outcome: Ran, requests: 1, took: 10 * time.Second},
		{name: "no budget", script: each(slow, runs), opts: idempotent, client: []ClientOption{WithRetryBudget(0, 0)}, outcome: Ran, requests: 1, took: 10 * time.Second},
		{name: "second fails", script: each(slow, fails(CodeUnavailable, 0)), opts: idempotent, outcome: Ran, requests: 2, took: 10 * time.Second},
		{name: "second fails for good", script: each(slow, fails(CodeNotFound, 0)), opts: idempotent, code: CodeNotFound, outcome: Ran, requests: 2, took: time.Second},
		{name: "first fails", script: each(after(5*time.Second, fails(CodeAborted, 0)), slow), opts: idempotent, outcome: Ran, requests: 2, took: 11 * time.Second},
		{name: "both fail", script: each(after(5*time.Second, fails(CodeAborted, 0)), after(5*time.Second, fails(CodeUnavailable, 0))), opts: idempotent, code: CodeUnavailable, outcome: Ran, requests: 2, took: 6 * time.Second},
		{name: "second refused", script: each(after(5*time.Second, fails(CodeAborted, 0)), after(5*time.Second, refuses(time.Hour))), opts: idempotent, code: CodeResourceExhausted, outcome: MayHaveRun, requests: 2, took: 6 * time.Second},
		{name: "fails before", script: fails(CodeUnavailable, 0), opts: idempotent, code: CodeUnavailable, outcome: Ran, requests: 1},
		{name: "with retries", script: each(fails(CodeUnavailable, 0), slow, runs), opts: append(idempotent, WithRetry(RetryPolicy{MinBackoff: 1, MaxBackoff: 1})), outcome: Ran, requests: 3, took: time.Second},
		{name: "no response", script: silent, opts: idempotent, code: CodeDeadlineExceeded, outcome: MayHaveRun, requests: 2, took: time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, c.script, append(c.client, WithCallOptions(WithHedge(time.Second)))...)
				var info CallInfo
				got := <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), append(c.opts, WithCallInfo(&info))...)
				wantSame(t, "code", CodeOf(got.err), c.code)
				wantSame(t, "outcome", OutcomeOf(got.err), c.outcome)
				wantSame(t, "response", string(got.response), map[bool]string{true: "x"}[c.code == ""])
				sent := r.requests()
				wantSame(t, "requests", len(sent), c.requests)
				wantSame(t, "attempts", info.Attempts, c.requests)
				if got.took < c.took || got.took > c.took+time.Millisecond {
					t.Errorf("took %v, want %v", got.took, c.took)
				}
				for _, msg := range sent {
					wantSame(t, "key", keyOf(msg), keyOf(sent[0]))
				}
				wantSame(t, "pending", r.client.pending.len(), 0)
				pass(time.Minute)
				wantSame(t, "unknown", r.client.Stats().Unknown, 0)
			})
		})
	}
}

// The request that lost is canceled, and the servers know both requests by one key.
func TestHedgeRunsOnceInOneServerAndCancelsInAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs, ended atomic.Int64
		handle := func(ctx context.Context, req *Request) ([]byte, error) {
			if runs.Add(1) == 1 {
				select {
				case <-ctx.Done():
					ended.Add(1)
					return nil, ctx.Err()
				case <-time.After(10 * time.Second):
				}
			}
			return req.Body, nil
		}
		r := startRig(t, handlers{"m": handle}, WithControl(true))
		got := <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), Idempotent(), WithHedge(time.Second))
		wantResponse(t, got, "x")
		wantSame(t, "took", got.took, 10*time.Second)
		settle()
		wantSame(t, "runs in one server", runs.Load(), 1)
		wantSame(t, "replayed", r.server.Stats().Replayed, 1)
		wantSame(t, "hedged", r.client.Stats().Hedged, 1)
		runs.Store(0)
		startServer(t, r.broker, handlers{"m": handle}, WithControl(true))
		pass(time.Second)
		got = <-goCall(r.client, within(t, time.Minute), "m", []byte("y"), Idempotent(), WithHedge(time.Second))
		wantResponse(t, got, "y")
		wantSame(t, "took", got.took, time.Second)
		pass(time.Second)
		wantSame(t, "runs in two servers", runs.Load(), 2)
		wantSame(t, "canceled handlers", ended.Load(), 1)
	})
}

// A method that runs at most once does so although its calls are hedged.
func TestHedgeOfAMethodThatRunsAtMostOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		var runs atomic.Int64
		for range 2 {
			ready(t, startServer(t, b, handlers{onceMethod: counted(&runs, slow)}).WaitReady)
		}
		c := startClient(t, b)
		ready(t, c.WaitReady)
		wantResponse(t, <-goCall(c, within(t, time.Minute), onceMethod, []byte("x"), Idempotent(), WithHedge(time.Millisecond)), "x")
		wantSame(t, "runs", runs.Load(), 1)
		wantSame(t, "hedged", c.Stats().Hedged, 1)
	})
}

func TestHedgeOfAMethodAndOfAFuture(t *testing.T) {
	t.Parallel()
	double := NewMethod[int, int]("double", JSON(), Idempotent(), WithHedge(time.Second))
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		var runs atomic.Int64
		slowOnce := double.Handler(func(_ context.Context, n int) (int, error) {
			if runs.Add(1) == 1 {
				<-time.After(5 * time.Second)
			}
			return 2 * n, nil
		})
		for range 2 {
			ready(t, startServer(t, b, handlers{"double": slowOnce}).WaitReady)
		}
		c := startClient(t, b)
		ready(t, c.WaitReady)
		n, err := double.Call(within(t, time.Minute), c, 21)
		if n != 42 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		wantSame(t, "hedged", c.Stats().Hedged, 1)
		runs.Store(0)
		begun := time.Now()
		body, err := c.Go(within(t, time.Minute), "double", []byte("4"), Idempotent(), WithHedge(time.Second)).Wait()
		wantResponse(t, result{response: body, err: err}, "8")
		wantSame(t, "took", time.Since(begun), time.Second)
		b.HoldConfirms()
		sent := goSend(c, within(t, time.Minute), "double", []byte("1"), Idempotent(), WithHedge(time.Second))
		pass(5 * time.Second)
		b.ReleaseConfirms()
		wantSend(t, <-sent, "", Ran)
		wantSame(t, "hedged", c.Stats().Hedged, 2) // no one-way request
	})
}

func TestCloseEndsHedgedCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, silent)
		done := goCall(r.client, within(t, time.Minute), "m", nil, Idempotent(), WithHedge(time.Second))
		pass(2 * time.Second)
		if err := r.client.Close(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
		got := <-done
		wantIs(t, got.err, ErrClosed)
		wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
		wantSame(t, "requests", len(r.requests()), 2)
		ids := []string{r.requests()[0].CorrelationId, r.requests()[1].CorrelationId}
		wantSame(t, "different ids", len(slices.Compact(ids)), 2)
	})
}
