package amqpx

import "time"

// refusedRows are the rows of calls that are refused because there is too much to do.
func refusedRows() []settleCase {
	nacks := func(n int) func(*rig) {
		return func(r *rig) {
			all := make([]fault, n)
			for i := range all {
				all[i] = faultNack
			}
			r.broker.fail(DefaultQueue, all...)
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
	const hint = 2 * time.Second
	return []settleCase{
		{row: "broker refused it, then took it", arrange: nacks(3), answer: "body", runs: 1},
		{
			row: "broker refused it until the deadline", arrange: nacks(1000), timeout: 10 * time.Second,
			code: CodeResourceExhausted, is: []error{ErrRefused}, outcome: DidNotRun,
			takes: 9 * time.Second, // the next wait would have passed the deadline
		},
		{
			row: "broker refused it, retry budget is empty", arrange: client(nacks(1), WithRetryBudget(0, 0)),
			code: CodeResourceExhausted, is: []error{ErrRefused}, outcome: DidNotRun, text: `queue "rpc_queue"`,
		},
		{
			row: "server refused it, then ran it", arrange: instead(each(refuses(hint), refuses(hint), runs)),
			answer: "body", takes: 2 * hint,
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
