//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestEveryCallInABatchHasAnOutcomeOfItsOwn: each call in a batch ends as it would end alone.
// Calls 8 and 9 cannot wait for the slow call 6, so their refusals do not claim "did not run".
func TestEveryCallInABatchHasAnOutcomeOfItsOwn(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{
		"echo": echo,
		"coded": func(context.Context, *amqpx.Request) ([]byte, error) {
			return nil, amqpx.Errorf(amqpx.CodeNotFound, "no user")
		},
		"uncoded": func(context.Context, *amqpx.Request) ([]byte, error) { return nil, errors.New("a secret") },
		"panic":   func(context.Context, *amqpx.Request) ([]byte, error) { panic("a secret") },
		"wait": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	timeout := func(ms uint64) rig.Field { return rig.Field{Number: rig.CallTimeout, Value: ms} }
	idempotent := rig.Field{Number: rig.CallIdempotent, Value: uint64(1)}
	all := []struct {
		record          []byte
		id              string
		code, ran, text string // text is a part of the body
	}{
		{rig.RawCall("1", "echo", "body", timeout(60_000)), "1", "", "", "body"},
		{rig.RawCall("2", "echo", ""), "2", "", "", ""},
		{rig.RawCall("3", "coded", "x"), "3", "not_found", "yes", "no user"},
		{rig.RawCall("4", "uncoded", "x"), "4", "internal", "yes", "internal error"},
		{rig.RawCall("5", "panic", "x"), "5", "internal", "yes", "internal error"},
		{rig.RawCall("6", "wait", "x", timeout(2000)), "6", "deadline_exceeded", "yes", "time"},
		{rig.RawCall("7", "unknown", "x"), "7", "unimplemented", "no", "unknown"},
		{rig.RawCall("8", "unknown", "x", idempotent), "8", "unimplemented", "", "unknown"},
		{rig.RawCall("9", "echo", "x", timeout(0)), "9", "deadline_exceeded", "", "0 ms"},
		{rig.RawCall("10", "", "x"), "10", "invalid_argument", "no", "method"},
		{rig.RawCall("11", strings.Repeat("m", 256), "x"), "11", "invalid_argument", "no", "method"},
		{rig.RawCall("12", "\xff", "x"), "12", "unimplemented", "no", "unknown"},
		{rig.RawCall("13", "echo", "x", rig.Field{Number: rig.CallHeader, Value: "\x0a\xff"}), "13", "invalid_argument", "no", "header"},
		{rig.RawCall("14", "echo", "later", rig.Field{Number: 500, Value: uint64(1)}), "14", "", "", "later"},
	}
	inbox := r.Inbox()
	var records [][]byte
	var ids []string
	for _, c := range all {
		records, ids = append(records, c.record), append(ids, c.id)
	}
	r.SendBatch(inbox.Name, records...)
	got := inbox.ResponsesTo(ids...)
	for _, c := range all {
		if a := got[c.id]; a.Code != c.code || a.Ran != c.ran || !strings.Contains(a.Body, c.text) || strings.Contains(a.Body, "secret") {
			t.Errorf("call %q got %+v, want code %q, ran %q, %q", c.id, a, c.code, c.ran, c.text)
		}
	}
	if len(got) != len(all) || inbox.Repeated != 0 {
		t.Errorf("%d answers to %d calls, %d more than once", len(got), len(all), inbox.Repeated)
	}
	if st := server.Stats(); st.Requests != uint64(len(all)) || st.OK != 3 || st.Failed != 4 || st.Panics != 1 || st.Refused != 7 {
		t.Errorf("server counted %+v", st)
	}
	laneServes(t, r, server)
}

// laneServes checks for working batches and for no unacknowledged message. It drains the only
// server.
func laneServes(t *testing.T, r *rig.Rig, server *rig.Server) {
	t.Helper()
	inbox := r.Inbox()
	r.SendBatch(inbox.Name, rig.RawCall("after", "echo", "x"), rig.RawCall("all", "echo", "y"))
	if got := inbox.ResponsesTo("after", "all"); got["after"].Body != "x" || got["all"].Body != "y" || inbox.Repeated != 0 {
		t.Errorf("got %+v, %d of them more than once", got, inbox.Repeated)
	}
	rig.Eventually(t, "nothing is in flight", func() bool { return server.Stats().InFlight == 0 })
	if n := server.Stats().Reconnects; n != 0 {
		t.Errorf("server counted %d reconnects", n)
	}
	nothingHeld(t, r, server)
}

// TestFastCallsInABatchAreNotHeldBack: a "did not run" refusal is sent after the other calls
// of its batch, because until then the broker could redeliver the batch. Executed calls are
// answered as soon as they are done.
func TestFastCallsInABatchAreNotHeldBack(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	slow := hold()
	server := r.Serve(rig.Methods{"echo": echo, "slow": slow.handle})
	inbox := r.Inbox()
	r.SendBatch(inbox.Name, rig.RawCall("slow", "slow", "x"), rig.RawCall("unknown", "unknown", ""), rig.RawCall("fast", "echo", "y"))
	if got := inbox.ResponsesTo("fast"); got["fast"].Body != "y" || len(got) != 1 {
		t.Errorf("got %+v, want the fast one only", got)
	}
	rig.Recv(t, slow.entered, "the slow one")
	close(slow.release)
	if got := inbox.ResponsesTo("slow", "unknown"); got["slow"].Body != "x" || got["unknown"].Ran != "no" {
		t.Errorf("got %+v", got)
	}
	laneServes(t, r, server)
}

// TestOneWayBatch: all calls of a batch without reply_to are one-way.
func TestOneWayBatch(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	note := hold()
	close(note.release)
	server := r.Serve(rig.Methods{"echo": echo, "note": note.handle})
	r.SendBatch("", rig.RawCall("", "note", "a"), rig.RawCall("1", "note", "b"), rig.RawCall("", "unknown", ""), rig.RawCall("", "", ""))
	got := map[string]bool{}
	for range 2 {
		req := rig.Recv(t, note.entered, "the handler")
		got[string(req.Body)] = req.OneWay
	}
	if !got["a"] || !got["b"] {
		t.Errorf("handlers got %v, want two one-way calls", got)
	}
	rig.Eventually(t, "all are settled", func() bool { return server.Stats().InFlight == 0 })
	if st := server.Stats(); st.OK != 2 || st.Refused != 2 {
		t.Errorf("server counted %+v", st)
	}
	laneServes(t, r, server)
}

// TestCallersInABatchGiveUpAlone: deadlines and contexts belong to the single calls of a
// batch.
func TestCallersInABatchGiveUpAlone(t *testing.T) {
	t.Parallel()
	for range 10 {
		if giveUpAlone(t) {
			return
		}
	}
	t.Error("the calls never travelled together")
}

// giveUpAlone returns false if a call came too late for the batch.
func giveUpAlone(t *testing.T) bool {
	t.Helper()
	r := rig.New(t)
	slow := hold()
	b := newBatcher(t, r)
	server := r.Serve(b.methods(rig.Methods{"slow": slow.handle}), amqpx.WithWorkers(16))
	openLane(t, b.Client)
	var cancel context.CancelFunc
	before := b.Stats().Batched
	// Only calls with similar remaining time share a batch.
	const n, long, short = 6, 5 * time.Second, 4700 * time.Millisecond
	calls := b.together(n, func(i int) <-chan outcome {
		switch i {
		case 0:
			var ctx context.Context
			ctx, cancel = context.WithCancel(rig.Within(t, long))
			return begin(ctx, b.Client, "slow", nil)
		case 1:
			return begin(rig.Within(t, short), b.Client, "slow", nil)
		default:
			return begin(rig.Within(t, long), b.Client, "echo", fmt.Append(nil, i))
		}
	})
	defer cancel()
	if b.Stats().Batched != before+n {
		close(slow.release)
		return false
	}
	for i, c := range calls[2:] {
		if got := rig.Recv(t, c, "a response"); got.err != nil || string(got.response) != fmt.Sprint(i+2) {
			t.Errorf("call %d: got %q, %v", i+2, got.response, got.err)
		}
	}
	for range 2 {
		req := rig.Recv(t, slow.entered, "the slow ones")
		if req.OneWay {
			t.Error("a one-way call")
		}
	}
	cancel()
	want{code: amqpx.CodeCanceled, outcome: amqpx.MayHaveRun, is: []error{context.Canceled}}.
		check(t, rig.Recv(t, calls[0], "the call to end").err)
	want{code: amqpx.CodeDeadlineExceeded, outcome: amqpx.MayHaveRun, is: []error{context.DeadlineExceeded}}.
		check(t, rig.Recv(t, calls[1], "the call to end").err)
	rig.Eventually(t, "the server learns of the one that was cancelled", func() bool { return server.Stats().Canceled == 1 })
	close(slow.release)
	rig.Eventually(t, "the late responses are counted", func() bool { return b.Stats().Late == 2 })
	laneServes(t, r, server)
	return true
}

// TestCallThatLeavesItsBatchDidNotRun: a call canceled before its batch is sent never runs,
// and the other calls of the batch do.
func TestCallThatLeavesItsBatchDidNotRun(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	run := hold()
	close(run.release)
	b := newBatcher(t, r)
	server := r.Serve(b.methods(rig.Methods{"run": run.handle}))
	openLane(t, b.Client)
	ctx, cancel := context.WithCancel(rig.Patience(t))
	const n = 9
	var gone <-chan outcome
	calls := b.together(n, func(i int) <-chan outcome {
		if i > 0 {
			return begin(rig.Patience(t), b.Client, "run", fmt.Append(nil, i))
		}
		gone = begin(ctx, b.Client, "run", fmt.Append(nil, i))
		rig.Eventually(t, "the call waits", func() bool { return b.Stats().InFlight == 3 })
		cancel()
		return begin(rig.Patience(t), b.Client, "run", fmt.Append(nil, i))
	})
	want{code: amqpx.CodeCanceled, outcome: amqpx.DidNotRun, is: []error{context.Canceled}}.
		check(t, rig.Recv(t, gone, "the call to end").err)
	for i, c := range calls {
		if got := rig.Recv(t, c, "a response"); got.err != nil || string(got.response) != fmt.Sprint(i) {
			t.Errorf("call %d: got %q, %v", i, got.response, got.err)
		}
	}
	if got := len(run.entered); got != n {
		t.Errorf("%d calls ran, want %d", got, n)
	}
	laneServes(t, r, server)
}
