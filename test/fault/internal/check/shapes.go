package check

import "rabbitmq-rpc/test/fault/internal/ledger"

// Shape is the judgement of the calls of one shape: one-way, to all servers, retried, hedged, or with a
// shared key.
type Shape struct {
	// Calls is the number of calls. OK counts the calls with the intended end, Errors the other ends
	// by code and outcome, Abandoned the calls of killed clients, Lost the calls that never settled,
	// Duplicates the repeated executions, with shared keys those of a key.
	Calls      int            `json:"calls"`
	OK         int            `json:"ok"`
	Errors     map[string]int `json:"errors,omitempty"`
	Abandoned  int            `json:"abandoned"`
	Lost       int            `json:"lost"`
	Duplicates int            `json:"duplicates"`
	// Mismatched counts responses of other calls, WrongDidNotRun executed calls reported as not run.
	Mismatched     int `json:"mismatched"`
	WrongDidNotRun int `json:"wrong_did_not_run"`
	// Responses counts the responses to calls to all servers.
	Responses int `json:"responses,omitempty"`
	// NeverRan counts the one-way requests that the broker has confirmed and no server ran.
	NeverRan int `json:"never_ran,omitempty"`
}

// Plus returns the sum of two judgements, without errors.
func (s Shape) Plus(other Shape) Shape {
	s.Calls += other.Calls
	s.OK += other.OK
	s.Abandoned += other.Abandoned
	s.Lost += other.Lost
	s.Duplicates += other.Duplicates
	s.Mismatched += other.Mismatched
	s.WrongDidNotRun += other.WrongDidNotRun
	s.Responses += other.Responses
	s.NeverRan += other.NeverRan
	return s
}

// checkShape judges a call that is no plain call.
func (b *Book) checkShape(r *Result, id string, c *call, rules Rules) {
	s := r.Shapes[c.shape]
	if s == nil {
		s = &Shape{Errors: make(map[string]int)}
		r.Shapes[c.shape] = s
	}
	own := Result{Errors: s.Errors, Broken: r.Broken, Violations: r.Violations}
	b.settled(&own, id, c, rules)
	switch c.shape {
	case ledger.AllShape:
		own.gathered(id, c)
		s.Responses += len(c.servers)
	case ledger.SendShape:
		executed(&own, id, c, rules)
		if b.sent(&own, id, c, rules) {
			s.NeverRan++
		}
	case ledger.KeyShape:
		executed(&own, id, c, rules)
		own.Duplicates = 0 // the calls with the key are judged together
		b.answeredByKey(&own, id, c, rules)
	default:
		executed(&own, id, c, rules)
		if c.ends > 0 {
			b.answered(&own, id, c, rules)
		}
	}
	*s = s.Plus(Shape{
		Calls: 1, OK: own.OK, Abandoned: own.Abandoned, Lost: own.Lost, Duplicates: own.Duplicates,
		Mismatched: own.Mismatched, WrongDidNotRun: own.WrongDidNotRun,
	})
	r.Violations = own.Violations
	r.Mismatched += own.Mismatched
	r.WrongDidNotRun += own.WrongDidNotRun
}

// sent checks the truth of the result of a one-way request, and reports whether no server ran it
// although the broker has confirmed it.
func (b *Book) sent(r *Result, id string, c *call, rules Rules) (neverRan bool) {
	if c.ends == 0 {
		return false
	}
	if c.code == ledger.OK {
		r.OK++
		// A server may refuse a redelivered request of an at-most-once method.
		if neverRan = c.runs == 0 && c.method != ledger.Once; neverRan && rules.SentRuns {
			r.violate(SentNeverRan, id, "%s", c.method)
		}
		return neverRan
	}
	r.Errors[c.code+", "+c.outcome]++
	if c.outcome == didNotRun && c.runs > 0 {
		r.WrongDidNotRun++
		r.violate(WrongDidNotRun, id, "a one-way request ran %d times: %s: %s", c.runs, c.code, c.text)
	}
	switch {
	case rules.AllOK:
		r.violate(Fails, id, "a one-way request: %s: %s", c.code, c.text)
	case rules.IdempotentOK && c.idempotent && c.method != ledger.Once && !b.cutOff(c):
		r.violate(IdempotentFails, id, "a one-way request: %s: %s", c.code, c.text)
	}
	return false
}

// gathered checks the executions of a call to all servers, and the truth of its responses.
func (r *Result) gathered(id string, c *call) {
	for pid, runs := range c.processes {
		if runs > 1 {
			r.violate(RanAgain, id, "%d times in process %d", runs, pid)
		}
	}
	if c.ends == 0 {
		return
	}
	responded := make(map[int]bool, len(c.servers))
	for _, pid := range c.servers {
		if responded[pid] {
			r.violate(RespondedTwice, id, "process %d", pid)
		}
		if responded[pid] = true; c.processes[pid] == 0 {
			r.violate(NeverRan, id, "process %d responded", pid)
		}
	}
	if c.code == ledger.OK {
		r.OK++
		if c.response != c.sum {
			r.Mismatched++
			r.violate(Mismatched, id, "a call to all servers got checksum %s, want %s", c.response, c.sum)
		}
		return
	}
	r.Errors[c.code+", "+c.outcome]++
	if c.outcome == didNotRun && c.runs > 0 {
		r.WrongDidNotRun++
		r.violate(WrongDidNotRun, id, "a call to all servers ran %d times: %s: %s", c.runs, c.code, c.text)
	}
}
