package check

import (
	"maps"
	"slices"
	"strings"
	"time"

	"rabbitmq-rpc/test/fault/internal/ledger"
)

// invalidArgument is the code of a call that the library refuses because of its arguments.
const invalidArgument = "invalid_argument"

// Outcomes in the library's words.
const (
	didNotRun = "did not run"
	ran       = "ran"
)

// blocked is the part of the library's error text for an alarm.
const blocked = "blocks publishing"

// Check judges the collected entries.
func (b *Book) Check(rules Rules) Result {
	if rules.Bound == 0 {
		rules.Bound = DefaultBound
	}
	r := Result{Errors: make(map[string]int), Broken: make(map[Rule]int), Shapes: make(map[string]*Shape)}
	recovered := make(map[string]bool) // by client
	for _, id := range slices.Sorted(maps.Keys(b.calls)) {
		c := b.calls[id]
		if c.starts == 0 {
			r.violate(NeverMade, id, "%d settled, %d ran", c.ends, c.runs)
			continue
		}
		if c.starts > 1 {
			r.violate(NotUnique, id, "%d calls", c.starts)
		}
		if c.code == invalidArgument {
			r.violate(Misused, id, "%s", c.text)
		}
		if c.shape != "" {
			b.checkShape(&r, id, c, rules)
			continue
		}
		r.Calls++
		b.settled(&r, id, c, rules)
		executed(&r, id, c, rules)
		if c.ends > 0 {
			b.answered(&r, id, c, rules)
		}
		if c.method != ledger.Kill {
			recovered[c.node] = recovered[c.node] || (c.well() && c.made.After(b.quiet))
		}
	}
	b.checkKeys(&r, rules)
	streamed := b.checkStreams(&r, rules)
	if !b.quiet.IsZero() {
		b.comeBack(&r, recovered, "no call")
		b.comeBack(&r, streamed, "no stream")
	}
	return r
}

// well reports whether the call ended as intended.
func (c *call) well() bool {
	if c.ends == 0 {
		return false
	}
	switch c.method {
	case ledger.Fail:
		return c.code == ledger.FailCode
	case ledger.Panic:
		return c.code == ledger.PanicCode && c.outcome == ran
	case ledger.Flaky:
		return c.code == ledger.OK || c.code == ledger.FlakyCode && c.outcome == ran
	case ledger.Kill: // its server died, so any error is true
		return c.code != ledger.OK
	default:
		return c.code == ledger.OK
	}
}

// settled checks for exactly one end of the call, in time.
func (b *Book) settled(r *Result, id string, c *call, rules Rules) {
	killed, dead := b.killed[c.node]
	switch {
	case c.ends == 0 && dead:
		r.Abandoned++
		return
	case c.ends == 0:
		r.Lost++
		r.violate(Lost, id, "%s of %s, made at %s", c.method, c.node, c.made.Format(time.RFC3339Nano))
		return
	case c.ends > 1:
		r.violate(SettledTwice, id, "%d times", c.ends)
	}
	if dead && c.ended.After(killed) {
		r.violate(SettledDead, id, "%v after its client was killed", c.ended.Sub(killed))
	}
	if latest := b.latest(c.node, c.deadline, rules.Bound); c.ended.After(latest) {
		r.violate(Late, id, "%v after its deadline, %v more than allowed, %s: %s",
			c.ended.Sub(c.deadline), c.ended.Sub(latest), c.code, c.text)
	}
	r.LongestStall = max(r.LongestStall, c.ended.Sub(c.made)-b.standing(c))
}

// executed checks the number of executions against the limit for the kind of call.
func executed(r *Result, id string, c *call, rules Rules) {
	r.Duplicates += max(c.runs-1, 0)
	switch {
	case c.method == ledger.Once && c.runs > 1:
		r.violate(OnceRanTwice, id, "%d times", c.runs)
	case c.method == ledger.Kill && rules.Deliveries > 0 && c.runs > rules.Deliveries:
		r.violate(Poisonous, id, "%d times, at most %d", c.runs, rules.Deliveries)
	case !c.idempotent && c.fresh > 1:
		r.violate(RanAgain, id, "%d times, %d of them fresh", c.runs, c.fresh)
	case c.ends > 0 && c.fresh > max(c.attempts, 1):
		r.violate(RanAgain, id, "%d times, %d of them fresh, of %d sent", c.runs, c.fresh, c.attempts)
	}
}

// answered checks the truth of the caller's result.
func (b *Book) answered(r *Result, id string, c *call, rules Rules) {
	if c.well() {
		r.OK++
	} else {
		r.Errors[c.code+", "+c.outcome]++
	}
	carries := c.code == ledger.OK || (c.method == ledger.Fail && c.well())
	switch {
	case carries && c.response != c.sum, c.method == ledger.Fail && c.code == ledger.OK:
		r.Mismatched++
		r.violate(Mismatched, id, "%s ended as %s with checksum %s, want %s", c.method, c.code, c.response, c.sum)
	case c.code != ledger.OK && c.outcome == didNotRun && c.runs > 0:
		r.WrongDidNotRun++
		r.violate(WrongDidNotRun, id, "ran %d times: %s: %s", c.runs, c.code, c.text)
	case (c.code == ledger.OK || c.outcome == ran) && c.runs == 0:
		r.violate(NeverRan, id, "%s: %s", c.code, c.text)
	}
	if off := c.ended.Sub(c.deadline).Abs(); rules.Blocked > 0 && off > rules.Blocked && strings.Contains(c.text, blocked) {
		r.violate(NotAtDeadline, id, "%v from it: %s", off, c.text)
	}
	switch {
	case c.well(), c.method == ledger.Flaky: // its budget of retries may be used up
	case rules.AllOK:
		r.violate(Fails, id, "%s: %s", c.code, c.text)
	case rules.IdempotentOK && c.idempotent && c.method != ledger.Once && !b.cutOff(c):
		r.violate(IdempotentFails, id, "%s: %s", c.code, c.text)
	}
}

// comeBack checks the service of every remaining client after the faults.
func (b *Book) comeBack(r *Result, recovered map[string]bool, none string) {
	for _, node := range slices.Sorted(maps.Keys(recovered)) {
		if !b.left[node] && !recovered[node] {
			r.violate(NotRecovered, node, "%s succeeded since %s", none, b.quiet.Format(time.RFC3339Nano))
		}
	}
}
