package config

import (
	"strings"

	"rabbitmq-rpc/pkg/amqpx"
)

// Queue holds the settings of the request queue and its messages, which must be equal in both
// services. It is a part of a service's settings.
type Queue struct {
	// Name is the queue's name.
	Name string `envconfig:"RPC_QUEUE" default:"rpc_queue" maxlen:"200"`
	// Type is classic or quorum.
	Type amqpx.QueueType `envconfig:"RPC_QUEUE_TYPE" default:"classic" oneof:"classic quorum"`
	// Shards is the number of queues: Name, Name.1 and so on.
	Shards int `envconfig:"RPC_SHARDS" default:"1" min:"1" max:"64"`
	// Durable makes the queue survive a restart of the broker.
	Durable bool `envconfig:"RPC_QUEUE_DURABLE" default:"true"`
	// Persistent makes the broker also write the messages to disk.
	Persistent bool `envconfig:"RPC_PERSISTENT" default:"false"`
	// Batch enables batches of calls that have to wait anyway.
	Batch amqpx.BatchMode `envconfig:"RPC_BATCH" default:"auto" oneof:"auto off"`
	// Control enables the control plane: servers respond to queries about themselves and
	// receive cancellations of calls.
	Control bool `envconfig:"RPC_CONTROL" default:"true"`
	// MaxMessageBytes limits the body of a request or a response, sent or received.
	MaxMessageBytes int `envconfig:"RPC_MAX_MESSAGE_BYTES" default:"16777216" min:"1" max:"536870912"`
}

// Validate checks rules that involve several variables.
func (q *Queue) Validate(faults *Faults) {
	if q.Type == amqpx.QueueQuorum && !q.Durable && !faults.Has("RPC_QUEUE_DURABLE") {
		faults.Addf("RPC_QUEUE_DURABLE", "is false, but a quorum queue is always durable")
	}
	if strings.HasPrefix(q.Name, "amq.") {
		faults.Addf("RPC_QUEUE", "begins with amq., which the broker reserves")
	}
}

// Queue returns the library's description of the queue.
func (q *Queue) Queue() amqpx.Queue {
	return amqpx.Queue{Name: q.Name, Type: q.Type, Transient: !q.Durable}
}

// Options returns the library's options for these settings.
func (q *Queue) Options() []amqpx.Option {
	return []amqpx.Option{
		amqpx.WithQueue(q.Queue()),
		amqpx.WithShards(q.Shards),
		amqpx.WithPersistent(q.Persistent),
		amqpx.WithBatch(q.Batch),
		amqpx.WithControl(q.Control),
		amqpx.WithMaxMessageSize(q.MaxMessageBytes),
	}
}
