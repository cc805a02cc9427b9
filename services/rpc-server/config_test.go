package main

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/pkg/amqpx"
)

// isolate unsets every variable of the server for the time of the test.
func isolate(t *testing.T) {
	t.Helper()
	for name := range config.Describe(&Config{}) {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}

// load returns the faults of the test's environment.
func load(t *testing.T) (*Config, []string) {
	t.Helper()
	var c Config
	err := config.Load(&c)
	if bad, ok := errors.AsType[*config.Error](err); ok {
		return &c, bad.Lines
	}
	if err != nil {
		t.Fatal(err)
	}
	return &c, nil
}

const isEmpty = "is empty; unset it for the default or give it a value"

// badValues holds, for every variable, a value that is wrong and the fault it is,
// and the fault of an empty value ("" where that is none).
var badValues = map[string]struct{ value, fault, emptyFault string }{ //nolint:gochecknoglobals // a table
	"AMQP_URL":             {"http://u:hunter2@h/", "URL 1 of 1 must begin with amqp:// or amqps://", isEmpty},
	"AMQP_URL_FILE":        {"/nonexistent/url", "stat /nonexistent/url: no such file or directory", ""},
	"AMQP_TLS_CA_FILE":     {"/nonexistent/ca", "is set, but no broker URL begins with amqps://", ""},
	"AMQP_TLS_CERT_FILE":   {"/nonexistent/cert", "is set, but no broker URL begins with amqps://", ""},
	"AMQP_TLS_KEY_FILE":    {"/nonexistent/key", "is set, but no broker URL begins with amqps://", ""},
	"AMQP_HEARTBEAT":       {"10", `"10" is not a duration such as 500ms, 5s or 2m`, isEmpty},
	"AMQP_DIAL_TIMEOUT":    {"soon", `"soon" is not a duration such as 500ms, 5s or 2m`, isEmpty},
	"AMQP_WRITE_TIMEOUT":   {"-1s", `-1s is less than 1ms`, isEmpty},
	"AMQP_BACKOFF_MIN":     {"0s", `0s is less than 1ms`, isEmpty},
	"AMQP_BACKOFF_MAX":     {"2h", `2h0m0s is more than 1h0m0s`, isEmpty},
	"RPC_QUEUE":            {"amq.x", "begins with amq., which the broker reserves", isEmpty},
	"RPC_QUEUE_TYPE":       {"stream", `"stream" is not one of: classic, quorum`, isEmpty},
	"RPC_QUEUE_DURABLE":    {"maybe", `"maybe" is not true or false`, isEmpty},
	"RPC_PERSISTENT":       {"2", `"2" is not true or false`, isEmpty},
	"RPC_PREFETCH":         {"65536", "65536 is more than 65535", isEmpty},
	"RPC_WORKERS":          {"0", "0 is less than 1", isEmpty},
	"RPC_QUEUE_MAX_LENGTH": {"-1", "-1 is less than 0", isEmpty},
	"RPC_QUEUE_MAX_BYTES":  {"1GB", `"1GB" is not a whole number`, isEmpty},
	"RPC_DELIVERY_LIMIT":   {"1001", "1001 is more than 1000", isEmpty},
	"RPC_REPLAY_BYTES":     {"-1", "-1 is less than 0", isEmpty},
	"RPC_REPLAY_AGE":       {"60", `"60" is not a duration such as 500ms, 5s or 2m`, isEmpty},
	"RPC_DRAIN_TIMEOUT":    {"20", `"20" is not a duration such as 500ms, 5s or 2m`, isEmpty},
	"HTTP_ADDR":            {"8080", `"8080" is not an address such as :8080 or 127.0.0.1:8080`, isEmpty},
	"LOG_LEVEL":            {"loud", `"loud" is not one of: debug, info, warn, error`, isEmpty},
	"LOG_FORMAT":           {"xml", `"xml" is not one of: json, console`, isEmpty},
}

func TestEveryVariableHasABadValue(t *testing.T) {
	t.Parallel()
	have := slices.Sorted(maps.Keys(config.Describe(&Config{})))
	want := slices.Sorted(maps.Keys(badValues))
	if !slices.Equal(have, want) {
		t.Errorf("the variables are\n%q, the table has\n%q", have, want)
	}
}

func TestBadValues(t *testing.T) {
	for name, bad := range badValues {
		for value, fault := range map[string]string{bad.value: bad.fault, "": bad.emptyFault} {
			t.Run(name+"="+value, func(t *testing.T) {
				isolate(t)
				t.Setenv(name, value)
				var want []string
				if fault != "" {
					want = []string{name + ": " + fault}
				}
				_, got := load(t)
				if len(got) > 0 && strings.HasPrefix(name, "AMQP_TLS_") {
					got = got[:1] // The missing file, and its missing partner, follow.
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

//nolint:paralleltest // sets the environment
func TestEveryBadValueAtOnce(t *testing.T) {
	isolate(t)
	for name, bad := range badValues {
		if !strings.HasPrefix(name, "AMQP_TLS_") && name != "AMQP_URL_FILE" {
			t.Setenv(name, bad.value)
		}
	}
	_, faults := load(t)
	if want := len(badValues) - 4; len(faults) != want {
		t.Errorf("%d faults, want %d: %q", len(faults), want, faults)
	}
	if text := strings.Join(faults, "\n"); strings.Contains(text, "hunter2") {
		t.Errorf("the password is shown: %s", text)
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
		c.DeliveryLimit != amqpx.DefaultDeliveryLimit || c.ReplayBytes != amqpx.DefaultReplayBytes || c.ReplayAge != amqpx.DefaultReplayAge || c.Queue.Name != amqpx.DefaultQueue {
		t.Errorf("the defaults differ from the library's: %+v", c)
	}
	if _, err := amqpx.NewServer(c.AMQP.URL.Reveal(), c.options(zap.NewNop())...); err != nil {
		t.Errorf("the library refuses the defaults: %v", err)
	}
}

// What the library refuses has reached it.
//
//nolint:paralleltest // sets the environment
func TestSettingsReachTheLibrary(t *testing.T) {
	isolate(t)
	for want, spoil := range map[string]func(*Config){
		"heartbeat 0s":                             func(c *Config) { c.AMQP.Heartbeat = 0 },
		"dial timeout 0s":                          func(c *Config) { c.AMQP.DialTimeout = 0 },
		"write timeout 0s":                         func(c *Config) { c.AMQP.WriteTimeout = 0 },
		"first backoff 0s":                         func(c *Config) { c.AMQP.BackoffMin = 0 },
		"backoff from 100ms to 99ms":               func(c *Config) { c.AMQP.BackoffMax = 99 * time.Millisecond },
		"queue name of 0 bytes":                    func(c *Config) { c.Queue.Name = "" },
		`queue type "fifo"`:                        func(c *Config) { c.Queue.Type = "fifo" },
		"must be durable":                          func(c *Config) { c.Queue.Type, c.Queue.Durable = amqpx.QueueQuorum, false },
		"workers 0":                                func(c *Config) { c.Workers = 0 },
		"prefetch -1":                              func(c *Config) { c.Prefetch = -1 },
		"drain timeout 0s":                         func(c *Config) { c.DrainTimeout = 0 },
		"queue bounds of -1 messages and 0 bytes":  func(c *Config) { c.MaxLength = -1 },
		"queue bounds of 0 messages and -1 bytes":  func(c *Config) { c.MaxBytes = -1 },
		"delivery limit -1":                        func(c *Config) { c.DeliveryLimit = -1 },
		"stored answers of -1 bytes for 1m0s":      func(c *Config) { c.ReplayBytes = -1 },
		"stored answers of 8388608 bytes for -1ns": func(c *Config) { c.ReplayAge = -1 },
	} {
		c, faults := load(t)
		if faults != nil {
			t.Fatalf("faults: %q", faults)
		}
		spoil(c)
		if _, err := amqpx.NewServer("amqp://h/", c.options(zap.NewNop())...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
