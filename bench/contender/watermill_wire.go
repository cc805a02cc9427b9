package contender

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Metadata keys of the messages.
const (
	watermillMethod  = "method"
	watermillReplyTo = "reply_to"
	watermillFault   = "fault"
)

// watermillCommand is the request type for watermill.
type watermillCommand struct {
	method, replyTo string
	body            []byte
}

// watermillCommands converts between commands and messages.
type watermillCommands struct{}

// Marshal implements cqrs.CommandEventMarshaler.
func (watermillCommands) Marshal(value any) (*message.Message, error) {
	c, ok := value.(*watermillCommand)
	if !ok {
		return nil, fmt.Errorf("command of type %T", value)
	}
	m := message.NewMessage(watermill.NewUUID(), c.body)
	m.Metadata.Set(watermillMethod, c.method)
	m.Metadata.Set(watermillReplyTo, c.replyTo)
	return m, nil
}

// Unmarshal implements cqrs.CommandEventMarshaler.
func (watermillCommands) Unmarshal(m *message.Message, value any) error {
	c, ok := value.(*watermillCommand)
	if !ok {
		return fmt.Errorf("command of type %T", value)
	}
	c.method, c.body = m.Metadata.Get(watermillMethod), m.Payload
	return nil
}

// Name implements cqrs.CommandEventMarshaler.
func (watermillCommands) Name(any) string { return "call" }

// NameFromMessage implements cqrs.CommandEventMarshaler.
func (watermillCommands) NameFromMessage(*message.Message) string { return "call" }

// watermillReplies converts between results and messages.
type watermillReplies struct{}

// MarshalReply implements requestreply.BackendPubsubMarshaler.
func (watermillReplies) MarshalReply(p requestreply.BackendOnCommandProcessedParams[[]byte]) (*message.Message, error) {
	m := message.NewMessage(watermill.NewUUID(), p.HandlerResult)
	if p.HandleErr != nil {
		m.Metadata.Set(watermillFault, p.HandleErr.Error())
	}
	return m, nil
}

// UnmarshalReply implements requestreply.BackendPubsubMarshaler.
func (watermillReplies) UnmarshalReply(m *message.Message) (requestreply.Reply[[]byte], error) {
	r := requestreply.Reply[[]byte]{HandlerResult: m.Payload, NotificationMessage: m}
	if fault := m.Metadata.Get(watermillFault); fault != "" {
		r.Error = errors.New(fault)
	}
	return r, nil
}

// sharedReplies distributes the responses of one subscription to the calls. Its topics are
// operation IDs.
type sharedReplies struct {
	mu      sync.Mutex
	waiting map[string]chan *message.Message
}

// newSharedReplies consumes the queue until the subscriber is closed.
func newSharedReplies(ctx context.Context, subscriber message.Subscriber, queue string) (*sharedReplies, error) {
	replies, err := subscriber.Subscribe(ctx, queue)
	if err != nil {
		return nil, err
	}
	s := &sharedReplies{waiting: make(map[string]chan *message.Message)}
	go s.read(replies) // ends when the subscriber is closed
	return s, nil
}

func (s *sharedReplies) read(replies <-chan *message.Message) {
	for m := range replies {
		id := m.Metadata.Get(requestreply.OperationIDMetadataKey)
		s.mu.Lock()
		waiting := s.waiting[id]
		delete(s.waiting, id)
		s.mu.Unlock()
		m.Ack()
		if waiting != nil {
			waiting <- m
		}
	}
}

// Subscribe implements message.Subscriber.
func (s *sharedReplies) Subscribe(ctx context.Context, operation string) (<-chan *message.Message, error) {
	reply := make(chan *message.Message, 1)
	s.mu.Lock()
	s.waiting[operation] = reply
	s.mu.Unlock()
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waiting, operation)
	})
	return reply, nil
}

// Close implements message.Subscriber. It does nothing, because dial's subscriber owns the
// subscription.
func (s *sharedReplies) Close() error { return nil }
