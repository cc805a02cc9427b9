package amqpx

import (
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// QueueType is RabbitMQ's x-queue-type.
type QueueType string

const (
	// QueueClassic lives on one node (https://www.rabbitmq.com/docs/classic-queues). It is
	// declared without arguments and is therefore equivalent to a queue that a client in any
	// language declares without arguments.
	QueueClassic QueueType = "classic"
	// QueueQuorum is replicated and always on disk
	// (https://www.rabbitmq.com/docs/quorum-queues).
	QueueQuorum QueueType = "quorum"
)

// Queue describes the request queue. Only servers declare it.
type Queue struct {
	// Name is at most 212 bytes long. Names with the prefix "amq." are reserved for the
	// broker.
	Name string
	// Type defaults to [QueueClassic] when empty.
	Type QueueType
	// Transient loses the queue when the broker restarts. The default false is a durable
	// queue; a quorum queue must be durable. RabbitMQ 4 can forbid transient queues
	// (https://www.rabbitmq.com/docs/queues#durability).
	Transient bool
	// MaxLength and MaxBytes bound the messages that wait in the queue, by number and by bytes
	// of their bodies (https://www.rabbitmq.com/docs/maxlength). The broker refuses a request
	// beyond a bound, and the call ends with [CodeResourceExhausted]. The default 0 is no
	// bound.
	MaxLength, MaxBytes int

	dropHead bool // beyond a bound the broker drops the oldest message, instead of refusing the newest
}

// maxQueueName leaves room for the suffixes of companion queues, such as reply queues.
const maxQueueName = wire.MaxShortString - len(".reply.") - len("00000000-0000-0000-0000-000000000000")

// batchQueue returns the queue for batches of requests.
func (q Queue) batchQueue() Queue {
	q.Name += batchSuffix
	return q
}

// controlExchange returns the name of the control plane's exchange.
func (q Queue) controlExchange() string { return q.Name + ".control" }

func (q Queue) validate() error {
	var faults []error
	if q.Name == "" || len(q.Name) > maxQueueName {
		faults = append(faults, fmt.Errorf("queue name of %d bytes: want 1 to %d", len(q.Name), maxQueueName))
	}
	switch q.Type {
	case "", QueueClassic:
	case QueueQuorum:
		if q.Transient {
			faults = append(faults, errors.New("a quorum queue must be durable"))
		}
	default:
		faults = append(faults, fmt.Errorf("queue type %q: want %q or %q", q.Type, QueueClassic, QueueQuorum))
	}
	if q.MaxLength < 0 || q.MaxBytes < 0 {
		faults = append(faults, fmt.Errorf("queue bounds of %d messages and %d bytes: want 0 or more", q.MaxLength, q.MaxBytes))
	}
	return errors.Join(faults...)
}

// arguments returns the arguments of the declaration, or nil if there are none.
func (q Queue) arguments() amqp.Table {
	args := amqp.Table{}
	if q.Type == QueueQuorum {
		args[amqp.QueueTypeArg] = string(QueueQuorum)
	}
	if q.MaxLength > 0 {
		args[amqp.QueueMaxLenArg] = int64(q.MaxLength)
	}
	if q.MaxBytes > 0 {
		args[amqp.QueueMaxLenBytesArg] = int64(q.MaxBytes)
	}
	if (q.MaxLength > 0 || q.MaxBytes > 0) && !q.dropHead {
		args[amqp.QueueOverflowArg] = amqp.QueueOverflowRejectPublish
	}
	if len(args) == 0 {
		return nil
	}
	return args
}

// transport.DeclareOrAdopt declares the queue, or adopts an existing queue with other properties, which
// are passed to warn.
func (q Queue) declareOrAdopt(l transport.Conn, warn func(difference string)) (transport.FoundQueue, error) {
	return transport.DeclareOrAdopt(l, transport.QueueDeclaration{Name: q.Name, Durable: !q.Transient, Arguments: q.arguments()}, warn)
}
