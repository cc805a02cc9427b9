package amqpx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/stream"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Streams: what clients and servers share. Package stream has the state machine.

// Defaults of streams.
const (
	// DefaultStreamItems and DefaultStreamBytes are the limits of a stream's window.
	DefaultStreamItems = stream.MaxWindowItems
	DefaultStreamBytes = stream.MaxWindowBytes
	// DefaultStreamMemory bounds the windows of all streams of a client or a server, 256 MiB.
	DefaultStreamMemory = 256 << 20
	// DefaultStreamKeepAlive is the silence of a peer after which it gets a ping.
	DefaultStreamKeepAlive = 5 * time.Second
	// DefaultMaxStreams and DefaultMaxClientStreams bound the streams of a server, in total and of
	// one client.
	DefaultMaxStreams       = 1000
	DefaultMaxClientStreams = 100
)

// WithStreamMemory bounds the windows of all open streams together, in bytes; the default is
// [DefaultStreamMemory]. A window is what the peer may send before the application takes it. It
// begins with 64 KiB, and grows up to the limit of [StreamWindow] while the application waits for
// items that the peer may not send yet; beyond the bound no window grows.
func WithStreamMemory(bytes int) Option {
	return option(func(c *config) { c.streams.memory = bytes })
}

// WithStreamKeepAlive sets the time of silence after which a client asks the server of its open
// streams for a sign of life, at least 100 ms; the default is [DefaultStreamKeepAlive]. A server
// waits twice as long before it asks. The streams with a peer end with [CodeUnavailable] as soon as
// the broker reports that the peer's connection has ended, or if neither of two questions, one after
// the other, is answered: four times this time after the broker has confirmed the first question.
// While the broker blocks publishing, silence does not end a stream.
func WithStreamKeepAlive(d time.Duration) Option {
	return option(func(c *config) { c.streams.keepAlive = d })
}

// StreamWindow sets the limits of the window of a stream: how many items, and how many bytes of
// them, wait at the client until the application takes them. One item more may wait if the bytes
// are not used up. The defaults are [DefaultStreamItems] and [DefaultStreamBytes]; smaller values
// are for streams whose reader is slow. Values below 1 count as 1. A call has no window.
func StreamWindow(items, bytes int) CallOption {
	return func(c *callConfig) { c.windowItems, c.windowBytes = max(items, 1), max(bytes, 1) }
}

// streamConfig has the settings of streams that clients and servers share.
type streamConfig struct {
	memory    int
	keepAlive time.Duration
}

func defaultStreamConfig() streamConfig {
	return streamConfig{memory: DefaultStreamMemory, keepAlive: DefaultStreamKeepAlive}
}

func (c *streamConfig) validate() error {
	var faults []error
	if c.memory < 1 {
		faults = append(faults, fmt.Errorf("stream memory %d: want at least 1 byte", c.memory))
	}
	if least := 100 * time.Millisecond; c.keepAlive < least {
		faults = append(faults, fmt.Errorf("stream keep-alive %v: want at least %v", c.keepAlive, least))
	}
	return errors.Join(faults...)
}

// table returns the settings of the table of streams.
func (c *streamConfig) table(server bool, onWaiting func()) stream.Config {
	return stream.Config{Server: server, KeepAlive: c.keepAlive, Memory: int64(c.memory), OnWaiting: onWaiting}
}

// Progress tells how far a stream came.
type Progress struct {
	// Sent is the number of items that this side has sent.
	Sent uint64
	// Taken is the last reported number of sent items that the application of the other side has
	// taken.
	Taken uint64
	// Received is the number of items that the application of this side has taken.
	Received uint64
}

// ProgressOf returns how far a stream came before err ended it; zero for any other error.
func ProgressOf(err error) Progress {
	if e := codedError(err); e != nil && e.progress != nil {
		return *e.progress
	}
	return Progress{}
}

// progressFrom converts the progress of package stream.
func progressFrom(p stream.Progress) Progress {
	return Progress{Sent: p.Sent, Taken: p.Taken, Received: p.Received}
}

// StreamStats has the counts of the streams of a client or a server since its construction.
type StreamStats struct {
	// Open is the number of open streams, Opened the number of all streams, Failed the number of
	// streams that ended with an error, cancellations included. Refused counts the openings that a
	// server refused.
	Open    int64  `json:"open"`
	Opened  uint64 `json:"opened"`
	Failed  uint64 `json:"failed"`
	Refused uint64 `json:"refused"`
	// The sent items, the items taken by the application of this side, and the bytes of both.
	ItemsSent     uint64 `json:"items_sent"`
	ItemsReceived uint64 `json:"items_received"`
	BytesSent     uint64 `json:"bytes_sent"`
	BytesReceived uint64 `json:"bytes_received"`
	// MessagesSent counts the messages with frames: a message may have many items, of several
	// streams.
	MessagesSent uint64 `json:"messages_sent"`
	// Late counts the frames, and messages, that belong to no stream: of streams that have ended,
	// or forged.
	Late uint64 `json:"late"`
	// SendWait is how long Send has waited for credit, all streams together.
	SendWait time.Duration `json:"-"`
}

func streamStats(t *stream.Table, refused uint64) StreamStats {
	n := &t.Counts
	return StreamStats{
		Open: n.Open.Load(), Opened: n.Opened.Load(), Failed: n.Failed.Load(), Refused: refused,
		ItemsSent: n.ItemsSent.Load(), ItemsReceived: n.ItemsReceived.Load(),
		BytesSent: n.BytesSent.Load(), BytesReceived: n.BytesReceived.Load(),
		MessagesSent: n.Messages.Load(), Late: n.Late.Load(), SendWait: time.Duration(n.SendWait.Load()),
	}
}

// streamsSuffix follows the request queue's name in the name of the queue of openings, and
// streamInfix in the names of the queues of servers for frames.
const (
	streamsSuffix = ".streams"
	streamInfix   = ".s."
)

// streamsQueue returns the queue of openings, with the properties of the request queue.
func (q Queue) streamsQueue() Queue {
	q.Name += streamsSuffix
	return q
}

// newStreamQueueName returns a name for a server's queue of frames.
func (q Queue) newStreamQueueName() string {
	return q.Name + streamInfix + strings.ReplaceAll(newID(), "-", "")
}

// openStreamQueue declares this side's queue of frames and consumes it, on a channel of its own. The
// queue goes with the connection.
func openStreamQueue(s *transport.Session, name string) (transport.Channel, <-chan amqp.Delivery, error) {
	ch, err := s.Sub.Channel()
	if err != nil {
		return nil, nil, err
	}
	if _, err = ch.QueueDeclare(name, false, true, true, false, nil); err != nil {
		return ch, nil, transport.AtStep(transport.StepDeclare, name, err)
	}
	frames, err := ch.Consume(name, newID()+transport.FramesTagSuffix, true, true, false, false, nil)
	return ch, frames, transport.AtStep(transport.StepConsume, name, err)
}

// frameMessage is a message of streams in the outbox. It implements publish.Outbound.
type frameMessage struct {
	*stream.Message

	user    string
	openTo  string                                       // the queue of openings
	proves  bool                                         // a nack proves that no server has the opening
	opening func(s *stream.Stream, msg *amqp.Publishing) // completes an opening; nil for a server
	link    func() *stream.Link
}

// BeginSend implements publish.Outbound.
func (m *frameMessage) BeginSend(uint64) bool { return m.Begin() }

// Publishing implements publish.Outbound.
func (m *frameMessage) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	msg = amqp.Publishing{ContentType: wire.ContentTypeFrames, ReplyTo: m.From(), UserId: m.user, DeliveryMode: amqp.Transient, Body: m.Body()}
	s := m.Opening()
	if s == nil {
		return m.Queue(), true, msg
	}
	m.opening(s, &msg)
	return m.openTo, true, msg
}

// OnResult implements publish.Outbound.
func (m *frameMessage) OnResult(f publish.Result) {
	switch f {
	case publish.Confirmed:
		m.Confirmed()
	case publish.Returned: // the exchange is missing
		number := uint64(0)
		if s := m.Opening(); s != nil {
			number = s.Number()
		}
		if l := m.link(); l != nil {
			l.Returned(m.Queue(), number)
		}
		m.Confirmed()
	case publish.Nacked:
		m.Nacked(m.proves)
	default:
		m.Failed(nil)
	}
}

// Reject implements publish.Rejectable.
func (m *frameMessage) Reject(cause error) { m.Failed(cause) }

// errStreamQueueGone is why a link of streams has ended although its session goes on.
var errStreamQueueGone error = &transport.KindError{Kind: FaultConsumerCanceled}

// streamReason returns code and text for a stream that ended without an end or a reset of the peer.
func streamReason(r *stream.Result, peer string) (code Code, text string, sentinel error) {
	switch r.Reason {
	case stream.ReasonPeerGone:
		return CodeUnavailable, "the connection of the " + peer + " has ended", nil
	case stream.ReasonSilent:
		return CodeUnavailable, "the " + peer + " does not answer", nil
	case stream.ReasonLinkLost:
		return CodeUnavailable, "the connection to the broker was lost", nil
	case stream.ReasonUnpublished:
		return CodeUnavailable, "the broker did not take a message of the stream", nil
	case stream.ReasonUnroutable:
		return CodeUnavailable, "", ErrUnroutable
	case stream.ReasonUnserved:
		return CodeUnavailable, "no server takes streams: none runs, or all have as many as they may have", ErrNoServer
	case stream.ReasonUnavailable:
		return CodeUnavailable, "", ErrQueueUnavailable
	case stream.ReasonCredit:
		return CodeResourceExhausted, "the " + peer + " sent more than its credit", nil
	case stream.ReasonGap:
		return CodeDataLoss, "items of the " + peer + " are missing", nil
	case stream.ReasonMalformed:
		return CodeUnavailable, "a message of the " + peer + " cannot be read", nil
	default:
		return CodeUnavailable, "", ErrClosed
	}
}

// streamError returns the error of a stream with this result; nil for a success.
func streamError(r *stream.Result, peer string) *Error {
	outcome := MayHaveRun
	if !r.Written || r.Reason == stream.ReasonUnroutable {
		outcome = DidNotRun
	}
	var e *Error
	switch {
	case r.End != nil && r.End.Failure == nil && r.Reason == stream.ReasonEnd:
		return nil
	case r.End != nil && r.End.Failure == nil:
		e = localError(CodeUnknown, outcome, nil, "the "+peer+" reset the stream without a code")
	case r.End != nil:
		e = errorOf(r.End.Failure)
		if e.code == CodeCanceled {
			e.causes = append(e.causes, context.Canceled)
		}
	case r.Reason == stream.ReasonAbandoned && r.Cause != nil:
		if own, ok := r.Cause.(*Error); ok { //nolint:errorlint // of this package, with nothing around it.
			copied := *own
			e = &copied
			e.outcome = outcome
		} else {
			e = contextError(r.Cause, outcome, nil, "")
		}
	default:
		code, text, sentinel := streamReason(r, peer)
		var causes []error
		if r.Cause != nil {
			text += ": " + r.Cause.Error()
			causes = append(causes, r.Cause)
		}
		e = localError(code, outcome, sentinel, text, causes...)
	}
	e.progress = new(progressFrom(r.Progress))
	return e
}

// encodeStreamHeader returns headers as they travel in a stream, sorted by name.
func encodeStreamHeader(header map[string]any) ([]wire.StreamHeader, error) {
	if len(header) == 0 {
		return nil, nil
	}
	header, err := wire.EncodeHeader(header)
	if err != nil {
		return nil, err
	}
	if err := wire.CheckHeader(header); err != nil {
		return nil, err
	}
	all := make([]wire.StreamHeader, 0, len(header))
	for _, name := range slices.Sorted(maps.Keys(header)) {
		if name == "" || len(name) > wire.MaxShortString {
			return nil, fmt.Errorf("header name of %d bytes: want 1 to %d", len(name), wire.MaxShortString)
		}
		before := len(all)
		if all = appendStreamValue(all, name, header[name]); len(all) == before && !isEmptyList(header[name]) {
			return nil, fmt.Errorf("header %q of type %T: want string, []byte, or a list of them", name, header[name])
		}
	}
	return all, nil
}

func isEmptyList(v any) bool {
	list, ok := v.([]any)
	return ok && len(list) == 0
}

// appendStreamValue appends the values of a header. It returns all unchanged if it cannot be sent.
func appendStreamValue(all []wire.StreamHeader, name string, value any) []wire.StreamHeader {
	switch v := value.(type) {
	case string:
		return append(all, wire.StreamHeader{Name: name, Value: v})
	case []byte:
		return append(all, wire.StreamHeader{Name: name, Value: string(v), Binary: true})
	case []any:
		before := all
		for _, element := range v {
			switch e := element.(type) {
			case string:
				all = append(all, wire.StreamHeader{Name: name, Value: e})
			case []byte:
				all = append(all, wire.StreamHeader{Name: name, Value: string(e), Binary: true})
			default:
				return before
			}
		}
		return all
	default:
		return all
	}
}

// decodeStreamHeader is the inverse of encodeStreamHeader. Reserved names are left out.
func decodeStreamHeader(headers []wire.StreamHeader) map[string]any {
	if len(headers) == 0 {
		return nil
	}
	all := make(map[string]any, len(headers))
	for i := range headers {
		h := &headers[i]
		if strings.HasPrefix(h.Name, wire.HeaderPrefix) {
			continue
		}
		var value any = h.Value
		if h.Binary {
			value = []byte(h.Value)
		}
		switch earlier := all[h.Name].(type) {
		case nil:
			all[h.Name] = value
		case []any:
			all[h.Name] = append(earlier, value)
		default:
			all[h.Name] = []any{earlier, value}
		}
	}
	return all
}

// streamID returns the correlation id of a stream for logs and middleware: the unique part of the
// client's queue, and the number.
func streamID(queue string, number uint64) string {
	return fmt.Sprintf("%s/%d", queue[strings.LastIndexByte(queue, '.')+1:], number)
}
