package amqpx

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
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
	// Durable preserves the queue when the broker restarts. The default is false; a quorum
	// queue must be durable.
	Durable bool
	// MaxLength and MaxBytes bound the messages that wait in the queue, by number and by bytes
	// of their bodies (https://www.rabbitmq.com/docs/maxlength). The broker refuses a request
	// beyond a bound, and the call ends with [CodeResourceExhausted]. The default 0 is no
	// bound.
	MaxLength, MaxBytes int

	dropHead bool // beyond a bound the broker drops the oldest message, instead of refusing the newest
}

// maxQueueName leaves room for the suffixes of companion queues, such as reply queues.
const maxQueueName = maxShortString - len(".reply.") - len("00000000-0000-0000-0000-000000000000")

// replyExpiry is the expiry (x-expires) of a reply queue after its last consumer ended.
const replyExpiry = 5 * time.Minute

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
		if !q.Durable {
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

// declareOrAdopt declares a queue. An existing queue with other properties is adopted as it
// is: declareOrAdopt passes the difference to warn and returns the queue's properties. It
// refuses a stream. A failed declaration closes its channel, so each declaration has a channel
// of its own and the session's channels never see the exception.
func (q Queue) declareOrAdopt(l brokerConn, warn func(difference string)) (foundQueue, error) {
	found := foundQueue{arguments: q.arguments()}
	durable, autoDelete := q.Durable, false
	difference := ""
	var first *amqp.Error
	for range maxDifferences {
		err := withTempChannel(l, func(ch channel) error {
			_, err := ch.QueueDeclare(q.Name, durable, autoDelete, false, false, found.arguments)
			return err
		})
		var refused *amqp.Error
		if !errors.As(err, &refused) || refused.Code != amqp.PreconditionFailed {
			if err == nil {
				difference, err = q.checkType(l, durable, autoDelete, &found, difference)
			}
			if err == nil && difference != "" {
				warn(difference)
			}
			return found, atStep(stepDeclare, q.Name, err)
		}
		first = cmp.Or(first, refused)
		difference = cmp.Or(difference, refused.Reason)
		name, value, ok := currentArgument(refused.Reason)
		if !ok {
			break
		}
		switch name {
		case "durable":
			durable = value == "true"
		case "auto_delete":
			autoDelete = value == "true"
		default:
			found.set(name, value)
		}
		if value == queueStream && name == amqp.QueueTypeArg {
			return found, atStep(stepDeclare, q.Name, errStream)
		}
	}
	if err := withTempChannel(l, func(ch channel) error {
		_, err := ch.QueueDeclarePassive(q.Name, q.Durable, false, false, false, nil)
		return err
	}); err != nil {
		if isNotFound(err) { // the queue does not exist, so the broker refused to create it
			err = first
		}
		return found, atStep(stepDeclare, q.Name, err)
	}
	warn(difference)
	return found, nil
}

// checkType finds out whether a queue declared without a type is a classic queue: the virtual
// host may have another default type. It returns the difference to report, and an error if the
// queue is a stream.
func (q Queue) checkType(l brokerConn, durable, autoDelete bool, found *foundQueue, difference string) (string, error) {
	if _, known := found.arguments[amqp.QueueTypeArg]; known {
		return difference, nil
	}
	args := maps.Clone(found.arguments)
	if args == nil {
		args = amqp.Table{}
	}
	args[amqp.QueueTypeArg] = string(QueueClassic)
	err := withTempChannel(l, func(ch channel) error {
		_, err := ch.QueueDeclare(q.Name, durable, autoDelete, false, false, args)
		return err
	})
	refused, ok := errors.AsType[*amqp.Error](err)
	if !ok || refused.Code != amqp.PreconditionFailed {
		return difference, err
	}
	name, value, ok := currentArgument(refused.Reason)
	if !ok || name != amqp.QueueTypeArg || value == nil {
		return difference, nil
	}
	if value == queueStream {
		return difference, errStream
	}
	found.set(name, value)
	return cmp.Or(difference, refused.Reason), nil
}

const (
	// maxDifferences bounds the declarations that determine a queue's properties.
	maxDifferences = 16
	// queueStream is a type of queue without use for RPC.
	queueStream = "stream"
)

// errStream refuses a request queue that is a stream.
var errStream error = &kindError{kind: FaultQueueStream}

// set records the value of a queue's argument; nil means that the queue lacks the argument.
func (f *foundQueue) set(name string, value any) {
	args := maps.Clone(f.arguments)
	if args == nil {
		args = amqp.Table{}
	}
	if value == nil {
		delete(args, name)
	} else {
		args[name] = value
	}
	f.arguments = args
}

// inequivalent matches RabbitMQ's error for a declaration with other properties than the queue
// has. The error names the first property with a difference.
var inequivalent = regexp.MustCompile(`inequivalent arg '([^']+)' for queue .* but current is (?:(none)|the value '(.*)' of type '(\w+)'|'(.*)')$`)

// currentArgument returns the name and the value of the property in the error of a refused
// declaration.
func currentArgument(reason string) (name string, value any, ok bool) {
	m := inequivalent.FindStringSubmatch(reason)
	if m == nil {
		return "", nil, false
	}
	name, none, typed, kind, plain := m[1], m[2], m[3], m[4], m[5]
	switch {
	case none != "":
		return name, nil, true
	case kind == "":
		return name, plain, true
	case kind == "bool":
		return name, typed == "true", true
	case kind == "longstr":
		return name, typed, true
	}
	n, err := strconv.ParseInt(typed, 10, 64)
	return name, n, err == nil
}

// findReplyQueue checks that a client's reply queue exists.
func findReplyQueue(l brokerConn, name string) error {
	return atStep(stepDeclare, name, withTempChannel(l, func(ch channel) error {
		_, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		return err
	}))
}

// declareReplyQueue declares a client's reply queue.
func declareReplyQueue(l brokerConn, name string, kind QueueType) error {
	args := amqp.Table{amqp.QueueTTLArg: replyExpiry.Milliseconds()}
	if kind == QueueQuorum {
		args[amqp.QueueTypeArg] = string(QueueQuorum)
	}
	return atStep(stepDeclare, name, withTempChannel(l, func(ch channel) error {
		_, err := ch.QueueDeclare(name, true, false, false, false, args)
		return err
	}))
}

// withTempChannel runs f on a channel of its own. It closes the channel if f succeeds; after
// an exception the channel is closed already.
func withTempChannel(l brokerConn, f func(channel) error) error {
	ch, err := l.channel()
	if err != nil {
		return atStep(stepChannel, "", err)
	}
	if err := f(ch); err != nil {
		return err
	}
	return ch.Close()
}
