package amqpx

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// settleCase is one row of the table of results of calls.
type settleCase struct {
	row     string
	handler Handler
	opts    []CallOption
	// arrange prepares the rig; during runs while the call is in progress.
	arrange func(r *rig)
	during  func(r *rig, cancel context.CancelFunc)
	timeout time.Duration // 1 minute when zero

	response string // the wanted response if code is empty
	code     Code
	is       []error
	outcome  Outcome
	remote   bool
	text     string // part of the error's text
	runs     int64
	pending  uint64        // other calls still in progress
	takes    time.Duration // the least duration of the call; it takes less than a second more
}

func TestEveryCallSettles(t *testing.T) {
	t.Parallel()
	for _, c := range settleCases() {
		t.Run(c.row, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, c.run)
		})
	}
}

func (c settleCase) run(t *testing.T) {
	var runs atomic.Int64
	h := c.handler
	if h == nil {
		h = echo
	}
	r := startRig(t, handlers{"m": counted(&runs, h)})
	if c.arrange != nil {
		c.arrange(r)
	}
	timeout := c.timeout
	if timeout == 0 {
		timeout = time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	method := "m"
	if c.code == CodeUnimplemented {
		method = "nobody knows"
	}
	done := goCall(r.client, ctx, method, []byte("body"), c.opts...)
	if c.during != nil {
		settle()
		c.during(r, cancel)
	}
	c.check(t, <-done)
	settle()
	wantSame(t, "executions", runs.Load(), c.runs)
	wantSame(t, "calls still pending", r.client.Stats().InFlight, c.pending)
}

func (c settleCase) check(t *testing.T, got result) {
	t.Helper()
	if got.took < c.takes || got.took >= c.takes+time.Second {
		t.Errorf("took %v, want about %v", got.took, c.takes)
	}
	if c.code == "" {
		wantResponse(t, got, c.response)
		return
	}
	var e *Error
	if !errors.As(got.err, &e) {
		t.Fatalf("error %v is no *Error", got.err)
	}
	wantSame(t, "code", e.Code(), c.code)
	wantSame(t, "outcome", e.Outcome(), c.outcome)
	wantSame(t, "remote", e.Remote(), c.remote)
	wantIs(t, got.err, c.is...)
	if !strings.Contains(e.Error(), c.text) || strings.Contains(e.Error(), testPassword) {
		t.Errorf("text %q: want %q in it and no password", e.Error(), c.text)
	}
	if hint := e.RetryAfter(); (hint > 0) != (c.code == CodeResourceExhausted) {
		t.Errorf("hint of %v to try again", hint)
	}
	if got.response != nil {
		t.Errorf("answer %q beside an error", got.response)
	}
}

func settleCases() []settleCase {
	var all []settleCase
	all = append(all, handlerRows()...)
	all = append(all, brokerRows()...)
	all = append(all, refusedRows()...)
	all = append(all, lossBeforeConfirmRows()...)
	all = append(all, lossAfterConfirmRows()...)
	return append(all, callerRows()...)
}

func handlerRows() []settleCase {
	fails := func(err error) Handler {
		return func(context.Context, *Request) ([]byte, error) { return []byte("ignored"), err }
	}
	return []settleCase{
		{row: "handler returned a response", response: "body", runs: 1},
		{
			row: "handler returned a coded error", handler: fails(Errorf(CodeNotFound, "no such thing")),
			code: CodeNotFound, outcome: Ran, remote: true, text: "not_found: no such thing", runs: 1,
		},
		{
			row: "handler returned a coded error without text", handler: fails(Errorf(CodeAborted, "")),
			code: CodeAborted, outcome: Ran, remote: true, runs: 1,
		},
		{
			row: "handler returned any other error", handler: fails(errors.New("token " + testPassword)),
			code: CodeInternal, outcome: Ran, remote: true, text: "internal error", runs: 1,
		},
		{
			row:     "handler panicked",
			handler: func(context.Context, *Request) ([]byte, error) { panic(testPassword) },
			code:    CodeInternal, outcome: Ran, remote: true, text: "internal error", runs: 1,
		},
		{
			row: "handler ran into the deadline", handler: fails(context.DeadlineExceeded),
			code: CodeDeadlineExceeded, outcome: Ran, remote: true, runs: 1,
		},
		{row: "unknown function", code: CodeUnimplemented, outcome: DidNotRun, remote: true, text: "nobody knows"},
	}
}

func brokerRows() []settleCase {
	dropQueue := func(r *rig) {
		r.server.stop()
		_ = r.server.wait(r.t)
		r.broker.With(func(b *brokertest.Broker) { b.Remove(b.Queues[DefaultQueue]) })
	}
	return []settleCase{
		{
			row: "no queue to route to", arrange: dropQueue,
			code: CodeUnavailable, is: []error{ErrUnroutable}, outcome: DidNotRun, text: `no queue "rpc_queue"`,
		},
		{
			row: "no queue to route to, waits for a server", arrange: dropQueue, opts: []CallOption{WaitForServer()},
			during: func(r *rig, _ context.CancelFunc) {
				pass(10 * time.Second)
				startServer(r.t, r.broker, handlers{"m": echo})
			},
			response: "body", takes: 10 * time.Second,
		},
		{
			row: "no queue to route to, waits until the deadline", arrange: dropQueue, opts: []CallOption{WaitForServer()},
			code: CodeUnavailable, is: []error{ErrUnroutable, context.DeadlineExceeded}, outcome: DidNotRun,
			takes: time.Minute,
		},
		{
			row: "connection blocked by an alarm", timeout: 5 * time.Second,
			arrange: func(r *rig) {
				_, _ = r.client.Call(r.t.Context(), "other", nil) // the broker notifies only connections that have published
				r.broker.SetAlarm("low on memory")
				settle()
			},
			code: CodeDeadlineExceeded, is: []error{ErrBlocked, context.DeadlineExceeded}, outcome: DidNotRun,
			text: "low on memory", takes: 5 * time.Second,
		},
		{
			// The broker notifies a connection of an alarm only when the connection publishes.
			row: "connection blocked by an alarm that the call itself finds", timeout: 5 * time.Second,
			arrange: func(r *rig) { r.broker.SetAlarm("low on memory") },
			code:    CodeDeadlineExceeded, is: []error{ErrBlocked, context.DeadlineExceeded}, outcome: MayHaveRun,
			text: "low on memory", takes: 5 * time.Second,
		},
		{
			row:     "connection blocked by an alarm that ends",
			arrange: func(r *rig) { r.broker.SetAlarm("low on disk") },
			during: func(r *rig, _ context.CancelFunc) {
				pass(20 * time.Second)
				r.broker.SetAlarm("")
			},
			response: "body", runs: 1, takes: 20 * time.Second,
		},
	}
}

func lossBeforeConfirmRows() []settleCase {
	on := func(f brokertest.Fault) func(*rig) { return func(r *rig) { r.broker.Fail(DefaultQueue, f) } }
	// The handlers are slow because a fast response might arrive before the client notices the
	// loss of the connection.
	row := func(name string, f brokertest.Fault, runs int64) settleCase {
		return settleCase{
			row: name, arrange: on(f), runs: runs, handler: slow,
			code: CodeUnavailable, is: []error{ErrOutcomeUnknown}, outcome: MayHaveRun,
		}
	}
	idempotent := func(name string, f brokertest.Fault) settleCase {
		return settleCase{
			row: name + ", idempotent", arrange: on(f), runs: 1, handler: slow, opts: []CallOption{Idempotent()},
			response: "body", takes: 2 * time.Second,
		}
	}
	return []settleCase{
		{row: "link lost before the request was written", arrange: on(brokertest.FaultUnsent), response: "body", runs: 1},
		row("link lost in the write, request did not arrive", brokertest.FaultCutBefore, 0),
		row("link lost in the write, request arrived", brokertest.FaultCutWritten, 1),
		row("link lost before the broker confirmed, request did not arrive", brokertest.FaultLostUnconfirmed, 0),
		row("link lost before the broker confirmed, request arrived", brokertest.FaultCutUnconfirmed, 1),
		idempotent("link lost in the write, request did not arrive", brokertest.FaultCutBefore),
		idempotent("link lost in the write, request arrived", brokertest.FaultCutWritten),
		idempotent("link lost before the broker confirmed, request did not arrive", brokertest.FaultLostUnconfirmed),
		idempotent("link lost before the broker confirmed, request arrived", brokertest.FaultCutUnconfirmed),
	}
}

// slow is a handler that takes two seconds.
func slow(ctx context.Context, req *Request) ([]byte, error) {
	xsync.Sleep(ctx, 2*time.Second)
	return req.Body, nil
}

func lossAfterConfirmRows() []settleCase {
	return []settleCase{
		{
			row: "link lost after the confirm", handler: slow,
			arrange:  func(r *rig) { r.broker.Fail(DefaultQueue, brokertest.FaultCutConfirmed) },
			response: "body", runs: 1, takes: 2 * time.Second,
		},
		{
			row: "link lost after the confirm, idempotent", handler: slow, opts: []CallOption{Idempotent()},
			during: func(r *rig, _ context.CancelFunc) { r.cutClient() },
			// The client sends the request again, as the broker may have lost the message. The
			// server recognises the duplicate.
			response: "body", runs: 1, takes: 2 * time.Second,
		},
		{
			row: "link lost after the confirm, reply queue is gone", handler: slow, timeout: 20 * time.Second,
			during: func(r *rig, _ context.CancelFunc) { r.cutClient(); r.dropReplyQueue() },
			code:   CodeUnavailable, is: []error{ErrOutcomeUnknown}, outcome: MayHaveRun, runs: 1,
		},
		{
			row: "link lost after the confirm, reply queue is gone, idempotent", handler: slow, opts: []CallOption{Idempotent()},
			during:   func(r *rig, _ context.CancelFunc) { r.cutClient(); r.dropReplyQueue() },
			response: "body", runs: 1, takes: 2 * time.Second,
		},
		{
			row: "reply queue deleted under its consumer", handler: slow, timeout: 20 * time.Second,
			during: func(r *rig, _ context.CancelFunc) { r.dropReplyQueue() },
			code:   CodeUnavailable, is: []error{ErrOutcomeUnknown}, outcome: MayHaveRun, runs: 1,
		},
		{
			row: "reply queue deleted under its consumer, idempotent", handler: slow, opts: []CallOption{Idempotent()},
			during:   func(r *rig, _ context.CancelFunc) { r.dropReplyQueue() },
			response: "body", runs: 1, takes: 2 * time.Second,
		},
		{
			row: "reply queue is gone, and the first attempt that finds it so fails", handler: slow, timeout: 20 * time.Second,
			during: func(r *rig, _ context.CancelFunc) {
				r.failConsume()
				r.dropReplyQueue()
			},
			code: CodeUnavailable, is: []error{ErrOutcomeUnknown}, outcome: MayHaveRun, runs: 1,
		},
	}
}

func callerRows() []settleCase {
	return []settleCase{
		{
			row: "context deadline", timeout: 3 * time.Second, handler: untilDone,
			during: func(r *rig, _ context.CancelFunc) { r.broker.Fail(brokertest.RouteReplies, brokertest.FaultSwallow) },
			code:   CodeDeadlineExceeded, is: []error{context.DeadlineExceeded}, outcome: MayHaveRun, runs: 1,
			takes: 3 * time.Second,
		},
		{
			row: "context cancelled", handler: slow,
			during: func(_ *rig, cancel context.CancelFunc) { cancel() },
			code:   CodeCanceled, is: []error{context.Canceled}, outcome: MayHaveRun, runs: 1,
		},
		{
			row: "client closed", handler: slow,
			during: func(r *rig, _ context.CancelFunc) { _ = r.client.Close(r.t.Context()) },
			code:   CodeUnavailable, is: []error{ErrClosed}, outcome: MayHaveRun, runs: 1,
		},
		{
			row:     "client was closed before the call",
			arrange: func(r *rig) { _ = r.client.Close(r.t.Context()) },
			code:    CodeUnavailable, is: []error{ErrClosed}, outcome: DidNotRun,
		},
		{
			row: "request too large", opts: []CallOption{WithIdempotencyKey(strings.Repeat("k", 256))},
			code: CodeInvalidArgument, outcome: DidNotRun, text: "idempotency key of 256 bytes",
		},
	}
}

// cutClient breaks the client's connections, and leaves the server's connections open.
func (r *rig) cutClient() {
	r.broker.With(func(b *brokertest.Broker) {
		for _, l := range append([]*brokertest.Conn(nil), b.Links...) {
			if strings.Contains(l.Name, "client") {
				l.End(brokertest.BrokenSocket())
			}
		}
	})
}

// dropReplyQueue deletes the client's reply queue.
func (r *rig) dropReplyQueue() {
	r.broker.With(func(b *brokertest.Broker) { b.Remove(b.Queues[r.client.route.replyTo]) })
}

// failConsume makes the next basic.consume fail like a broken connection.
func (r *rig) failConsume() {
	var failed atomic.Bool
	r.broker.With(func(b *brokertest.Broker) {
		b.OnCall = func(op, _ string) error {
			if op == "consume" && !failed.Swap(true) {
				return brokertest.ErrCut
			}
			return nil
		}
	})
}
