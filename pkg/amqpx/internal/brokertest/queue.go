package brokertest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Queue is a queue of a Broker.
type Queue struct {
	name       string
	Durable    bool
	Args       amqp.Table
	autoDelete bool
	owner      *Conn // the connection of an exclusive queue
	Messages   []*Message
	Consumers  []*Consumer // in turn, the next first
	MaxLength  int         // With overflow reject-publish; 0: no bound
	priorities int64       // The highest priority, x-max-priority; 0: the queue has no priorities
	Expired    int         // Messages dropped at their expiration
	unused     *time.Timer // x-expires; nil while the queue has consumers
	timed      *Message    // the head for which a timer runs
}

// Message is a message in a queue, or a delivery without an acknowledgement.
type Message struct {
	Msg         amqp.Publishing
	exchange    string // where the message was published
	key         string
	expires     time.Time // zero: never
	Redelivered bool
}

// Declare creates a queue, or returns an error if the queue exists with other properties. The
// caller holds mu.
func (b *Broker) Declare(name string, durable bool, args amqp.Table) *amqp.Error {
	_, refused := b.declare(name, durable, false, args)
	return refused
}

// declare is Declare for a queue that may be deleted automatically. It returns the queue if it
// is new. The caller holds mu.
func (b *Broker) declare(name string, durable, autoDelete bool, args amqp.Table) (*Queue, *amqp.Error) {
	if q := b.Queues[name]; q != nil {
		return nil, q.compare(durable, autoDelete, args)
	}
	q := &Queue{name: name, Durable: durable, autoDelete: autoDelete, Args: maps.Clone(args)}
	if limit, ok := args[amqp.QueueMaxLenArg].(int64); ok && args[amqp.QueueOverflowArg] == amqp.QueueOverflowRejectPublish {
		q.MaxLength = int(limit)
	}
	q.priorities, _ = args["x-max-priority"].(int64)
	b.Queues[name] = q
	b.startExpiry(q)
	return q, nil
}

// compare returns the exception for a declaration with another value of a property, which names
// the first difference, or nil.
func (q *Queue) compare(durable, autoDelete bool, args amqp.Table) *amqp.Error {
	if q.Durable != durable {
		return q.inequivalent("durable", durable, q.Durable)
	}
	if q.autoDelete != autoDelete {
		return q.inequivalent("auto_delete", autoDelete, q.autoDelete)
	}
	all := maps.Clone(q.Args)
	if all == nil {
		all = amqp.Table{}
	}
	maps.Copy(all, args)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		got, current := args[name], q.Args[name]
		if name == amqp.QueueTypeArg && typeOf(got) == typeOf(current) {
			continue
		}
		if got != current {
			return q.inequivalent(name, got, current)
		}
	}
	return nil
}

// typeOf returns the value of x-queue-type for a comparison: no value is equal to classic.
func typeOf(value any) any {
	if value == nil {
		return amqp.QueueTypeClassic
	}
	return value
}

// inequivalent returns the exception for a declaration with another value of a property.
func (q *Queue) inequivalent(property string, got, current any) *amqp.Error {
	form := func(value, other any) string {
		switch value.(type) {
		case nil:
			return "none"
		case int64:
			if other == nil {
				return fmt.Sprintf("the value '%v' of type 'long'", value)
			}
		case string:
			if other == nil {
				return fmt.Sprintf("the value '%v' of type 'longstr'", value)
			}
		}
		return fmt.Sprintf("'%v'", value)
	}
	return &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: fmt.Sprintf(
		"PRECONDITION_FAILED - inequivalent arg '%s' for queue '%s' in vhost '/': received %s but current is %s",
		property, q.name, form(got, current), form(current, got))}
}

// startExpiry starts the x-expires timer of a queue without consumers. The caller holds mu.
func (b *Broker) startExpiry(q *Queue) {
	ms, ok := q.Args[amqp.QueueTTLArg].(int64)
	if !ok || len(q.Consumers) > 0 {
		return
	}
	if q.unused != nil {
		q.unused.Stop()
	}
	q.unused = time.AfterFunc(time.Duration(ms)*time.Millisecond, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.Queues[q.name] == q && len(q.Consumers) == 0 {
			delete(b.Queues, q.name)
		}
	})
}

// Remove deletes a queue and cancels its consumers. The caller holds mu.
func (b *Broker) Remove(q *Queue) {
	delete(b.Queues, q.name)
	for _, c := range q.Consumers {
		delete(c.ch.consumers, c.tag)
		c.ch.link.post(func() {
			for _, n := range c.ch.cancels {
				n <- c.tag
			}
			close(c.out)
		})
	}
	q.Consumers = nil
}

// Missing returns the exception for a queue that does not exist.
func Missing(name string) *amqp.Error {
	return &amqp.Error{Code: amqp.NotFound, Server: true, Reason: fmt.Sprintf("NOT_FOUND - no queue '%s' in vhost '/'", name)}
}

// enqueue puts a message into a queue and reports false if the queue is full. The caller holds
// mu.
func (b *Broker) enqueue(q *Queue, m *Message) bool {
	if q.MaxLength > 0 && len(q.Messages) >= q.MaxLength {
		return false
	}
	ttl, limited := q.Args[amqp.QueueMessageTTLArg].(int64)
	if own, err := strconv.ParseInt(m.Msg.Expiration, 10, 64); err == nil && (!limited || own < ttl) {
		ttl, limited = own, true
	}
	if limited {
		m.expires = time.Now().Add(time.Duration(ttl) * time.Millisecond)
	}
	q.insert(m)
	b.Dispatch(q)
	return true
}

// insert puts a message behind the messages that have at least its priority.
func (q *Queue) insert(m *Message) {
	at := len(q.Messages)
	for at > 0 && q.priorityOf(m) > q.priorityOf(q.Messages[at-1]) {
		at--
	}
	q.Messages = slices.Insert(q.Messages, at, m)
}

// priorityOf returns the priority of a message in the queue.
func (q *Queue) priorityOf(m *Message) int64 { return min(int64(m.Msg.Priority), q.priorities) }

// Dispatch delivers messages to the queue's consumers in turn, up to their prefetch. The
// caller holds mu.
func (b *Broker) Dispatch(q *Queue) {
	for len(q.Messages) > 0 {
		m := q.Messages[0]
		if !m.expires.IsZero() && !time.Now().Before(m.expires) {
			q.Messages[0] = nil
			q.Messages = q.Messages[1:]
			q.Expired++
			b.deadLetter(q, m, deathExpired)
			continue
		}
		i := q.nextConsumer()
		if i < 0 {
			b.awaitExpiration(q, m)
			return
		}
		q.Messages[0] = nil
		q.Messages = q.Messages[1:]
		c := q.Consumers[i]
		q.Consumers = append(slices.Delete(q.Consumers, i, i+1), c)
		c.ch.deliver(c, m)
	}
}

// awaitExpiration starts a timer for the expiration of the head of a queue. The caller holds mu.
func (b *Broker) awaitExpiration(q *Queue, head *Message) {
	if head.expires.IsZero() || q.timed == head {
		return
	}
	q.timed = head
	time.AfterFunc(time.Until(head.expires), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.Dispatch(q)
	})
}

// nextConsumer returns the index of the next consumer with room, of the highest priority, or
// -1 if every consumer is at its prefetch.
func (q *Queue) nextConsumer() int {
	next := -1
	for i, c := range q.Consumers {
		if c.hasRoom() && (next < 0 || c.priority > q.Consumers[next].priority) {
			next = i
		}
	}
	return next
}

// Requeue puts a message back before the messages of its priority. The caller holds mu.
func (b *Broker) Requeue(q *Queue, m *Message) {
	m.Redelivered = true
	at := 0
	for at < len(q.Messages) && q.priorityOf(q.Messages[at]) > q.priorityOf(m) {
		at++
	}
	q.Messages = slices.Insert(q.Messages, at, m)
}

// The reasons of dead-lettering.
const (
	deathExpired  = "expired"
	deathRejected = "rejected"
)

// deadLetter publishes a message that has left its queue to the queue's dead-letter exchange, if
// the queue has one. The caller holds mu.
func (b *Broker) deadLetter(q *Queue, m *Message, reason string) {
	exchange, ok := q.Args["x-dead-letter-exchange"].(string)
	if !ok || b.Queues[q.name] != q {
		return
	}
	key := m.key
	if own, ok := q.Args["x-dead-letter-routing-key"].(string); ok {
		key = own
	}
	targets := append(slices.Clone(b.Fanouts[exchange]), b.Directs[exchange][key]...)
	if exchange == "" {
		targets = []string{key}
	}
	msg := m.Msg
	deaths := m.deathsWith(q, reason)
	msg.Headers = maps.Clone(msg.Headers)
	if msg.Headers == nil {
		msg.Headers = amqp.Table{}
	}
	if msg.Headers[wire.HeaderDeath] == nil {
		msg.Headers["x-first-death-reason"] = reason
		msg.Headers["x-first-death-queue"] = q.name
		msg.Headers["x-first-death-exchange"] = m.exchange
	}
	msg.Headers[wire.HeaderDeath], msg.Expiration = deaths, ""
	for _, name := range targets {
		if target := b.Queues[name]; target != nil && !circles(deaths, name) {
			b.enqueue(target, &Message{Msg: msg, exchange: exchange, key: key})
		}
	}
}

// deathsWith returns the x-death header of a message with a further death, the newest first.
func (m *Message) deathsWith(q *Queue, reason string) []any {
	death := amqp.Table{
		"reason": reason, "queue": q.name, "exchange": m.exchange, "routing-keys": []any{m.key}, "count": int64(1), "time": time.Now(),
	}
	if m.Msg.Expiration != "" {
		death["original-expiration"] = m.Msg.Expiration
	}
	all := []any{death}
	earlier, _ := m.Msg.Headers[wire.HeaderDeath].([]any)
	for _, e := range earlier {
		d, _ := e.(amqp.Table)
		if count, ok := d["count"].(int64); ok && d["queue"] == q.name && d["reason"] == reason {
			again := maps.Clone(d)
			again["count"] = count + 1
			all[0] = again
		} else {
			all = append(all, e)
		}
	}
	return all
}

// circles reports whether a message with these deaths has been in a queue before and no consumer
// rejected it since. The broker drops the message.
func circles(deaths []any, queue string) bool {
	seen := false
	for _, e := range deaths {
		d, _ := e.(amqp.Table)
		if d["reason"] == deathRejected {
			return false
		}
		seen = seen || d["queue"] == queue
	}
	return seen
}
