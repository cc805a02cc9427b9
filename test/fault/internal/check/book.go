package check

import (
	"slices"
	"time"

	"rabbitmq-rpc/test/fault/internal/ledger"
)

// call combines all ledger entries of one call.
type call struct {
	node, method, sum     string
	shape                 string // "": a plain call
	idempotent            bool
	made, deadline, ended time.Time
	starts, ends          int

	code, outcome, response, text string
	attempts                      int

	// runs counts the executions, fresh the executions whose delivery was not marked as
	// redelivered.
	runs, fresh int
	// processes counts the executions of a call to all servers by process; servers are the processes
	// whose responses the caller got.
	processes map[int]int
	servers   []int
	// key is the idempotency key of a call that shares it; server is the id of the server that
	// responded to the call.
	key, server string
}

type span struct{ from, until time.Time }

// Book collects the entries of a run, in any order. The zero value is ready to use.
type Book struct {
	calls   map[string]*call
	streams map[string]*stream
	keys    map[string]*key
	paused  map[string][]span
	killed  map[string]time.Time
	left    map[string]bool
	dead    map[int]time.Time // by process
	// outages are the times without a broker.
	outages []span
	// quiet is the end of the last fault.
	quiet time.Time
}

// Add adds an entry.
func (b *Book) Add(e ledger.Entry) {
	switch e.Kind {
	case ledger.Start:
		c := b.call(e.ID)
		c.starts++
		c.node, c.method, c.sum, c.idempotent, c.shape = e.Node, e.Method, e.Sum, e.Idempotent, e.Shape
		c.made, c.deadline, c.key = e.At, e.Deadline, e.Key
	case ledger.End:
		c := b.call(e.ID)
		c.ends++
		c.ended, c.code, c.outcome, c.response = e.At, e.Code, e.Outcome, e.Sum
		c.attempts, c.text, c.servers, c.server = e.Attempts, e.Text, e.Servers, e.Server
	case ledger.Run:
		c := b.call(e.ID)
		c.runs++
		if !e.Redelivered {
			c.fresh++
		}
		if e.Method == ledger.Everywhere {
			if c.processes == nil {
				c.processes = make(map[int]int)
			}
			c.processes[e.PID]++
		}
		if e.Key != "" {
			b.key(e.Key).starts++
		}
	case ledger.Paused:
		if b.paused == nil {
			b.paused = make(map[string][]span)
		}
		b.paused[e.Node] = append(b.paused[e.Node], span{e.At, e.Until})
	case ledger.Killed:
		if b.killed == nil {
			b.killed = make(map[string]time.Time)
		}
		b.killed[e.Node] = e.At
	case ledger.Left:
		if b.left == nil {
			b.left = make(map[string]bool)
		}
		b.left[e.Node] = true
	case ledger.Outage:
		b.outages = append(b.outages, span{e.At, e.Until})
	case ledger.Fault:
		if e.Until.After(b.quiet) {
			b.quiet = e.Until
		}
	case ledger.Done, ledger.Dead:
		b.addExecution(e)
	case ledger.StreamStart, ledger.StreamEnd, ledger.StreamRun, ledger.StreamDone:
		b.addStream(e)
	case ledger.Status:
	}
}

func (b *Book) call(id string) *call {
	if b.calls == nil {
		b.calls = make(map[string]*call)
	}
	c := b.calls[id]
	if c == nil {
		c = new(call)
		b.calls[id] = c
	}
	return c
}

// latest returns the latest permitted end of a call or stream of a client: bound after its
// deadline, or bound after a pause of the client during this time.
func (b *Book) latest(node string, deadline time.Time, bound time.Duration) time.Time {
	at := deadline.Add(bound)
	pauses := b.paused[node]
	slices.SortFunc(pauses, func(x, y span) int { return x.from.Compare(y.from) })
	for _, p := range pauses {
		if awake := p.until.Add(bound); !p.from.After(at) && awake.After(at) {
			at = awake
		}
	}
	return at
}

// comeback is the time a call needs before its deadline after the broker's return: within this
// time clients are served again, at the 99th percentile.
const comeback = 3 * time.Second

// cutOff reports whether the broker was away at the call's deadline, or returned less than
// comeback before the deadline.
func (b *Book) cutOff(c *call) bool {
	return slices.ContainsFunc(b.outages, func(o span) bool {
		return o.from.Before(c.deadline) && o.until.Add(comeback).After(c.deadline)
	})
}

// standing returns the pauses of the client's process during the call.
func (b *Book) standing(c *call) time.Duration {
	var sum time.Duration
	for _, p := range b.paused[c.node] {
		from, until := p.from, p.until
		if c.made.After(from) {
			from = c.made
		}
		if c.ended.Before(until) {
			until = c.ended
		}
		sum += max(until.Sub(from), 0)
	}
	return sum
}
