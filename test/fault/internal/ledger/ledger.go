// Package ledger is the record of a run of the fault suite: the calls and results of clients,
// the executions of servers, and the injected faults. Every process appends JSON lines to its
// own file, with one write(2) per line, so entries written before SIGKILL are never lost.
package ledger

import (
	"time"

	"rabbitmq-rpc/test/fault/internal/items"
)

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
	// Dead is written by the suite, or by a server that a second signal ends: the process PID of the
	// server Node ended at At, before it had finished its requests.
	Dead Kind = "dead"
	// Done is written at the end of the handler of a request with a key, before the handler returns
	// its response. The handler ran from At to Until.
	Done Kind = "done"
	// StreamStart is written by a client before it opens a stream, StreamEnd after its end.
	StreamStart Kind = "stream-start"
	StreamEnd   Kind = "stream-end"
	// StreamRun is written at the start of the handler of a stream, StreamDone before the handler
	// returns.
	StreamRun  Kind = "stream-run"
	StreamDone Kind = "stream-done"
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
	// Flaky is Echo, or fails with FlakyCode, at random.
	Flaky = "flaky"
	// Everywhere is Echo for calls to all servers. The response ends with a space and the process.
	Everywhere = "everywhere"
	// Shared is Slow for calls with idempotency keys that several callers use. The response ends with
	// a space and the execution, so that no two executions have the same response. Held is Shared
	// for longer than the lease of a claim.
	Shared = "shared"
	Held   = "held"
)

// Shapes of calls other than a plain call.
const (
	// SendShape is a one-way request.
	SendShape = "send"
	// AllShape is a call to all servers.
	AllShape = "all"
	// RetryShape is a call with a retry policy.
	RetryShape = "retry"
	// HedgeShape is a call that may be made twice at the same time.
	HedgeShape = "hedge"
	// KeyShape is a call with an idempotency key that other calls have, too.
	KeyShape = "key"
)

// Methods of the suite's servers for streams. Each gets the plan of the stream as a header.
const (
	// Source sends the items of the plan.
	Source = "source"
	// OnceSource is Source, declared at most once.
	OnceSource = "once-source"
	// FailSource is Source, and then fails with FailCode.
	FailSource = "fail-source"
	// Sink takes the items of the plan, and then sends one.
	Sink = "sink"
	// Mirror sends an item for each that it takes.
	Mirror = "mirror"
)

// The codes of calls and streams with the intended end.
const (
	OK        = "ok"
	FailCode  = "aborted"
	PanicCode = "internal"
	FlakyCode = "unavailable"
	// CancelCode is the code of a stream that its client has canceled, by its plan.
	CancelCode = "canceled"
)

// Entry is one line. The kind determines the fields in use.
type Entry struct {
	Kind Kind `json:"kind"`
	// Node names the process.
	Node string `json:"node,omitempty"`
	// At is the time of the event, Until the time of its end.
	At    time.Time `json:"at"`
	Until time.Time `json:"until,omitzero"`

	// ID identifies the call: the first word of its body, or a header. (Start, End, Run, Done)
	ID     string `json:"id,omitempty"`
	Method string `json:"method,omitempty"`
	// Shape is the shape of a call that is no plain call. (Start)
	Shape string `json:"shape,omitempty"`
	// Idempotent and Deadline are declared by the caller. (Start)
	Idempotent bool      `json:"idempotent,omitempty"`
	Deadline   time.Time `json:"deadline,omitzero"`
	// Sum is the checksum of the body, or of the result: the response, or the text of a
	// handler's error. (Start, End, Done)
	Sum string `json:"sum,omitempty"`
	// Code, Outcome and Attempts are the caller's result; Text is the error. (End)
	Code     string `json:"code,omitempty"`
	Outcome  string `json:"outcome,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
	Text     string `json:"text,omitempty"`
	// Redelivered is the broker's redelivered flag of the request. (Run)
	Redelivered bool `json:"redelivered,omitempty"`
	// PID is the server's process. (Run, Done, Dead)
	PID int `json:"pid,omitempty"`
	// Key is the idempotency key of a call of the shape KeyShape. (Start, Run, Done)
	Key string `json:"key,omitempty"`
	// User is the caller as the server knows it; "" is an anonymous caller. (Done)
	User string `json:"user,omitempty"`
	// Server is the id of the server that responded to a call of the shape KeyShape. (End)
	Server string `json:"server,omitempty"`
	// Servers are the processes that responded to a call to all servers. (End)
	Servers []int `json:"servers,omitempty"`

	// Name is the connection's state or the fault. (Status, Fault)
	Name string `json:"name,omitempty"`

	// Items is the number of items of the plan. (StreamStart)
	Items int `json:"items,omitempty"`
	// Cancels means that the client cancels the stream by its plan. (StreamStart)
	Cancels bool `json:"cancels,omitempty"`
	// Flow is how far the stream came. (StreamEnd, StreamDone)
	Flow *Flow `json:"flow,omitempty"`
}

// Flow is how far a stream came at one side.
type Flow struct {
	// Offered counts the items that the program sent, and Received the items that the program got.
	// Wrong counts the received items by their faults.
	Offered  int         `json:"offered"`
	Received int         `json:"received"`
	Wrong    items.Wrong `json:"wrong,omitzero"`
	// Whole means that the end of the other side's items was seen.
	Whole bool `json:"whole,omitempty"`
	// ToldSent, ToldTaken and ToldReceived are what the library said: in the error, or at the end.
	ToldSent     int `json:"told_sent"`
	ToldTaken    int `json:"told_taken"`
	ToldReceived int `json:"told_received"`
	// Silence is the longest time without an item, a sent item or the end, which began at
	// SilentAt.
	Silence  time.Duration `json:"silence_ns,omitempty"`
	SilentAt time.Time     `json:"silent_at,omitzero"`
}
