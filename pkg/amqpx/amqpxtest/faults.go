package amqpxtest

import (
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Fault is what happens to one message between a client and a server, see [Broker.FailRequests],
// [Broker.FailResponses], [Broker.FailOpenings] and [Broker.FailFrames]. The zero Fault is [Pass].
type Fault struct {
	kind brokertest.Fault
	late time.Duration
}

// Pass is no fault: the message passes. It stands before the fault of a later message.
func Pass() Fault { return Fault{} }

// Nack makes the broker refuse the message (basic.nack) and drop it.
//
// A request: the call ends with [amqpx.CodeUnavailable], [amqpx.MayHaveRun] and
// [amqpx.ErrQueueUnavailable], because RabbitMQ may nack a message that it has delivered. An
// idempotent call is sent again and succeeds, and so is any call to a quorum queue, whose nacks are
// proofs. A response: the server sends it again, and the call succeeds.
func Nack() Fault { return Fault{kind: brokertest.FaultNack} }

// Lose makes the broker confirm the message and lose it.
//
// A request or a response: the call ends at its deadline, with [amqpx.CodeDeadlineExceeded] and
// [amqpx.MayHaveRun]. With [amqpx.WithAttemptTimeout] an idempotent call is sent again and
// succeeds; if the response was lost, the server sends it again and the handler does not run twice.
func Lose() Fault { return Fault{kind: brokertest.FaultSwallow} }

// Duplicate makes the broker deliver the message twice.
//
// A request: the call succeeds. A server runs the handler once; two servers may both run it. A
// response: the call succeeds, and the client counts one more response in ClientStats.Duplicates.
func Duplicate() Fault { return Fault{kind: brokertest.FaultTwice} }

// Delay makes the broker confirm the message at once and enqueue the message after d, behind the
// messages that arrive meanwhile.
//
// A request or a response: the call succeeds after d. If the deadline is earlier, the call ends
// with [amqpx.CodeDeadlineExceeded] and [amqpx.MayHaveRun]: the request expires and never runs,
// the response counts in ClientStats.Late.
func Delay(d time.Duration) Fault { return Fault{kind: brokertest.FaultLate, late: d} }

// DisconnectBefore ends the connection of the message's sender, and the message does not arrive.
// The sender connects again by itself.
//
// A request: the call ends with [amqpx.CodeUnavailable], [amqpx.MayHaveRun] and
// [amqpx.ErrOutcomeUnknown]; an idempotent call is sent again and succeeds. A response: the server
// sends it again, and the call succeeds.
func DisconnectBefore() Fault { return Fault{kind: brokertest.FaultLostUnconfirmed} }

// DisconnectAfter ends the connection of the message's sender after the message has arrived, and
// before the sender knows. The sender connects again by itself.
//
// A request: as with [DisconnectBefore], but the handler runs. A response: the call succeeds.
func DisconnectAfter() Fault { return Fault{kind: brokertest.FaultCutUnconfirmed} }

// FailRequests sets the faults of the next messages with requests to a queue, one fault for each
// message in order, after the faults set before. Consecutive calls are one message each;
// concurrent calls may share one message and its fault. The copy of a request that a server gives
// back to the queue counts too. For streams see [Broker.FailOpenings] and [Broker.FailFrames].
func (b *Broker) FailRequests(queue string, faults ...Fault) {
	b.memory.With(func(*brokertest.Broker) {
		b.requests[queue] = append(b.requests[queue], faults...)
	})
}

// FailResponses sets the faults of the next messages with responses of the servers of a queue, like
// FailRequests. With [amqpx.ReplyDirect] a response belongs to no queue, and has the faults of the
// queue "".
func (b *Broker) FailResponses(queue string, faults ...Fault) {
	b.memory.With(func(*brokertest.Broker) {
		b.responses[queue] = append(b.responses[queue], faults...)
	})
}

// FailOpenings sets the faults of the next openings of streams to the servers of a queue, like
// FailRequests. A stream is never sent again, so its client sees
//
//   - with [Nack], [amqpx.CodeUnavailable], [amqpx.MayHaveRun] and [amqpx.ErrQueueUnavailable]; with a
//     quorum queue and [amqpx.WaitForServer] the stream opens a second later;
//   - with [Lose], [amqpx.CodeDeadlineExceeded] at the deadline, or [amqpx.CodeUnavailable] and
//     [amqpx.ErrNoServer] after a minute, both with [amqpx.MayHaveRun];
//   - with [Duplicate], nothing: a server runs the handler once, and a second server that runs it, too,
//     is told that the stream is canceled;
//   - with [Delay], a stream that begins later;
//   - with [DisconnectBefore] and [DisconnectAfter], [amqpx.CodeUnavailable] and [amqpx.MayHaveRun].
func (b *Broker) FailOpenings(queue string, faults ...Fault) {
	b.memory.With(func(*brokertest.Broker) {
		b.openings[queue] = append(b.openings[queue], faults...)
	})
}

// FailFrames sets the faults of the next messages with frames of streams, items above all, between the
// clients and servers of a queue, in either direction, like FailRequests. The first such message of a
// stream is the server's acceptance, which may have items; items sent meanwhile are one message. The
// client sees
//
//   - with [Nack], [DisconnectBefore] and [DisconnectAfter], [amqpx.CodeUnavailable] and
//     [amqpx.MayHaveRun], at the latest after four times the keep-alive time
//     ([amqpx.WithStreamKeepAlive]);
//   - with [Lose], [amqpx.CodeDataLoss] and [amqpx.MayHaveRun] as soon as a later item, or the end, shows
//     the gap; if neither side sends anything more, the stream waits until its deadline;
//   - with [Delay], the same if another message overtakes this one, otherwise a later item;
//   - with [Duplicate], nothing.
func (b *Broker) FailFrames(queue string, faults ...Fault) {
	b.memory.With(func(*brokertest.Broker) {
		b.frames[queue] = append(b.frames[queue], faults...)
	})
}

// plan returns the fault of a message. The caller holds the lock of the broker in memory.
func (b *Broker) plan(key string, msg *amqp.Publishing) (brokertest.Fault, time.Duration) {
	if len(b.requests) == 0 && len(b.responses) == 0 && len(b.openings) == 0 && len(b.frames) == 0 {
		return brokertest.FaultNone, 0
	}
	if msg.ContentType == wire.ContentTypeFrames {
		return b.planFrames(key)
	}
	if queue, _, found := strings.Cut(key, ".reply."); found {
		return next(b.responses, queue)
	}
	if strings.HasPrefix(key, wire.DirectReplyTo) {
		return next(b.responses, "")
	}
	if len(b.requests[key]) > 0 {
		return next(b.requests, key)
	}
	for queue := range b.requests {
		if carries(queue, key) {
			return next(b.requests, queue)
		}
	}
	return brokertest.FaultNone, 0
}

// planFrames is plan for a message of streams.
func (b *Broker) planFrames(key string) (brokertest.Fault, time.Duration) {
	if queue, opens := strings.CutSuffix(key, ".streams"); opens {
		return next(b.openings, queue)
	}
	if queue, _, toClient := strings.Cut(key, ".reply."); toClient {
		return next(b.frames, queue)
	}
	return next(b.frames, key[:max(strings.LastIndex(key, ".s."), 0)])
}

// carries reports whether requests to a queue travel with a routing key: that of the queue, of its
// queue for batches, or of a shard.
func carries(queue, key string) bool {
	rest, found := strings.CutPrefix(key, queue)
	if rest = strings.TrimSuffix(rest, ".batch"); !found || rest == "" {
		return found
	}
	number, found := strings.CutPrefix(rest, ".")
	_, err := strconv.Atoi(number)
	return found && err == nil
}

// next removes and returns the next fault of a queue.
func next(planned map[string][]Fault, queue string) (brokertest.Fault, time.Duration) {
	faults := planned[queue]
	if len(faults) == 0 {
		return brokertest.FaultNone, 0
	}
	if planned[queue] = faults[1:]; len(faults) == 1 {
		delete(planned, queue)
	}
	return faults[0].kind, faults[0].late
}
