// Package ledger is the record of a run of the fault suite: the calls and results of clients,
// the executions of servers, and the injected faults. Every process appends JSON lines to its
// own file, with one write(2) per line, so entries written before SIGKILL are never lost.
package ledger

import "time"

// Kind is the kind of an entry.
type Kind string

// The kinds of entries, and their writers.
const (
	// Start is written by a client before it makes a call.
	Start Kind = "start"
	// End is written by a client after the call returned.
	End Kind = "end"
	// Run is written at the start of a server's handler, so an execution is on record before
	// its effects are visible.
	Run Kind = "run"
	// Status is written by a client or server at a change of its connection's state.
	Status Kind = "status"
	// Fault is written by the suite: a fault was injected from At to Until.
	Fault Kind = "fault"
	// Outage is written by the suite: the broker was away from At to Until.
	Outage Kind = "outage"
	// Paused is written by the suite: the process Node was stopped from At to Until.
	Paused Kind = "paused"
	// Left is written by the suite: the process Node was ended on purpose, and need not see
	// the end of the faults.
	Left Kind = "left"
	// Killed is written by the suite: the process Node was killed at At.
	Killed Kind = "killed"
)

// Methods of the suite's servers.
const (
	// Echo responds with the request body.
	Echo = "echo"
	// Once is Echo, declared at most once.
	Once = "once"
	// Slow is Echo after the duration given in the body.
	Slow = "slow"
	// Fail responds with the error FailCode and the body as its text.
	Fail = "fail"
	// Panic panics.
	Panic = "panic"
	// Kill ends the server's process.
	Kill = "kill"
)

// The codes of calls with the intended end.
const (
	OK        = "ok"
	FailCode  = "aborted"
	PanicCode = "internal"
)

// Entry is one line. The kind determines the fields in use.
type Entry struct {
	Kind Kind `json:"kind"`
	// Node names the process.
	Node string `json:"node,omitempty"`
	// At is the time of the event, Until the time of its end.
	At    time.Time `json:"at"`
	Until time.Time `json:"until,omitzero"`

	// ID identifies the call: the first word of its body. (Start, End, Run)
	ID     string `json:"id,omitempty"`
	Method string `json:"method,omitempty"`
	// Idempotent and Deadline are declared by the caller. (Start)
	Idempotent bool      `json:"idempotent,omitempty"`
	Deadline   time.Time `json:"deadline,omitzero"`
	// Sum is the checksum of the body, or of the result: the response, or the text of a
	// handler's error. (Start, End)
	Sum string `json:"sum,omitempty"`
	// Code, Outcome and Attempts are the caller's result; Text is the error. (End)
	Code     string `json:"code,omitempty"`
	Outcome  string `json:"outcome,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
	Text     string `json:"text,omitempty"`
	// Redelivered is the broker's redelivered flag of the request. (Run)
	Redelivered bool `json:"redelivered,omitempty"`
	// PID is the server's process. (Run)
	PID int `json:"pid,omitempty"`

	// Name is the connection's state or the fault. (Status, Fault)
	Name string `json:"name,omitempty"`
}
