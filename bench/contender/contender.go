// Package contender has the ways to make remote calls that the benchmark compares.
package contender

import (
	"context"
	"fmt"
	"time"
)

// Contender is a way to make remote calls. Each contender has its own file.
type Contender interface {
	// Settings describes the contender's configuration in a line of the report.
	Settings() string
}

// Native is a contender whose processes run this program.
type Native interface {
	Contender
	// Serve answers calls on env's queue until ctx ends. When the server accepts calls, Serve
	// calls ready once. The endpoint is the address to dial, or empty if clients use the
	// broker.
	Serve(ctx context.Context, env Environment, h *Handler, ready func(endpoint string)) error
	// Dial returns a caller.
	Dial(ctx context.Context, env Environment) (Caller, error)
}

// Role is the role of a contender's process.
type Role string

// The roles. A contender may have several servers.
const (
	RoleServer Role = "server"
	RoleClient Role = "client"
	RoleBroker Role = "broker" // of a contender with its own broker
)

// Foreign is a contender whose processes are other programs, which follow the same protocol on
// their standard streams.
type Foreign interface {
	Contender
	// Program returns the command line of a process.
	Program(r Role) []string
}

// Brokered is a contender with its own broker as a third process.
type Brokered interface {
	// Broker serves until ctx ends, and calls ready once with its address.
	Broker(ctx context.Context, ready func(endpoint string)) error
}

// Caller is the calling side of a contender, safe for concurrent use.
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

// Many is a caller that consists of several, each with connections of its own.
type Many interface {
	Caller
	// Nth returns the caller that makes call n: the calls go to the callers in turn.
	Nth(n int64) Caller
}

// Environment configures the processes of a contender.
type Environment struct {
	URL      string        `json:"url"`
	TLSURL   string        `json:"tls_url,omitempty"`   // of the same broker's listener for TLS
	Queue    string        `json:"queue"`               // its own request queue
	Endpoint string        `json:"endpoint,omitempty"`  // of a contender that needs no RabbitMQ
	Workers  int           `json:"workers,omitempty"`   // handlers at once in each server; 0: the contender's own best
	Sleep    time.Duration `json:"sleep,omitempty"`     // of every handler
	InFlight int           `json:"in_flight,omitempty"` // the most that a client may have; 0: its default
	Async    bool          `json:"async,omitempty"`     // held calls have no goroutines
	Programs string        `json:"programs,omitempty"`  // directory of the programs of a shipped contender

	// Queues is the number of request queues of contenders Single and Batched: every server
	// process serves all of them. Clients is the number of clients in the client process, spread
	// over the queues. 0: one queue; one client for each queue.
	Queues  int `json:"queues,omitempty"`
	Clients int `json:"clients,omitempty"`
	// Nodes are the URLs of the nodes of a cluster on which the request queues are in turn, each
	// with its servers and clients. Empty: all are at URL.
	Nodes []string `json:"nodes,omitempty"`
	// Spread are the URLs of the nodes of a cluster over which one request queue is spread: its
	// shards, its servers and the clients are on these nodes in turn. Empty: all are at URL.
	Spread []string `json:"spread,omitempty"`
	// Quorum makes the request queues of contenders Single and Batched quorum queues.
	Quorum bool `json:"quorum,omitempty"`
	// Priority is the priority of the calls of MethodUrgent, and MaxPriority the property of the
	// request queue, of contenders Single and Batched.
	Priority    uint8 `json:"priority,omitempty"`
	MaxPriority uint8 `json:"max_priority,omitempty"`
	// Shards is the number of shards of the request queue, see amqpx.WithShards; 0: 1.
	Shards int `json:"shards,omitempty"`
}

// at returns the environment of request queue i.
func (e Environment) at(i int) Environment {
	e.Queue = e.QueueNames()[i]
	if len(e.Nodes) > 0 {
		e.URL = e.Nodes[i%len(e.Nodes)]
	}
	return e
}

// ofClient returns the environment of client i.
func (e Environment) ofClient(i int) Environment {
	e = e.at(i % len(e.QueueNames()))
	if len(e.Spread) > 0 {
		e.URL = e.Spread[i%len(e.Spread)]
	}
	return e
}

// QueueNames returns the names of the request queues.
func (e Environment) QueueNames() []string {
	names := []string{e.Queue}
	for i := 1; i < e.Queues; i++ {
		names = append(names, fmt.Sprintf("%s.%d", e.Queue, i+1))
	}
	return names
}

// secure is the part of a contender that chooses between TCP and TLS.
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

// callTimeout is the deadline of calls, if a contender sets a deadline; the value is amqpx's
// default.
const callTimeout = 30 * time.Second

// EndTimeout bounds the clean end of a process.
const EndTimeout = 5 * time.Second

// Entry is a contender with its name in the tables.
type Entry struct {
	Name string
	Contender

	// Optional contenders run only when the flag -contenders lists them.
	Optional bool
	// Sequential contenders make a single call at a time.
	Sequential bool
	// Secure contenders need the URL of a listener for TLS.
	Secure bool
	// Shipped contenders run the services of this repository, of Environment.Programs.
	Shipped bool
}

// Names of the contenders that serve as a base of comparison.
const (
	Baseline     = "loop"
	BaselineSame = "loop-same" // sends and awaits the same messages as amqpx, written by hand
	// BaselineConfirms confirms and does nothing else that the first loop does not.
	BaselineConfirms = "loop-confirms"
	Single           = "amqpx"
	Batched          = "amqpx-batch"
	CoreNATS         = "nats"

	// Calls that may be sent again, as those of rpc-client by default.
	SingleIdempotent  = "amqpx-idempotent"
	BatchedIdempotent = "amqpx-batch-idempotent"

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

	SingleJSON   = "amqpx-json"
	SingleProto  = "amqpx-proto"
	SingleStub   = "amqpx-grpc"
	BatchedJSON  = "amqpx-batch-json"
	BatchedProto = "amqpx-batch-proto"
	BatchedStub  = "amqpx-batch-grpc"
	PingPong     = "amqpx-ping-pong"
	Items        = "amqpx-stream"
	ItemsStub    = "amqpx-stream-grpc"
	ItemsGRPC    = "grpc-stream"

	Pair          = "pair"
	PairSingle    = "pair-single"
	PairNoMetrics = "pair-no-metrics"
)

// entries lists the contenders in the order of the tables.
func entries() []Entry {
	return []Entry{
		{Name: Baseline, Contender: loop{}},
		{Name: "loop-direct", Contender: loop{direct: true}},
		{Name: BaselineConfirms, Contender: loop{confirms: true}},
		{Name: BaselineSame, Contender: loop{confirms: true, split: true, deadlines: true}},
		{Name: Single, Contender: overAMQPX{}},
		{Name: "amqpx-direct", Contender: overAMQPX{direct: true}, Optional: true},
		{Name: Batched, Contender: overAMQPX{batch: true}},
		{Name: "amqpx-batch-persistent", Contender: overAMQPX{batch: true, persistent: true}},
		{Name: "amqpx-batch-quorum", Contender: overAMQPX{batch: true, quorum: true}},
		{Name: SingleIdempotent, Contender: overAMQPX{idempotent: true}, Optional: true},
		{Name: BatchedIdempotent, Contender: overAMQPX{batch: true, idempotent: true}, Optional: true},
		{Name: SingleMetrics, Contender: overAMQPX{telemetry: telemetry{metrics: true}}, Optional: true},
		{Name: SingleSampled, Contender: overAMQPX{telemetry: telemetry{metrics: true, sampled: SampledShare}}, Optional: true},
		{Name: SingleTraced, Contender: overAMQPX{telemetry: telemetry{metrics: true, sampled: 1}}, Optional: true},
		{Name: BatchedMetrics, Contender: overAMQPX{batch: true, telemetry: telemetry{metrics: true}}, Optional: true},
		{Name: BatchedSampled, Contender: overAMQPX{batch: true, telemetry: telemetry{metrics: true, sampled: SampledShare}}, Optional: true},
		{Name: BatchedTraced, Contender: overAMQPX{batch: true, telemetry: telemetry{metrics: true, sampled: 1}}, Optional: true},
		{Name: BaselineTLS, Contender: loop{secure: secure{tls: true}}, Optional: true, Secure: true},
		{Name: SingleTLS, Contender: overAMQPX{secure: secure{tls: true}}, Optional: true, Secure: true},
		{Name: BatchedTLS, Contender: overAMQPX{batch: true, secure: secure{tls: true}}, Optional: true, Secure: true},
		{Name: Pair, Contender: &pair{}, Optional: true, Shipped: true},
		{Name: PairNoMetrics, Contender: &pair{settings: []string{"METRICS=false"}, text: " and without metrics"}, Optional: true, Shipped: true},
		{Name: PairSingle, Contender: &pair{settings: []string{"RPC_BATCH=off"}, text: " and without batches"}, Optional: true, Shipped: true},
		{Name: SingleJSON, Contender: overAMQPX{surface: typedJSON()}, Optional: true},
		{Name: SingleProto, Contender: overAMQPX{surface: typedProto()}, Optional: true},
		{Name: SingleStub, Contender: overAMQPX{surface: stubs{}}, Optional: true},
		{Name: BatchedJSON, Contender: overAMQPX{batch: true, surface: typedJSON()}, Optional: true},
		{Name: BatchedProto, Contender: overAMQPX{batch: true, surface: typedProto()}, Optional: true},
		{Name: BatchedStub, Contender: overAMQPX{batch: true, surface: stubs{}}, Optional: true},
		{Name: PingPong, Contender: overAMQPX{batch: true, surface: pingPong{}}, Optional: true},
		{Name: Items, Contender: overAMQPX{batch: true, surface: items{}}, Optional: true},
		{Name: ItemsStub, Contender: overAMQPX{batch: true, surface: stubs{items: true}}, Optional: true},
		{Name: ItemsGRPC, Contender: grpcUnary{items: true}, Optional: true},
		{Name: "go-kit", Contender: goKit{}},
		{Name: "watermill", Contender: overWatermill{}},
		{Name: CoreNATS, Contender: overNATS{}},
		{Name: GRPC, Contender: grpcUnary{}},
		{Name: "python", Contender: python{}, Sequential: true},
		{Name: "loop-2conn", Contender: loop{split: true}, Optional: true},
		{Name: "loop-confirms-2conn", Contender: loop{confirms: true, split: true}, Optional: true},
	}
}

// Find returns the contender with a name.
func Find(name string) (Entry, error) {
	for _, e := range entries() {
		if e.Name == name {
			return e, nil
		}
	}
	return Entry{}, fmt.Errorf("no contender %q", name)
}

// Names returns the names of all contenders.
func Names() []string {
	var names []string
	for _, e := range entries() {
		names = append(names, e.Name)
	}
	return names
}

// DefaultNames returns the names of the contenders that are not optional.
func DefaultNames() []string {
	var names []string
	for _, e := range entries() {
		if !e.Optional {
			names = append(names, e.Name)
		}
	}
	return names
}
