// Package check proves from the ledgers of a run what the library promises: every
// call settled once and in time, with its own answer, and what was said of its
// execution is true.
package check

import (
	"fmt"
	"time"
)

// DefaultBound is how long after its deadline a call may return.
const DefaultBound = 250 * time.Millisecond

// Rules are what a scenario promises beyond what always holds.
type Rules struct {
	// Bound is how long after its deadline a call may return; 0 is [DefaultBound].
	// Time in which the client's process was paused is added.
	Bound time.Duration
	// IdempotentOK: no idempotent call may fail, but one inside whose deadline the
	// broker did not come back from an outage.
	IdempotentOK bool
	// AllOK: nothing was lost, so no call may fail.
	AllOK bool
	// Blocked is how far from its deadline a call may end that the broker kept from
	// being sent by an alarm; 0 is no bound beyond the others.
	Blocked time.Duration
	// Deliveries bounds how often a request that kills its server may be run; 0 is
	// no bound.
	Deliveries int
}

// Rule names what was violated.
type Rule string

// The rules that always hold, and those of [Rules].
const (
	NotUnique       Rule = "two calls have one id"
	Lost            Rule = "a call never settled"
	SettledTwice    Rule = "a call settled twice"
	NeverMade       Rule = "something settled or ran that nobody called"
	SettledDead     Rule = "a call of a killed client settled"
	Late            Rule = "a call outlived its deadline"
	Mismatched      Rule = "an answer belongs to another call"
	WrongDidNotRun  Rule = "an error said that the call did not run, and it ran"
	NeverRan        Rule = "a call was answered that no server ran"
	RanAgain        Rule = "a call ran again that the broker did not hand out again"
	OnceRanTwice    Rule = "a call of an at-most-once method ran twice"
	IdempotentFails Rule = "an idempotent call failed though the broker came back in time"
	Fails           Rule = "a call failed though nothing was lost"
	Poisonous       Rule = "a request that kills its server was run too often"
	NotAtDeadline   Rule = "a call under an alarm did not end at its deadline"
	NotRecovered    Rule = "a client got no answer after the last fault"
)

// Violation is one proof that a rule does not hold.
type Violation struct {
	Rule Rule   `json:"rule"`
	ID   string `json:"id"`
	Text string `json:"text"`
}

// String says what was violated by which call.
func (v Violation) String() string { return fmt.Sprintf("%s: %s: %s", v.Rule, v.ID, v.Text) }

// Result is what a run's ledgers say.
type Result struct {
	// Calls were made; OK of them ended as they were meant to, Errors are the others
	// by code and outcome. Abandoned calls lost their client to SIGKILL.
	Calls     int            `json:"calls"`
	OK        int            `json:"ok"`
	Errors    map[string]int `json:"errors"`
	Abandoned int            `json:"abandoned"`
	// Lost calls never settled.
	Lost int `json:"lost"`
	// Duplicates counts executions beyond each call's first.
	Duplicates int `json:"duplicates"`
	// Mismatched counts answers that belong to another call.
	Mismatched int `json:"mismatched"`
	// WrongDidNotRun counts executed calls that were said not to have run.
	WrongDidNotRun int `json:"wrong_did_not_run"`
	// LongestStall is the longest that a call took.
	LongestStall time.Duration `json:"longest_stall_ns"`
	// Violations are the first of each rule, Broken counts all of them.
	Violations []Violation  `json:"violations,omitempty"`
	Broken     map[Rule]int `json:"broken,omitempty"`
}

// violationsKept bounds the examples of one rule.
const violationsKept = 5

func (r *Result) violate(rule Rule, id, format string, args ...any) {
	r.Broken[rule]++
	if r.Broken[rule] <= violationsKept {
		r.Violations = append(r.Violations, Violation{rule, id, fmt.Sprintf(format, args...)})
	}
}
