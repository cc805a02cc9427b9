package main

import (
	"cmp"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/loadgen"
	"rabbitmq-rpc/internal/placement"
	"rabbitmq-rpc/internal/service"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// Config holds every setting that the client reads from the environment.
type Config struct {
	service.Config

	// Mode is "calls", "call" to make one call and print its response, or "fleet" to list the
	// servers of the queue.
	Mode string `envconfig:"RPC_MODE" default:"calls" oneof:"calls call fleet"`
	// FleetFormat is the format of the list of servers: table or json.
	FleetFormat string `envconfig:"RPC_FLEET_FORMAT" default:"table" oneof:"table json"`
	// Method is the function to call.
	Method string `envconfig:"RPC_METHOD" default:"b" maxlen:"255"`
	// Body is the argument of every call; it may be empty.
	Body string `envconfig:"RPC_BODY" default:"request" empty:"ok" url:"ok"`
	// Expect is the expected result of every call. Empty means the method's name, which the
	// functions a and b of rpc-server return.
	Expect string `envconfig:"RPC_EXPECT" empty:"ok" url:"ok"`
	// Calls is the number of calls. If Duration is also set, the default means no limit, and
	// any other number is a limit: the run ends at the first of the two limits.
	Calls int `envconfig:"RPC_CALLS" default:"1000" min:"1" max:"1000000000"`
	// Duration is the time in which calls are started; 0 means that Calls alone ends the run.
	// The run ends when the calls in progress have settled.
	Duration time.Duration `envconfig:"RPC_DURATION" default:"0s" min:"0s" max:"168h"`
	// Rate is the number of calls started per second, independently of earlier calls (an open
	// loop). Latency counts from the time when a call was due. 0 means a closed loop: each
	// caller starts a call as soon as the previous call has settled.
	Rate int `envconfig:"RPC_RATE" default:"0" min:"0" max:"10000000"`
	// Concurrency is the number of calls in progress at once. With Rate, it is an upper limit,
	// and at least 4096.
	Concurrency int `envconfig:"RPC_CONCURRENCY" default:"1" min:"1" max:"65536"`
	// Timeout is the timeout of each call. The default is longer than a restart of the broker.
	Timeout time.Duration `envconfig:"RPC_TIMEOUT" default:"30s" min:"1ms" max:"1h"`
	// Exchange is the exchange to which requests are published: empty for the default exchange, or
	// auto, or a name.
	Exchange string `envconfig:"RPC_EXCHANGE" empty:"ok" maxlen:"255"`
	// ReplyMode is queue or direct.
	ReplyMode amqpx.ReplyMode `envconfig:"RPC_REPLY_MODE" default:"queue" oneof:"queue direct"`
	// ReplyQueueType is classic or quorum; it applies only to the reply mode queue.
	ReplyQueueType amqpx.QueueType `envconfig:"RPC_REPLY_QUEUE_TYPE" default:"classic" oneof:"classic quorum"`
	// ManagementURL lists the URLs of the management API of the broker's nodes, separated by
	// commas, with user and password. The client asks them which node holds what; empty: unknown.
	ManagementURL config.Secret `envconfig:"RPC_MANAGEMENT_URL" empty:"ok" url:"ok"`
	// Idempotent allows a re-send if the connection is lost when the outcome of a call is
	// unknown. A re-send is safe for the functions a and b, which are pure; set Idempotent to
	// false for a function that must not run twice.
	Idempotent bool `envconfig:"RPC_IDEMPOTENT" default:"true"`
	// Priority is the priority of every call; 0 is the lowest.
	Priority int `envconfig:"RPC_PRIORITY" default:"0" min:"0" max:"255"`
	// AttemptTimeout is the time that one attempt of an idempotent call waits for a response
	// before the call is sent again; 0 sets no limit.
	AttemptTimeout time.Duration `envconfig:"RPC_ATTEMPT_TIMEOUT" default:"0s" min:"0s" max:"1h"`
	// ReportDir is the directory for report.json and report.html; empty means no report.
	// {hostname} is replaced by the host's name, so that containers that share a volume write
	// to separate directories.
	ReportDir string `envconfig:"RPC_REPORT_DIR" empty:"ok"`
}

// Validate checks rules that involve several variables, and that the report can be written.
func (c *Config) Validate(faults *config.Faults) {
	c.Config.Validate(faults)
	if c.Mode == modeFleet && !c.Queue.Control && !faults.Has("RPC_CONTROL") {
		faults.Addf("RPC_CONTROL", "is false, but the servers are asked through the control plane")
	}
	if c.Exchange == "amq.default" {
		faults.Addf("RPC_EXCHANGE", "is the name of the default exchange in permissions only; leave the variable empty")
	}
	if err := placement.Check(c.ManagementURL.Reveal()); err != nil && !faults.Has("RPC_MANAGEMENT_URL") {
		faults.Addf("RPC_MANAGEMENT_URL", "%v", err)
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

// defaultCalls is the default of RPC_CALLS. Together with RPC_DURATION the default is not a
// limit.
const defaultCalls = 1000

// workload returns the workload that the settings define.
func (c *Config) workload() loadgen.Workload {
	w := loadgen.Workload{Calls: int64(c.Calls), Duration: c.Duration, Rate: int64(c.Rate), InFlight: c.Concurrency}
	if c.Duration > 0 && c.Calls == defaultCalls {
		w.Calls = loadgen.NoLimit
	}
	if c.Rate > 0 {
		w.InFlight = max(c.Concurrency, loadgen.OpenInFlight)
	}
	return w
}

// calls returns the calls that the settings define.
func (c *Config) calls() loadgen.Options {
	return loadgen.Options{Workload: c.workload(), Method: c.Method, Body: c.Body, Expect: cmp.Or(c.Expect, c.Method), Timeout: c.Timeout}
}

// callOptions returns the options of every call. Except in the mode call, a call waits, until its
// deadline, for a server to start.
func (c *Config) callOptions() []amqpx.CallOption {
	var options []amqpx.CallOption
	if c.Mode != modeCall {
		options = append(options, amqpx.WaitForServer())
	}
	if c.Idempotent {
		options = append(options, amqpx.Idempotent())
	}
	if c.Priority > 0 {
		options = append(options, amqpx.WithPriority(uint8(c.Priority))) //nolint:gosec // at most 255.
	}
	return options
}

// options returns the library's options for these settings. Without debug log, calls that
// are not traced pass no middleware: middleware costs each call an own context and request.
func (c *Config) options(logger *zap.Logger) []amqpx.ClientOption {
	atOnce := c.workload().InFlight
	options := []amqpx.ClientOption{
		c.Traces.Client(),
		amqpx.WithExchange(c.Exchange),
		amqpx.WithReplyMode(c.ReplyMode),
		amqpx.WithReplyQueueType(c.ReplyQueueType),
		amqpx.WithTimeout(c.Timeout),
		amqpx.WithAttemptTimeout(c.AttemptTimeout),
		amqpx.WithCallOptions(c.callOptions()...),
		// The maximum number of calls that this client can have in flight is not an overload.
		amqpx.WithMaxInFlight(max(atOnce, amqpx.DefaultMaxInFlight)),
		amqpx.WithMaxInFlightBytes(max(atOnce*len(c.Body), amqpx.DefaultMaxInFlightBytes)),
	}
	if logger.Core().Enabled(zap.DebugLevel) {
		options = append(options, amqpx.WithMiddleware(logResponses(logger)))
	}
	for _, o := range c.AMQP.Options(name, logger) {
		options = append(options, o)
	}
	for _, o := range c.Queue.Options() {
		options = append(options, o)
	}
	return options
}
