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

// isolate unsets every variable of the client for the time of the test.
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
	"AMQP_URL":           {"http://u:hunter2@h/", "URL 1 of 1 must begin with amqp:// or amqps://", isEmpty},
	"AMQP_URL_FILE":      {"/nonexistent/url", "stat /nonexistent/url: no such file or directory", ""},
	"AMQP_TLS_CA_FILE":   {"/nonexistent/ca", "is set, but no broker URL begins with amqps://", ""},
	"AMQP_TLS_CERT_FILE": {"/nonexistent/cert", "is set, but no broker URL begins with amqps://", ""},
	"AMQP_TLS_KEY_FILE":  {"/nonexistent/key", "is set, but no broker URL begins with amqps://", ""},
	"AMQP_HEARTBEAT":     {"10", `"10" is not a duration such as 500ms, 5s or 2m`, isEmpty},
	"AMQP_DIAL_TIMEOUT":  {"soon", `"soon" is not a duration such as 500ms, 5s or 2m`, isEmpty},
	"AMQP_WRITE_TIMEOUT": {"-1s", `-1s is less than 1ms`, isEmpty},
	"AMQP_BACKOFF_MIN":   {"0s", `0s is less than 1ms`, isEmpty},
	"AMQP_BACKOFF_MAX":   {"2h", `2h0m0s is more than 1h0m0s`, isEmpty},
	"RPC_QUEUE":          {"amq.x", "begins with amq., which the broker reserves", isEmpty},
	"RPC_QUEUE_TYPE":     {"stream", `"stream" is not one of: classic, quorum`, isEmpty},
	"RPC_QUEUE_DURABLE":  {"maybe", `"maybe" is not true or false`, isEmpty},
	"RPC_PERSISTENT":     {"2", `"2" is not true or false`, isEmpty},
	"RPC_METHOD":         {strings.Repeat("m", 256), "has 256 bytes, more than 255", isEmpty},
	"RPC_BODY":           {"", "", ""}, // Any body is one.
	"RPC_EXPECT":         {"", "", ""}, // Empty means the method's name.
	"RPC_CALLS":          {"1e3", `"1e3" is not a whole number`, isEmpty},
	"RPC_CONCURRENCY":    {"0", "0 is less than 1", isEmpty},
	"RPC_TIMEOUT":        {"5", `"5" is not a duration such as 500ms, 5s or 2m`, isEmpty},
	"RPC_REPLY_MODE":     {"fax", `"fax" is not one of: queue, direct`, isEmpty},
	"RPC_IDEMPOTENT":     {"yes", `"yes" is not true or false`, isEmpty},
	"RPC_REPORT_DIR":     {"/proc/self/no", "mkdir /proc/self/no: no such file or directory", ""},
	"HTTP_ADDR":          {"8080", `"8080" is not an address such as :8080 or 127.0.0.1:8080`, isEmpty},
	"LOG_LEVEL":          {"loud", `"loud" is not one of: debug, info, warn, error`, isEmpty},
	"LOG_FORMAT":         {"xml", `"xml" is not one of: json, console`, isEmpty},
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
	if want := len(badValues) - 6; len(faults) != want {
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
	if c.Queue.Name != amqpx.DefaultQueue || c.ReplyMode != amqpx.ReplyQueue {
		t.Errorf("the defaults differ from the library's: %+v", c)
	}
	if c.Method != "b" || c.Body != "request" || c.Expect != "b" || c.Calls != 1000 || c.Concurrency != 1 || !c.Idempotent {
		t.Errorf("got %+v", c)
	}
	client, err := amqpx.NewClient("amqp://127.0.0.1:1/", c.options(zap.NewNop())...)
	if err != nil {
		t.Fatalf("the library refuses the defaults: %v", err)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

//nolint:paralleltest // sets the environment
func TestExpectedAnswer(t *testing.T) {
	for _, c := range []struct{ method, expect, want string }{
		{"a", "", "a"},
		{"sum", "42", "42"},
	} {
		isolate(t)
		t.Setenv("RPC_METHOD", c.method)
		t.Setenv("RPC_EXPECT", c.expect)
		if got, faults := load(t); got.Expect != c.want || faults != nil {
			t.Errorf("%q and %q: expects %q, %q", c.method, c.expect, got.Expect, faults)
		}
	}
}

func TestEmptyBodyIsABody(t *testing.T) {
	isolate(t)
	t.Setenv("RPC_BODY", "")
	if got, faults := load(t); got.Body != "" || faults != nil {
		t.Errorf("body %q, %q", got.Body, faults)
	}
}

// What the library refuses has reached it.
//
//nolint:paralleltest // sets the environment
func TestSettingsReachTheLibrary(t *testing.T) {
	isolate(t)
	for want, spoil := range map[string]func(*Config){
		"heartbeat 0s":               func(c *Config) { c.AMQP.Heartbeat = 0 },
		"dial timeout 0s":            func(c *Config) { c.AMQP.DialTimeout = 0 },
		"write timeout 0s":           func(c *Config) { c.AMQP.WriteTimeout = 0 },
		"first backoff 0s":           func(c *Config) { c.AMQP.BackoffMin = 0 },
		"backoff from 100ms to 99ms": func(c *Config) { c.AMQP.BackoffMax = 99 * time.Millisecond },
		"queue name of 0 bytes":      func(c *Config) { c.Queue.Name = "" },
		`queue type "fifo"`:          func(c *Config) { c.Queue.Type = "fifo" },
		"must be durable":            func(c *Config) { c.Queue.Type, c.Queue.Durable = amqpx.QueueQuorum, false },
		`reply mode "fax"`:           func(c *Config) { c.ReplyMode = "fax" },
		"timeout 0s":                 func(c *Config) { c.Timeout = 0 },
	} {
		c, faults := load(t)
		if faults != nil {
			t.Fatalf("faults: %q", faults)
		}
		spoil(c)
		if _, err := amqpx.NewClient("amqp://h/", c.options(zap.NewNop())...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestCallOptions(t *testing.T) {
	t.Parallel()
	for idempotent, want := range map[bool]int{false: 1, true: 2} {
		if got := len((&Config{Idempotent: idempotent}).callOptions()); got != want {
			t.Errorf("idempotent %v: %d options, want %d", idempotent, got, want)
		}
	}
}
