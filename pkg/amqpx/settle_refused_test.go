package amqpx

import (
	"context"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// refusedRows returns the rows of calls refused because of overload.
func refusedRows() []settleCase {
	nacks := func(n int) func(*rig) {
		return func(r *rig) {
			all := make([]brokertest.Fault, n)
			for i := range all {
				all[i] = brokertest.FaultNack
			}
			r.broker.Fail(DefaultQueue, all...)
		}
	}
	// instead replaces the rig's server.
	instead := func(s script) func(*rig) {
		return func(r *rig) {
			r.server.stop()
			_ = r.server.wait(r.t)
			startScript(r.t, r.broker, s)
		}
	}
	client := func(arrange func(*rig), opts ...ClientOption) func(*rig) {
		return func(r *rig) {
			arrange(r)
			r.client = startClient(r.t, r.broker, opts...)
			ready(r.t, r.client.WaitReady)
		}
	}
	// full stops the server and fills the queue to its bound.
	full := func(r *rig) {
		r.server.stop()
		_ = r.server.wait(r.t)
		r.broker.With(func(b *brokertest.Broker) { b.Queues[DefaultQueue].MaxLength = 1 })
		putRequest(r.broker, request("m"))
	}
	idempotent := []CallOption{Idempotent()}
	const hint = 2 * time.Second
	return []settleCase{
		{
			row: "nacked", arrange: nacks(1),
			code: CodeUnavailable, is: []error{ErrQueueUnavailable}, outcome: MayHaveRun, text: `queue "rpc_queue"`,
		},
		{
			row: "nacked, waits for a server", arrange: nacks(1), opts: []CallOption{WaitForServer()},
			code: CodeUnavailable, is: []error{ErrQueueUnavailable}, outcome: MayHaveRun,
		},
		{
			row: "nacked, idempotent", arrange: client(nacks(3), WithRetryBudget(0, 0)), opts: idempotent,
			response: "body", runs: 1,
		},
		{
			row: "nacked until the deadline, idempotent", arrange: nacks(1000), timeout: 10 * time.Second, opts: idempotent,
			code: CodeUnavailable, is: []error{ErrQueueUnavailable, context.DeadlineExceeded}, outcome: MayHaveRun,
			takes: 10 * time.Second,
		},
		{
			row: "nacked, and answered all the same", arrange: func(r *rig) { r.broker.Fail(DefaultQueue, brokertest.FaultNackArrived) },
			response: "body", runs: 1,
		},
		{
			row: "queue is full", arrange: full,
			code: CodeResourceExhausted, is: []error{ErrRefused}, outcome: MayHaveRun, text: `queue "rpc_queue"`,
		},
		{
			row: "queue is full, idempotent", arrange: full, opts: idempotent,
			during: func(r *rig, _ context.CancelFunc) {
				pass(20 * time.Second)
				r.broker.With(func(b *brokertest.Broker) { b.Queues[DefaultQueue].Messages = nil })
				startServer(r.t, r.broker, handlers{"m": echo})
			},
			response: "body", takes: 20 * time.Second,
		},
		{
			row: "queue is full until the deadline, idempotent", arrange: full, timeout: 10 * time.Second, opts: idempotent,
			code: CodeResourceExhausted, is: []error{ErrRefused}, outcome: MayHaveRun,
			takes: 9 * time.Second, // the next wait would have passed the deadline
		},
		{
			row: "queue is full, retry budget is empty, idempotent", arrange: client(full, WithRetryBudget(0, 0)), opts: idempotent,
			code: CodeResourceExhausted, is: []error{ErrRefused}, outcome: MayHaveRun, text: `queue "rpc_queue"`,
		},
		{
			row: "server refused it, then ran it", arrange: instead(each(refuses(hint), refuses(hint), runs)),
			response: "body", takes: 2 * hint,
		},
		{
			row: "server refused it until the deadline", arrange: instead(refuses(hint)), timeout: 9 * time.Second,
			code: CodeResourceExhausted, outcome: DidNotRun, remote: true, text: "busy", takes: 4 * hint,
		},
		{
			row: "server refused it, retry budget is empty", arrange: client(instead(refuses(0)), WithRetryBudget(0, 0)),
			code: CodeResourceExhausted, outcome: DidNotRun, remote: true, text: "busy",
		},
		{
			row: "too many calls in flight", handler: slow,
			arrange: func(r *rig) {
				client(func(*rig) {}, WithMaxInFlight(1))(r)
				goCall(r.client, within(r.t, time.Minute), "m", nil)
				settle()
			},
			code: CodeResourceExhausted, is: []error{ErrTooManyCalls}, outcome: DidNotRun,
			text: "at most 1, of 268435456 bytes together", pending: 1, runs: 1,
		},
	}
}
