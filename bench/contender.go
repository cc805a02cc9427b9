package main

import (
	"context"
	"fmt"
	"time"
)

// contender is a way to make remote calls. Each contender has its own file.
type contender interface {
	// settings describes the contender's configuration in a line of the report.
	settings() string
}

// native is a contender whose processes run this program.
type native interface {
	contender
	// serve answers calls on env's queue until ctx ends. When the server accepts calls, serve
	// calls ready once. The endpoint is the address to dial, or empty if clients use the
	// broker.
	serve(ctx context.Context, env environment, h *handler, ready func(endpoint string)) error
	// dial returns a caller.
	dial(ctx context.Context, env environment) (caller, error)
}

// foreign is a contender whose processes are other programs, which follow the same protocol on
// their standard streams.
type foreign interface {
	contender
	program(r role) []string
}

// brokered is a contender with its own broker as a third process.
type brokered interface {
	broker(ctx context.Context, ready func(endpoint string)) error
}

// caller is the calling side of a contender, safe for concurrent use.
type caller interface {
	// call sends a request and returns the response.
	call(ctx context.Context, method string, body []byte) ([]byte, error)
	close(ctx context.Context) error
}

// environment configures the processes of a contender.
type environment struct {
	URL      string        `json:"url"`
	Queue    string        `json:"queue"`               // its own request queue
	Endpoint string        `json:"endpoint,omitempty"`  // of a contender that needs no RabbitMQ
	Workers  int           `json:"workers,omitempty"`   // handlers at once in each server; 0: the contender's own best
	Sleep    time.Duration `json:"sleep,omitempty"`     // of every handler
	InFlight int           `json:"in_flight,omitempty"` // the most that a client may have; 0: its default
	Async    bool          `json:"async,omitempty"`     // held calls have no goroutines
}

// callTimeout is the deadline of calls, if a contender sets a deadline; the value is amqpx's
// default.
const callTimeout = 30 * time.Second

// entry is a contender with its name in the tables.
type entry struct {
	name string
	contender
	// optional contenders run only when -contenders lists them.
	optional bool
	// sequential contenders make a single call at a time.
	sequential bool
}

// Names of the contenders that serve as a base of comparison.
const (
	baseline     = "loop"
	baselineSame = "loop-same" // sends and awaits the same messages as amqpx, written by hand
	single       = "amqpx"
	batched      = "amqpx-batch"
	coreNATS     = "nats"

	singleMetrics  = "amqpx-metrics"
	singleSampled  = "amqpx-traces-1%"
	singleTraced   = "amqpx-traces"
	batchedMetrics = "amqpx-batch-metrics"
	batchedSampled = "amqpx-batch-traces-1%"
	batchedTraced  = "amqpx-batch-traces"

	overGRPC = "grpc"
)

// entries lists the contenders in the order of the tables.
func entries() []entry {
	return []entry{
		{name: baseline, contender: loop{}},
		{name: "loop-direct", contender: loop{direct: true}},
		{name: baselineSame, contender: loop{confirms: true, split: true, deadlines: true}},
		{name: single, contender: overAMQPX{}},
		{name: "amqpx-direct", contender: overAMQPX{direct: true}, optional: true},
		{name: batched, contender: overAMQPX{batch: true}},
		{name: "amqpx-batch-persistent", contender: overAMQPX{batch: true, persistent: true}},
		{name: "amqpx-batch-quorum", contender: overAMQPX{batch: true, quorum: true}},
		{name: singleMetrics, contender: overAMQPX{telemetry: telemetry{metrics: true}}, optional: true},
		{name: singleSampled, contender: overAMQPX{telemetry: telemetry{metrics: true, sampled: sampledShare}}, optional: true},
		{name: singleTraced, contender: overAMQPX{telemetry: telemetry{metrics: true, sampled: 1}}, optional: true},
		{name: batchedMetrics, contender: overAMQPX{batch: true, telemetry: telemetry{metrics: true}}, optional: true},
		{name: batchedSampled, contender: overAMQPX{batch: true, telemetry: telemetry{metrics: true, sampled: sampledShare}}, optional: true},
		{name: batchedTraced, contender: overAMQPX{batch: true, telemetry: telemetry{metrics: true, sampled: 1}}, optional: true},
		{name: "go-kit", contender: goKit{}},
		{name: "watermill", contender: overWatermill{}},
		{name: coreNATS, contender: overNATS{}},
		{name: overGRPC, contender: grpcUnary{}},
		{name: "python", contender: python{}, sequential: true},
		{name: "loop-2conn", contender: loop{split: true}, optional: true},
		{name: "loop-confirms", contender: loop{confirms: true}, optional: true},
		{name: "loop-confirms-2conn", contender: loop{confirms: true, split: true}, optional: true},
	}
}

func findEntry(name string) (entry, error) {
	for _, e := range entries() {
		if e.name == name {
			return e, nil
		}
	}
	return entry{}, fmt.Errorf("no contender %q", name)
}

func allContenders() []string {
	var names []string
	for _, e := range entries() {
		names = append(names, e.name)
	}
	return names
}

func defaultContenders() []string {
	var names []string
	for _, e := range entries() {
		if !e.optional {
			names = append(names, e.name)
		}
	}
	return names
}
