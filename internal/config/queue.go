package config

import (
	"strings"

	"rabbitmq-rpc/pkg/amqpx"
)

// Queue is the request queue and what travels over it, which both services must describe
// alike. It is a part of a service's settings.
type Queue struct {
	// Name is the queue's name.
	Name string `envconfig:"RPC_QUEUE" default:"rpc_queue" maxlen:"200"`
	// Type is classic or quorum.
	Type amqpx.QueueType `envconfig:"RPC_QUEUE_TYPE" default:"classic" oneof:"classic quorum"`
	// Durable makes the queue outlive a restart of the broker.
	Durable bool `envconfig:"RPC_QUEUE_DURABLE" default:"true"`
	// Persistent makes the broker write the messages to disk as well.
	Persistent bool `envconfig:"RPC_PERSISTENT" default:"false"`
	// Batch chooses whether calls that wait anyway travel together.
	Batch amqpx.BatchMode `envconfig:"RPC_BATCH" default:"auto" oneof:"auto off"`
	// Control has servers answer questions about themselves and learn of calls that were
	// given up.
	Control bool `envconfig:"RPC_CONTROL" default:"true"`
	// MaxMessageBytes bounds the body of a request or an answer, sent or received.
	MaxMessageBytes int `envconfig:"RPC_MAX_MESSAGE_BYTES" default:"16777216" min:"1" max:"536870912"`
}

// Validate checks what spans variables.
func (q *Queue) Validate(faults *Faults) {
	if q.Type == amqpx.QueueQuorum && !q.Durable && !faults.Has("RPC_QUEUE_DURABLE") {
		faults.Addf("RPC_QUEUE_DURABLE", "is false, but a quorum queue is always durable")
	}
	if strings.HasPrefix(q.Name, "amq.") {
		faults.Addf("RPC_QUEUE", "begins with amq., which the broker reserves")
	}
}

// Queue returns the queue as the library describes it.
func (q *Queue) Queue() amqpx.Queue {
	return amqpx.Queue{Name: q.Name, Type: q.Type, Durable: q.Durable}
}

// Options returns the library's options for these settings.
func (q *Queue) Options() []amqpx.Option {
	return []amqpx.Option{
		amqpx.WithQueue(q.Queue()),
		amqpx.WithPersistent(q.Persistent),
		amqpx.WithBatch(q.Batch),
		amqpx.WithControl(q.Control),
		amqpx.WithMaxMessageSize(q.MaxMessageBytes),
	}
}
