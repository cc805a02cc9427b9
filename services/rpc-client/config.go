package main

import (
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/internal/logging"
	"rabbitmq-rpc/internal/tracing"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// Config is everything the client reads from the environment.
type Config struct {
	AMQP    config.AMQP
	Queue   config.Queue
	HTTP    health.Config
	Log     logging.Config
	Tracing tracing.Config

	// Mode is calls, or fleet to list the servers of the queue instead.
	Mode string `envconfig:"RPC_MODE" default:"calls" oneof:"calls fleet"`
	// FleetFormat is how the servers are listed: table or json.
	FleetFormat string `envconfig:"RPC_FLEET_FORMAT" default:"table" oneof:"table json"`
	// Method is the function to call.
	Method string `envconfig:"RPC_METHOD" default:"b" maxlen:"255"`
	// Body is the argument of every call; it may be empty.
	Body string `envconfig:"RPC_BODY" default:"request" empty:"ok" url:"ok"`
	// Expect is the answer that every call must get. Empty means the method's name,
	// which is what the functions a and b of rpc-server answer.
	Expect string `envconfig:"RPC_EXPECT" empty:"ok" url:"ok"`
	// Calls is how many calls to make. Beside a Duration the default is no bound, and
	// any other number is: whichever comes first ends the run.
	Calls int `envconfig:"RPC_CALLS" default:"1000" min:"1" max:"1000000000"`
	// Duration is how long calls begin, by time instead of by number; 0 is by number. The
	// run ends when those under way have settled.
	Duration time.Duration `envconfig:"RPC_DURATION" default:"0s" min:"0s" max:"168h"`
	// Rate is how many calls begin a second, whatever became of those before (an open
	// loop). Their latency counts from when they were due. 0 is a closed loop: each caller
	// begins a call as soon as its last has settled.
	Rate int `envconfig:"RPC_RATE" default:"0" min:"0" max:"10000000"`
	// Concurrency is how many calls are under way at once. With a Rate it is how many may
	// be, and at least 4096.
	Concurrency int `envconfig:"RPC_CONCURRENCY" default:"1" min:"1" max:"65536"`
	// Timeout is the deadline of each call. The default outlasts a restart of the
	// broker.
	Timeout time.Duration `envconfig:"RPC_TIMEOUT" default:"30s" min:"1ms" max:"1h"`
	// ReplyMode is queue or direct.
	ReplyMode amqpx.ReplyMode `envconfig:"RPC_REPLY_MODE" default:"queue" oneof:"queue direct"`
	// ReplyQueueType is classic or quorum; it counts with the reply mode queue.
	ReplyQueueType amqpx.QueueType `envconfig:"RPC_REPLY_QUEUE_TYPE" default:"classic" oneof:"classic quorum"`
	// Idempotent lets a call be sent again when the link is lost at a moment that
	// leaves its outcome open. The functions a and b are pure, so that is safe; set
	// it to false for a function that must not run twice.
	Idempotent bool `envconfig:"RPC_IDEMPOTENT" default:"true"`
	// AttemptTimeout is how long one attempt of an idempotent call waits for its answer
	// before the call is sent again; 0 sets no limit.
	AttemptTimeout time.Duration `envconfig:"RPC_ATTEMPT_TIMEOUT" default:"0s" min:"0s" max:"1h"`
	// ReportDir is where report.json and report.html go; empty means nowhere. {hostname} in
	// it is replaced, so that several containers that share a volume keep apart.
	ReportDir string `envconfig:"RPC_REPORT_DIR" empty:"ok"`

	traces *tracing.Tracing // nil while tracing is off
}

// Validate checks what spans variables, and that the report can be written.
func (c *Config) Validate(faults *config.Faults) {
	c.AMQP.Validate(faults)
	c.Queue.Validate(faults)
	c.HTTP.Validate(faults)
	c.Tracing.Validate(faults)
	if c.Expect == "" {
		c.Expect = c.Method
	}
	if c.Mode == modeFleet && !c.Queue.Control && !faults.Has("RPC_CONTROL") {
		faults.Addf("RPC_CONTROL", "is false, but the servers are asked through the control plane")
	}
	if host, err := os.Hostname(); err == nil {
		c.ReportDir = strings.ReplaceAll(c.ReportDir, "{hostname}", host)
	}
	if c.ReportDir != "" {
		if err := report.PrepareDir(c.ReportDir); err != nil {
			faults.Addf("RPC_REPORT_DIR", "%v", err)
		}
	}
}

// callOptions returns the options of every call. A call always waits, until its
// deadline, for a server to come up.
func (c *Config) callOptions() []amqpx.CallOption {
	if c.Idempotent {
		return []amqpx.CallOption{amqpx.WaitForServer(), amqpx.Idempotent()}
	}
	return []amqpx.CallOption{amqpx.WaitForServer()}
}

// options returns the library's options for these settings.
func (c *Config) options(logger *zap.Logger) []amqpx.ClientOption {
	atOnce := c.goal().inFlight
	options := []amqpx.ClientOption{
		c.traces.Client(), // outermost
		amqpx.WithMiddleware(logAnswers(logger)),
		amqpx.WithReplyMode(c.ReplyMode),
		amqpx.WithReplyQueueType(c.ReplyQueueType),
		amqpx.WithTimeout(c.Timeout),
		amqpx.WithAttemptTimeout(c.AttemptTimeout),
		amqpx.WithCallOptions(c.callOptions()...),
		// The worst that this client can have under way is no overload of it.
		amqpx.WithMaxInFlight(max(atOnce, amqpx.DefaultMaxInFlight)),
		amqpx.WithMaxInFlightBytes(max(atOnce*len(c.Body), amqpx.DefaultMaxInFlightBytes)),
	}
	for _, o := range c.AMQP.Options(name, logger) {
		options = append(options, o)
	}
	for _, o := range c.Queue.Options() {
		options = append(options, o)
	}
	return options
}
