// Package candidate has the ways to make remote calls that the benchmark compares. Flags, tables
// and docs/performance.md call them contenders.
package candidate

import (
	"context"
	"fmt"
	"time"
)

// Candidate is a way to make remote calls. Each candidate has its own file.
type Candidate interface {
	// Settings describes the candidate's configuration in a line of the report.
	Settings() string
}

// Native is a candidate whose processes run this program.
type Native interface {
	Candidate
	// Serve answers calls on env's queue until ctx ends. When the server accepts calls, Serve
	// calls ready once. The endpoint is the address to dial, or empty if clients use the
	// broker.
	Serve(ctx context.Context, env Environment, h *Handler, ready func(endpoint string)) error
	// Dial returns a caller.
	Dial(ctx context.Context, env Environment) (Caller, error)
}

// Role is the role of a candidate's process.
type Role string

// The roles. A candidate may have several servers.
const (
	RoleServer Role = "server"
	RoleClient Role = "client"
	RoleBroker Role = "broker" // of a candidate with its own broker
)

// Foreign is a candidate whose processes are other programs, which follow the same protocol on
// their standard streams.
type Foreign interface {
	Candidate
	// Program returns the command line of a process.
	Program(r Role) []string
}

// Brokered is a candidate with its own broker as a third process.
type Brokered interface {
	// Broker serves until ctx ends, and calls ready once with its address.
	Broker(ctx context.Context, ready func(endpoint string)) error
}

// Caller is the calling side of a candidate, safe for concurrent use.
type Caller interface {
	// Call sends a request and returns the response.
	Call(ctx context.Context, method string, body []byte) ([]byte, error)
	// Close ends the caller's connections.
	Close(ctx context.Context) error
}

// Starter is a caller with calls that need no goroutine while they wait.
type Starter interface {
	// Start sends a request and does not wait for the response.
	Start(ctx context.Context, method string, body []byte) Started
}

// Started is a call in flight, made by a starter.
type Started interface {
	// Done returns a channel, closed when the call is settled.
	Done() <-chan struct{}
	// Wait waits for the response.
	Wait() ([]byte, error)
}

// Environment configures the processes of a candidate.
type Environment struct {
	URL      string        `json:"url"`
	TLSURL   string        `json:"tls_url,omitempty"`   // of the same broker's listener for TLS
	Queue    string        `json:"queue"`               // its own request queue
	Endpoint string        `json:"endpoint,omitempty"`  // of a candidate that needs no RabbitMQ
	Workers  int           `json:"workers,omitempty"`   // handlers at once in each server; 0: the candidate's own best
	Sleep    time.Duration `json:"sleep,omitempty"`     // of every handler
	InFlight int           `json:"in_flight,omitempty"` // the most that a client may have; 0: its default
	Async    bool          `json:"async,omitempty"`     // held calls have no goroutines
	Programs string        `json:"programs,omitempty"`  // directory of the programs of a shipped candidate
}

// secure is the part of a candidate that chooses between TCP and TLS.
type secure struct{ tls bool }

// broker returns the URL to dial.
func (s secure) broker(env Environment) string {
	if s.tls {
		return env.TLSURL
	}
	return env.URL
}

func (s secure) settings() string {
	if s.tls {
		return ", TLS"
	}
	return ""
}

// callTimeout is the deadline of calls, if a candidate sets a deadline; the value is amqpx's
// default.
const callTimeout = 30 * time.Second

// EndTimeout bounds the clean end of a process.
const EndTimeout = 5 * time.Second

// Entry is a candidate with its name in the tables.
type Entry struct {
	Name string
	Candidate

	// Optional candidates run only when the flag -contenders lists them.
	Optional bool
	// Sequential candidates make a single call at a time.
	Sequential bool
	// Secure candidates need the URL of a listener for TLS.
	Secure bool
	// Shipped candidates run the services of this repository, of Environment.Programs.
	Shipped bool
}

// Names of the candidates that serve as a base of comparison.
const (
	Baseline     = "loop"
	BaselineSame = "loop-same" // sends and awaits the same messages as amqpx, written by hand
	// BaselineConfirms confirms and does nothing else that the first loop does not.
	BaselineConfirms = "loop-confirms"
	Single           = "amqpx"
	Batched          = "amqpx-batch"
	CoreNATS         = "nats"

	SingleMetrics  = "amqpx-metrics"
	SingleSampled  = "amqpx-traces-1%"
	SingleTraced   = "amqpx-traces"
	BatchedMetrics = "amqpx-batch-metrics"
	BatchedSampled = "amqpx-batch-traces-1%"
	BatchedTraced  = "amqpx-batch-traces"

	BaselineTLS = "loop-tls"
	SingleTLS   = "amqpx-tls"
	BatchedTLS  = "amqpx-batch-tls"

	GRPC = "grpc"

	Pair          = "pair"
	PairSingle    = "pair-single"
	PairNoMetrics = "pair-no-metrics"
)

// entries lists the candidates in the order of the tables.
func entries() []Entry {
	return []Entry{
		{Name: Baseline, Candidate: loop{}},
		{Name: "loop-direct", Candidate: loop{direct: true}},
		{Name: BaselineConfirms, Candidate: loop{confirms: true}},
		{Name: BaselineSame, Candidate: loop{confirms: true, split: true, deadlines: true}},
		{Name: Single, Candidate: overAMQPX{}},
		{Name: "amqpx-direct", Candidate: overAMQPX{direct: true}, Optional: true},
		{Name: Batched, Candidate: overAMQPX{batch: true}},
		{Name: "amqpx-batch-persistent", Candidate: overAMQPX{batch: true, persistent: true}},
		{Name: "amqpx-batch-quorum", Candidate: overAMQPX{batch: true, quorum: true}},
		{Name: SingleMetrics, Candidate: overAMQPX{telemetry: telemetry{metrics: true}}, Optional: true},
		{Name: SingleSampled, Candidate: overAMQPX{telemetry: telemetry{metrics: true, sampled: SampledShare}}, Optional: true},
		{Name: SingleTraced, Candidate: overAMQPX{telemetry: telemetry{metrics: true, sampled: 1}}, Optional: true},
		{Name: BatchedMetrics, Candidate: overAMQPX{batch: true, telemetry: telemetry{metrics: true}}, Optional: true},
		{Name: BatchedSampled, Candidate: overAMQPX{batch: true, telemetry: telemetry{metrics: true, sampled: SampledShare}}, Optional: true},
		{Name: BatchedTraced, Candidate: overAMQPX{batch: true, telemetry: telemetry{metrics: true, sampled: 1}}, Optional: true},
		{Name: BaselineTLS, Candidate: loop{secure: secure{tls: true}}, Optional: true, Secure: true},
		{Name: SingleTLS, Candidate: overAMQPX{secure: secure{tls: true}}, Optional: true, Secure: true},
		{Name: BatchedTLS, Candidate: overAMQPX{batch: true, secure: secure{tls: true}}, Optional: true, Secure: true},
		{Name: Pair, Candidate: &pair{}, Optional: true, Shipped: true},
		{Name: PairNoMetrics, Candidate: &pair{settings: []string{"METRICS=false"}, text: " and without metrics"}, Optional: true, Shipped: true},
		{Name: PairSingle, Candidate: &pair{settings: []string{"RPC_BATCH=off"}, text: " and without batches"}, Optional: true, Shipped: true},
		{Name: "go-kit", Candidate: goKit{}},
		{Name: "watermill", Candidate: overWatermill{}},
		{Name: CoreNATS, Candidate: overNATS{}},
		{Name: GRPC, Candidate: grpcUnary{}},
		{Name: "python", Candidate: python{}, Sequential: true},
		{Name: "loop-2conn", Candidate: loop{split: true}, Optional: true},
		{Name: "loop-confirms-2conn", Candidate: loop{confirms: true, split: true}, Optional: true},
	}
}

// Find returns the candidate with a name.
func Find(name string) (Entry, error) {
	for _, e := range entries() {
		if e.Name == name {
			return e, nil
		}
	}
	return Entry{}, fmt.Errorf("no contender %q", name)
}

// Names returns the names of all candidates.
func Names() []string {
	var names []string
	for _, e := range entries() {
		names = append(names, e.Name)
	}
	return names
}

// DefaultNames returns the names of the candidates that are not optional.
func DefaultNames() []string {
	var names []string
	for _, e := range entries() {
		if !e.Optional {
			names = append(names, e.Name)
		}
	}
	return names
}
