package transport

import (
	"cmp"
	"errors"
	"maps"
	"regexp"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// replyExpiry is the expiry (x-expires) of a reply queue after its last consumer ended.
const replyExpiry = 5 * time.Minute

// QueueDeclaration is a queue as a program wants it.
type QueueDeclaration struct {
	Name      string
	Durable   bool
	Arguments amqp.Table
}

// FoundQueue describes a queue as DeclareOrAdopt found it.
type FoundQueue struct {
	Arguments amqp.Table
}

// DeclareOrAdopt declares a queue. An existing queue with other properties is adopted as it
// is: DeclareOrAdopt passes the difference to warn and returns the queue's properties. It
// refuses a stream. A failed declaration closes its channel, so each declaration has a channel
// of its own and the session's channels never see the exception.
func DeclareOrAdopt(l Conn, q QueueDeclaration, warn func(difference string)) (FoundQueue, error) {
	found := FoundQueue{Arguments: q.Arguments}
	durable, autoDelete := q.Durable, false
	difference := ""
	var first *amqp.Error
	for range maxDifferences {
		err := WithTempChannel(l, func(ch Channel) error {
			_, err := ch.QueueDeclare(q.Name, durable, autoDelete, false, false, found.Arguments)
			return err
		})
		var refused *amqp.Error
		if !errors.As(err, &refused) || refused.Code != amqp.PreconditionFailed {
			if err == nil {
				difference, err = checkType(l, q.Name, durable, autoDelete, &found, difference)
			}
			if err == nil && difference != "" {
				warn(difference)
			}
			return found, AtStep(StepDeclare, q.Name, err)
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
			return found, AtStep(StepDeclare, q.Name, errStream)
		}
	}
	if err := WithTempChannel(l, func(ch Channel) error {
		_, err := ch.QueueDeclarePassive(q.Name, q.Durable, false, false, false, nil)
		return err
	}); err != nil {
		if IsNotFound(err) { // the queue does not exist, so the broker refused to create it
			err = first
		}
		return found, AtStep(StepDeclare, q.Name, err)
	}
	warn(difference)
	return found, nil
}

// checkType finds out whether a queue declared without a type is a classic queue: the virtual
// host may have another default type. It returns the difference to report, and an error if the
// queue is a stream.
func checkType(l Conn, queue string, durable, autoDelete bool, found *FoundQueue, difference string) (string, error) {
	if _, known := found.Arguments[amqp.QueueTypeArg]; known {
		return difference, nil
	}
	args := maps.Clone(found.Arguments)
	if args == nil {
		args = amqp.Table{}
	}
	args[amqp.QueueTypeArg] = amqp.QueueTypeClassic
	err := WithTempChannel(l, func(ch Channel) error {
		_, err := ch.QueueDeclare(queue, durable, autoDelete, false, false, args)
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
var errStream error = &KindError{Kind: FaultQueueStream}

// set records the value of a queue's argument; nil means that the queue lacks the argument.
func (f *FoundQueue) set(name string, value any) {
	args := maps.Clone(f.Arguments)
	if args == nil {
		args = amqp.Table{}
	}
	if value == nil {
		delete(args, name)
	} else {
		args[name] = value
	}
	f.Arguments = args
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

// FindExchange checks that an exchange exists.
func FindExchange(l Conn, name string) error {
	return AtStep(StepFindExchange, "", WithTempChannel(l, func(ch Channel) error {
		return ch.ExchangeDeclarePassive(name, amqp.ExchangeDirect, true, false, false, false, nil)
	}))
}

// FindReplyQueue checks that a client's reply queue exists.
func FindReplyQueue(l Conn, name string) error {
	return AtStep(StepDeclare, name, WithTempChannel(l, func(ch Channel) error {
		_, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		return err
	}))
}

// DeclareReplyQueue declares a client's reply queue, a quorum queue or a classic queue.
func DeclareReplyQueue(l Conn, name string, quorum bool) error {
	args := amqp.Table{amqp.QueueTTLArg: replyExpiry.Milliseconds()}
	if quorum {
		args[amqp.QueueTypeArg] = amqp.QueueTypeQuorum
	}
	return AtStep(StepDeclare, name, WithTempChannel(l, func(ch Channel) error {
		_, err := ch.QueueDeclare(name, true, false, false, false, args)
		return err
	}))
}

// WithTempChannel runs f on a channel of its own, and closes the channel, which an exception
// has closed already.
func WithTempChannel(l Conn, f func(Channel) error) error {
	ch, err := l.Channel()
	if err != nil {
		return AtStep(stepChannel, "", err)
	}
	err = f(ch)
	if err != nil && ch.IsClosed() {
		return err
	}
	return cmp.Or(err, ch.Close())
}

// IsNotFound reports whether the broker answered 404.
func IsNotFound(err error) bool {
	refused, ok := errors.AsType[*amqp.Error](err)
	return ok && refused.Code == amqp.NotFound
}
