// Package check proves the library's promises from the ledgers of a run: every call was
// settled once and in time, with its own response and a true outcome.
package check

import (
	"fmt"
	"time"
)

// DefaultBound is the time after its deadline within which a call must return.
const DefaultBound = 250 * time.Millisecond

// Rules are the promises of a scenario beyond the general rules.
type Rules struct {
	// Bound is the time after its deadline within which a call must return; 0 is
	// [DefaultBound]. Pauses of the client's process are added.
	Bound time.Duration
	// IdempotentOK forbids failures of idempotent calls, except calls whose deadline passed
	// before the broker had returned from an outage.
	IdempotentOK bool
	// AllOK forbids failures of calls, because nothing was lost.
	AllOK bool
	// Blocked is the maximum distance between the deadline and the end of a call blocked by an
	// alarm of the broker; 0 sets no bound beyond the others.
	Blocked time.Duration
	// Deliveries bounds the executions of a request that kills its server; 0 sets no bound.
	Deliveries int
	// SentRuns forbids that a one-way request never runs although the broker has confirmed it.
	SentRuns bool
	// Lease is how long a claim of an idempotency key in the servers' store outlives its server,
	// unless the server renews it.
	Lease time.Duration
	// Silence bounds the time in which a stream makes no progress and does not end; 0 sets no
	// bound. Pauses of the client's process and absences of the broker are not counted.
	Silence time.Duration
}

// Rule names a rule by its violation.
type Rule string

// The general rules, and the rules of [Rules].
const (
	NotUnique       Rule = "two calls have one id"
	Lost            Rule = "a call never settled"
	SettledTwice    Rule = "a call settled twice"
	Misused         Rule = "the suite made a call with wrong arguments"
	NeverMade       Rule = "something settled or ran that nobody called"
	SettledDead     Rule = "a call of a killed client settled"
	Late            Rule = "a call outlived its deadline"
	Mismatched      Rule = "a response belongs to another call"
	WrongDidNotRun  Rule = "an error said that the call did not run, and it ran"
	NeverRan        Rule = "a call was answered that no server ran"
	RanAgain        Rule = "a call ran again that the broker did not hand out again"
	OnceRanTwice    Rule = "a call of an at-most-once method ran twice"
	IdempotentFails Rule = "an idempotent call failed though the broker came back in time"
	Fails           Rule = "a call failed though nothing was lost"
	Poisonous       Rule = "a request that kills its server was run too often"
	NotAtDeadline   Rule = "a call under an alarm did not end at its deadline"
	NotRecovered    Rule = "a client got no response after the last fault"
	RespondedTwice  Rule = "a server responded twice to a call to all servers"
	SentNeverRan    Rule = "a one-way request was confirmed and never ran"
	KeyRanTwice     Rule = "the handler of an idempotency key ran to its end twice while its claims held"
	KeyResponses    Rule = "calls with one idempotency key got different responses"

	StreamLost       Rule = "a stream never ended"
	StreamEndedTwice Rule = "a stream ended twice"
	StreamLate       Rule = "a stream outlived its deadline"
	StreamSilent     Rule = "a stream was silent for too long"
	WrongItems       Rule = "items of a stream are missing, repeated, out of order or foreign"
	WrongProgress    Rule = "a stream told a wrong progress"
)

// Violation is a proof of a broken rule.
type Violation struct {
	Rule Rule   `json:"rule"`
	ID   string `json:"id"`
	Text string `json:"text"`
}

// String returns the rule, the call or stream, and the details.
func (v Violation) String() string { return fmt.Sprintf("%s: %s: %s", v.Rule, v.ID, v.Text) }

// Result is the judgement of a run's ledgers.
type Result struct {
	// Calls is the number of calls. OK counts the calls with the intended end, Errors the
	// other ends by code and outcome. Abandoned counts calls whose client was ended by
	// SIGKILL.
	Calls     int            `json:"calls"`
	OK        int            `json:"ok"`
	Errors    map[string]int `json:"errors"`
	Abandoned int            `json:"abandoned"`
	// Lost counts calls that were never settled.
	Lost int `json:"lost"`
	// Duplicates counts the repeated executions of calls.
	Duplicates int `json:"duplicates"`
	// Mismatched counts responses of other calls.
	Mismatched int `json:"mismatched"`
	// WrongDidNotRun counts executed calls reported as not run.
	WrongDidNotRun int `json:"wrong_did_not_run"`
	// LongestStall is the longest duration of a call, without pauses of its client.
	LongestStall time.Duration `json:"longest_stall_ns"`
	// Shapes is the judgement of the calls that are no plain calls, by shape. Mismatched and
	// WrongDidNotRun include theirs.
	Shapes map[string]*Shape `json:"shapes,omitempty"`
	// Keys is the judgement of the idempotency keys that several calls have.
	Keys Keys `json:"keys"`
	// Streams is the judgement of the streams.
	Streams Streams `json:"streams"`
	// Violations holds the first violations of each rule, Broken counts all of them.
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
