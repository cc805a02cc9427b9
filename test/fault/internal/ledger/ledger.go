// Package ledger is the record of a run of the fault suite: what clients asked and
// got, what servers ran, and what was done to whom. Every process appends JSON lines
// to a file of its own, one write(2) each, so that what was written before SIGKILL
// is never lost.
package ledger

import "time"

// Kind says what an entry records.
type Kind string

// The kinds of entries, and who writes them.
const (
	// Start is written by a client before it makes a call.
	Start Kind = "start"
	// End is written by a client when the call returned.
	End Kind = "end"
	// Run is written by a server's handler before anything else, so an execution is
	// on record before anybody can hear of it.
	Run Kind = "run"
	// Status is written by a client or server whose link changed its state.
	Status Kind = "status"
	// Fault is written by the suite: something was injected from At to Until.
	Fault Kind = "fault"
	// Outage is written by the suite: the broker was away from At to Until.
	Outage Kind = "outage"
	// Paused is written by the suite: the process Node stood still from At to Until.
	Paused Kind = "paused"
	// Left is written by the suite: the process Node was ended on purpose, and is not
	// expected to see the end of the faults.
	Left Kind = "left"
	// Killed is written by the suite: the process Node was killed at At.
	Killed Kind = "killed"
)

// Methods are the functions that servers of the suite have.
const (
	// Echo answers its body.
	Echo = "echo"
	// Once is Echo, declared at most once.
	Once = "once"
	// Slow is Echo after as long as the body says.
	Slow = "slow"
	// Fail answers the error FailCode with the body as its text.
	Fail = "fail"
	// Panic panics.
	Panic = "panic"
	// Kill ends the server's process.
	Kill = "kill"
)

// The codes of calls that ended as they were meant to.
const (
	OK        = "ok"
	FailCode  = "aborted"
	PanicCode = "internal"
)

// Entry is one line. Which fields are set depends on its kind.
type Entry struct {
	Kind Kind `json:"kind"`
	// Node names the process.
	Node string `json:"node,omitempty"`
	// At is when it happened, Until when it was over.
	At    time.Time `json:"at"`
	Until time.Time `json:"until,omitzero"`

	// ID identifies the call: the first word of its body. (Start, End, Run)
	ID     string `json:"id,omitempty"`
	Method string `json:"method,omitempty"`
	// Idempotent and Deadline are what the caller declared. (Start)
	Idempotent bool      `json:"idempotent,omitempty"`
	Deadline   time.Time `json:"deadline,omitzero"`
	// Sum is the checksum of the body, or of what came back: the answer, or the text
	// of a handler's error. (Start, End)
	Sum string `json:"sum,omitempty"`
	// Code, Outcome and Attempts are what the caller learned; Text is the error. (End)
	Code     string `json:"code,omitempty"`
	Outcome  string `json:"outcome,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
	Text     string `json:"text,omitempty"`
	// Redelivered is the broker's word that it handed the request out before. (Run)
	Redelivered bool `json:"redelivered,omitempty"`
	// PID is the server's process. (Run)
	PID int `json:"pid,omitempty"`

	// Name is the link's state or the fault. (Status, Fault)
	Name string `json:"name,omitempty"`
}
