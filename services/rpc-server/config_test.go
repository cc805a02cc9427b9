package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config/configtest"
	"rabbitmq-rpc/pkg/amqpx"
)

// isolate unsets every variable of the server for the duration of the test.
func isolate(t *testing.T) {
	t.Helper()
	configtest.Isolate(t, &Config{})
}

// load returns the settings and the faults of the test's environment.
func load(t *testing.T) (*Config, []string) {
	t.Helper()
	var c Config
	return &c, configtest.Load(t, &c)
}

// badValues holds an invalid value for every variable.
var badValues = configtest.WithShared(map[string]configtest.Bad{ //nolint:gochecknoglobals // a table
	"RPC_PREFETCH":           {"65536", "65536 is more than 65535", configtest.IsEmpty},
	"RPC_WORKERS":            {"0", "0 is less than 1", configtest.IsEmpty},
	"RPC_QUEUE_MAX_LENGTH":   {"-1", "-1 is less than 0", configtest.IsEmpty},
	"RPC_QUEUE_MAX_BYTES":    {"1GB", `"1GB" is not a whole number`, configtest.IsEmpty},
	"RPC_QUEUE_MAX_PRIORITY": {"256", "256 is more than 255", configtest.IsEmpty},
	"RPC_DEFAULT_METHOD":     {strings.Repeat("m", 256), "has 256 bytes, more than 255", ""},
	"RPC_DELIVERY_LIMIT":     {"1001", "1001 is more than 1000", configtest.IsEmpty},
	"RPC_REPLAY_BYTES":       {"-1", "-1 is less than 0", configtest.IsEmpty},
	"RPC_REPLAY_AGE":         {"60", `"60" is not a duration such as 500ms, 5s or 2m`, configtest.IsEmpty},
	"RPC_MAX_HANDLER_TIME":   {"-1s", "-1s is less than 0s", configtest.IsEmpty},
	"RPC_MAX_BYTES_IN_HAND":  {"0", "0 is less than 1", configtest.IsEmpty},
	"RPC_CALLER_MAX_CALLS":   {"-1", "-1 is less than 0", configtest.IsEmpty},
	"RPC_CALLER_MAX_BYTES":   {"1MB", `"1MB" is not a whole number`, configtest.IsEmpty},
	"RPC_CALLER_MAX_RUNNING": {"65536", "65536 is more than 65535", configtest.IsEmpty},
	"RPC_CALLER_FAIR":        {"2", `"2" is not true or false`, configtest.IsEmpty},
	"RPC_TRUSTED_USERS":      {"", "", ""}, // every list is valid
	"RPC_REPLY_PREFIX":       {"{queue}.{name}.", `reply prefix "{queue}.{name}.": want the placeholders {queue} and, once, {user}`, ""},
	"RPC_AUTHORIZATION_FILE": {"/nonexistent/rules", "no such file or directory", ""},
	"RPC_DRAIN_TIMEOUT":      {"20", `"20" is not a duration such as 500ms, 5s or 2m`, configtest.IsEmpty},
})

//nolint:paralleltest // sets the environment
func TestBadValues(t *testing.T) { configtest.TestBad[Config](t, badValues) }

// FuzzEnvironment checks that all settings valid for Config are valid for the library.
func FuzzEnvironment(f *testing.F) {
	configtest.Fuzz(f, badValues, func(_ *testing.T, c *Config) error {
		_, err := amqpx.NewServer(c.AMQP.URL.Reveal(), c.options(nil, zap.NewNop())...)
		return err
	})
}

func TestBytesInHandHoldAMessage(t *testing.T) {
	isolate(t)
	t.Setenv("RPC_MAX_BYTES_IN_HAND", "16777215")
	want := []string{"RPC_MAX_BYTES_IN_HAND: 16777215 is less than RPC_MAX_MESSAGE_BYTES, 16777216"}
	if _, got := load(t); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMaxPriorityOfAQuorumQueue(t *testing.T) {
	isolate(t)
	t.Setenv("RPC_QUEUE_MAX_PRIORITY", "3")
	c, faults := load(t)
	if faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	c.Queue.Type = amqpx.QueueQuorum
	_, err := amqpx.NewServer("amqp://h/", c.options(nil, zap.NewNop())...)
	if want := "max priority 3: want 0 for a quorum queue"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s: the setting does not reach the library", err, want)
	}
	t.Setenv("RPC_QUEUE_TYPE", "quorum")
	want := []string{"RPC_QUEUE_MAX_PRIORITY: 3: want 0 for a quorum queue"}
	if _, got := load(t); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

//nolint:paralleltest // sets the environment
func TestDefaults(t *testing.T) {
	isolate(t)
	c, faults := load(t)
	if faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	if c.Workers != amqpx.DefaultWorkers || c.DrainTimeout != amqpx.DefaultDrainTimeout ||
		c.DeliveryLimit != amqpx.DefaultDeliveryLimit || c.ReplayBytes != amqpx.DefaultDedupBytes || c.ReplayAge != amqpx.DefaultDedupAge ||
		c.MaxBytesInHand != amqpx.DefaultMaxBytesInHand || c.Queue.MaxMessageBytes != amqpx.DefaultMaxMessageSize || c.Queue.Name != amqpx.DefaultQueue {
		t.Errorf("the defaults differ from the library's: %+v", c)
	}
	if _, err := amqpx.NewServer(c.AMQP.URL.Reveal(), c.options(nil, zap.NewNop())...); err != nil {
		t.Errorf("the library refuses the defaults: %v", err)
	}
}

// An error of the library proves that the setting reached the library.
//
//nolint:paralleltest // sets the environment
func TestSettingsReachTheLibrary(t *testing.T) {
	isolate(t)
	for want, spoil := range map[string]func(*Config){
		"heartbeat 0s":                               func(c *Config) { c.AMQP.Heartbeat = 0 },
		"dial timeout 0s":                            func(c *Config) { c.AMQP.DialTimeout = 0 },
		"write timeout 0s":                           func(c *Config) { c.AMQP.WriteTimeout = 0 },
		"first backoff 0s":                           func(c *Config) { c.AMQP.BackoffMin = 0 },
		"backoff from 100ms to 99ms":                 func(c *Config) { c.AMQP.BackoffMax = 99 * time.Millisecond },
		"queue name of 0 bytes":                      func(c *Config) { c.Queue.Name = "" },
		`queue type "fifo"`:                          func(c *Config) { c.Queue.Type = "fifo" },
		"must be durable":                            func(c *Config) { c.Queue.Type, c.Queue.Durable = amqpx.QueueQuorum, false },
		"workers 0":                                  func(c *Config) { c.Workers = 0 },
		"prefetch -1":                                func(c *Config) { c.Prefetch = -1 },
		"drain timeout 0s":                           func(c *Config) { c.DrainTimeout = 0 },
		"queue bounds of -1 messages and 0 bytes":    func(c *Config) { c.MaxLength = -1 },
		"queue bounds of 0 messages and -1 bytes":    func(c *Config) { c.MaxBytes = -1 },
		"delivery limit -1":                          func(c *Config) { c.DeliveryLimit = -1 },
		"-1 calls, 0 bytes and 0 running":            func(c *Config) { c.CallerMaxCalls = -1 },
		"0 calls, -1 bytes and 0 running":            func(c *Config) { c.CallerMaxBytes = -1 },
		"0 calls, 0 bytes and -1 running":            func(c *Config) { c.CallerMaxRunning = -1 },
		"stored responses of -1 bytes for 1m0s":      func(c *Config) { c.ReplayBytes = -1 },
		"stored responses of 8388608 bytes for -1ns": func(c *Config) { c.ReplayAge = -1 },
	} {
		c, faults := load(t)
		if faults != nil {
			t.Fatalf("faults: %q", faults)
		}
		spoil(c)
		if _, err := amqpx.NewServer("amqp://h/", c.options(nil, zap.NewNop())...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
