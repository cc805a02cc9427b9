package main

import (
	"errors"
	"strings"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/service"
	"rabbitmq-rpc/pkg/amqpx"
)

// Config holds the settings from the server's environment.
type Config struct {
	service.Config

	// Prefetch is the maximum number of requests delivered to this server and unacknowledged;
	// 0 means twice the number of workers.
	Prefetch int `envconfig:"RPC_PREFETCH" default:"0" min:"0" max:"65535"`
	// Workers is the maximum number of concurrent calls.
	Workers int `envconfig:"RPC_WORKERS" default:"64" min:"1" max:"65535"`
	// MaxLength and MaxBytes limit the ready messages in the queue; 0 means no limit.
	MaxLength int `envconfig:"RPC_QUEUE_MAX_LENGTH" default:"0" min:"0" max:"1000000000"`
	MaxBytes  int `envconfig:"RPC_QUEUE_MAX_BYTES" default:"0" min:"0" max:"1000000000000"`
	// MaxPriority is the highest priority of a classic queue; 0 means a queue without priorities.
	MaxPriority int `envconfig:"RPC_QUEUE_MAX_PRIORITY" default:"0" min:"0" max:"255"`
	// DefaultMethod is the function for requests without a method name; if it is empty, such
	// requests are refused.
	DefaultMethod string `envconfig:"RPC_DEFAULT_METHOD" empty:"ok" maxlen:"255"`
	// DeliveryLimit is the maximum number of deliveries of a request; 0 means no limit.
	DeliveryLimit int `envconfig:"RPC_DELIVERY_LIMIT" default:"5" min:"0" max:"1000"`
	// ReplayBytes and ReplayAge limit the stored responses.
	ReplayBytes int           `envconfig:"RPC_REPLAY_BYTES" default:"8388608" min:"0" max:"10000000000"`
	ReplayAge   time.Duration `envconfig:"RPC_REPLAY_AGE" default:"1m" min:"0s" max:"24h"`
	// MaxHandlerTime is the time limit of a handler; 0 means no limit.
	MaxHandlerTime time.Duration `envconfig:"RPC_MAX_HANDLER_TIME" default:"5m" min:"0s" max:"24h"`
	// MaxBytesInHand limits the total size of the bodies of delivered requests that are not
	// yet acknowledged.
	MaxBytesInHand int `envconfig:"RPC_MAX_BYTES_IN_HAND" default:"67108864" min:"1" max:"1000000000000"`
	// CallerMaxCalls, CallerMaxBytes and CallerMaxRunning limit the number, the total size and the
	// running handlers of one caller's requests; 0 means no limit. CallerFair lets callers take
	// turns.
	CallerMaxCalls   int  `envconfig:"RPC_CALLER_MAX_CALLS" default:"0" min:"0" max:"1000000000"`
	CallerMaxBytes   int  `envconfig:"RPC_CALLER_MAX_BYTES" default:"0" min:"0" max:"1000000000000"`
	CallerMaxRunning int  `envconfig:"RPC_CALLER_MAX_RUNNING" default:"0" min:"0" max:"65535"`
	CallerFair       bool `envconfig:"RPC_CALLER_FAIR" default:"false"`
	// TrustedUsers are users of the broker, separated by commas, whose copies of requests may name
	// the caller, beside the user of this server.
	TrustedUsers string `envconfig:"RPC_TRUSTED_USERS" empty:"ok"`
	// ReplyPrefix lists the prefixes, separated by commas, of the reply_to to which this server
	// responds; empty: all.
	ReplyPrefix string `envconfig:"RPC_REPLY_PREFIX" empty:"ok"`
	// AuthorizationFile is the path of the rules which users may call which functions; empty: every
	// user may call every function.
	AuthorizationFile string `envconfig:"RPC_AUTHORIZATION_FILE" empty:"ok"`
	// DrainTimeout limits the graceful stop after the first signal.
	DrainTimeout time.Duration `envconfig:"RPC_DRAIN_TIMEOUT" default:"20s" min:"1ms" max:"1h"`
}

// Validate checks rules that involve several variables.
func (c *Config) Validate(faults *config.Faults) {
	c.Config.Validate(faults)
	if c.MaxBytesInHand < c.Queue.MaxMessageBytes && !faults.Has("RPC_MAX_MESSAGE_BYTES") {
		faults.Addf("RPC_MAX_BYTES_IN_HAND", "%d is less than RPC_MAX_MESSAGE_BYTES, %d", c.MaxBytesInHand, c.Queue.MaxMessageBytes)
	}
	if c.MaxPriority > 0 && c.Queue.Type == amqpx.QueueQuorum && !faults.Has("RPC_QUEUE_MAX_PRIORITY") {
		faults.Addf("RPC_QUEUE_MAX_PRIORITY", "%d: want 0 for a quorum queue", c.MaxPriority)
	}
	if _, err := amqpx.NewServer("amqp://localhost/", amqpx.WithReplyPrefix(listed(c.ReplyPrefix)...)); err != nil {
		faults.Addf("RPC_REPLY_PREFIX", "%v", errors.Unwrap(err))
	}
	if _, err := newAuthorization(c, zap.NewNop()); err != nil {
		faults.Addf(authorizationVariable, "%v", err)
	}
}

// listed returns the entries of a list that is separated by commas.
func listed(text string) []string {
	return strings.FieldsFunc(strings.ReplaceAll(text, " ", ""), func(r rune) bool { return r == ',' })
}

// options returns the library's options for these settings; rules are those of
// AuthorizationFile, or nil.
func (c *Config) options(rules *authorization, logger *zap.Logger) []amqpx.ServerOption {
	queue := c.Queue.Queue()
	queue.MaxLength, queue.MaxBytes = c.MaxLength, c.MaxBytes
	queue.MaxPriority = uint8(c.MaxPriority)                                      //nolint:gosec // at most 255.
	options := append([]amqpx.ServerOption{c.Traces.Server()}, rules.option()...) // outermost
	options = append(options,
		amqpx.WithMiddleware(c.Traces.Logged(logger, amqpx.AccessLog), c.Traces.Logged(logger, amqpx.Recover)),
		amqpx.WithWorkers(c.Workers),
		amqpx.WithPrefetch(c.Prefetch),
		amqpx.WithMaxHandlerTime(c.MaxHandlerTime),
		amqpx.WithDrainTimeout(c.DrainTimeout),
		amqpx.WithMaxBytesInHand(c.MaxBytesInHand),
		amqpx.WithCallerLimits(amqpx.CallerLimits{
			MaxCalls: c.CallerMaxCalls, MaxBytes: c.CallerMaxBytes, MaxRunning: c.CallerMaxRunning, Fair: c.CallerFair,
		}),
		amqpx.WithTrustedUsers(listed(c.TrustedUsers)...),
		amqpx.WithReplyPrefix(listed(c.ReplyPrefix)...),
		amqpx.WithDeliveryLimit(c.DeliveryLimit),
		amqpx.WithDefaultMethod(c.DefaultMethod),
		amqpx.WithDedup(c.ReplayBytes, c.ReplayAge),
	)
	for _, o := range c.AMQP.Options(name, logger) {
		options = append(options, o)
	}
	for _, o := range c.Queue.Options() {
		options = append(options, o)
	}
	return append(options, amqpx.WithQueue(queue))
}
