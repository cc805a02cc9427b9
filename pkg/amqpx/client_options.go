package amqpx

import (
	"errors"
	"fmt"
	"time"
)

// Defaults of clients.
const (
	// DefaultTimeout is the deadline of a call whose context has none.
	DefaultTimeout = 30 * time.Second
	// DefaultMaxInFlight bounds the calls that wait for an answer.
	DefaultMaxInFlight = 65536
)

// ReplyMode chooses how answers come back to a client.
type ReplyMode string

const (
	// ReplyQueue is the default: one durable queue for each client, which expires
	// unused after five minutes. It outlives the link, so answers wait there while
	// the client reconnects.
	ReplyQueue ReplyMode = "queue"
	// ReplyDirect uses RabbitMQ's direct reply-to
	// (https://www.rabbitmq.com/docs/direct-reply-to): no queue, but answers in
	// flight are lost with the link, and publishing shares the consuming connection.
	ReplyDirect ReplyMode = "direct"
)

type clientConfig struct {
	config

	replyMode   ReplyMode
	timeout     time.Duration
	maxInFlight int
	callOptions []CallOption
}

func newClientConfig(url string, opts []ClientOption) (*clientConfig, error) {
	c := &clientConfig{
		config:      defaultConfig(),
		replyMode:   ReplyQueue,
		timeout:     DefaultTimeout,
		maxInFlight: DefaultMaxInFlight,
	}
	c.setURLs(url)
	for _, o := range opts {
		o.applyClient(c)
	}
	if c.dialer == nil {
		c.dialer = netDialer{heartbeat: c.heartbeat, writeTimeout: c.writeTimeout, tls: c.tls}
	}
	faults := []error{c.validate()}
	if c.replyMode != ReplyQueue && c.replyMode != ReplyDirect {
		faults = append(faults, fmt.Errorf("reply mode %q: want %q or %q", c.replyMode, ReplyQueue, ReplyDirect))
	}
	if c.timeout <= 0 {
		faults = append(faults, fmt.Errorf("timeout %v: want more than 0", c.timeout))
	}
	if c.maxInFlight < 1 {
		faults = append(faults, fmt.Errorf("max in flight %d: want at least 1", c.maxInFlight))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("amqpx: client: %w", err)
	}
	return c, nil
}

type clientOption func(*clientConfig)

func (o clientOption) applyClient(c *clientConfig) { o(c) }

// WithReplyMode chooses how answers come back; the default is [ReplyQueue].
func WithReplyMode(m ReplyMode) ClientOption {
	return clientOption(func(c *clientConfig) { c.replyMode = m })
}

// WithTimeout sets the deadline of calls whose context has none; the default is
// [DefaultTimeout].
func WithTimeout(d time.Duration) ClientOption {
	return clientOption(func(c *clientConfig) { c.timeout = d })
}

// WithMaxInFlight bounds the calls that are under way at once; the default is
// [DefaultMaxInFlight]. A call beyond the bound waits for a place until its
// deadline, and has not run when it gives up there.
func WithMaxInFlight(n int) ClientOption {
	return clientOption(func(c *clientConfig) { c.maxInFlight = n })
}

// WithCallOptions sets options for every call; a call's own come after them.
func WithCallOptions(opts ...CallOption) ClientOption {
	return clientOption(func(c *clientConfig) { c.callOptions = append(c.callOptions, opts...) })
}
