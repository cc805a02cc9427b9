package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config/configtest"
	"rabbitmq-rpc/internal/loadgen"
	"rabbitmq-rpc/pkg/amqpx"
)

// isolate unsets every variable of the client for the duration of the test.
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
	"RPC_MODE":             {"list", `the value is not one of: calls, call, fleet`, configtest.IsEmpty},
	"RPC_FLEET_FORMAT":     {"yaml", `the value is not one of: table, json`, configtest.IsEmpty},
	"RPC_METHOD":           {strings.Repeat("m", 256), "has 256 bytes, more than 255", configtest.IsEmpty},
	"RPC_BODY":             {"", "", ""}, // Every body is valid.
	"RPC_EXPECT":           {"", "", ""}, // Empty means the method's name.
	"RPC_CALLS":            {"1e3", `"1e3" is not a whole number`, configtest.IsEmpty},
	"RPC_DURATION":         {"169h", "169h0m0s is more than 168h0m0s", configtest.IsEmpty},
	"RPC_RATE":             {"10000001", "10000001 is more than 10000000", configtest.IsEmpty},
	"RPC_CONCURRENCY":      {"0", "0 is less than 1", configtest.IsEmpty},
	"RPC_TIMEOUT":          {"5", `"5" is not a duration such as 500ms, 5s or 2m`, configtest.IsEmpty},
	"RPC_EXCHANGE":         {strings.Repeat("x", 256), "has 256 bytes, more than 255", ""},
	"RPC_REPLY_MODE":       {"fax", `"fax" is not one of: queue, direct`, configtest.IsEmpty},
	"RPC_PRIORITY":         {"-1", "-1 is less than 0", configtest.IsEmpty},
	"RPC_IDEMPOTENT":       {"yes", `"yes" is not true or false`, configtest.IsEmpty},
	"RPC_ATTEMPT_TIMEOUT":  {"-1s", "-1s is less than 0s", configtest.IsEmpty},
	"RPC_REPORT_DIR":       {"/proc/self/no", "mkdir /proc/self/no: no such file or directory", ""},
	"RPC_MANAGEMENT_URL":   {"ftp://u:" + configtest.Password + "@h/", "a URL is not of the form http://user:password@host:15672", ""},
	"RPC_REPLY_QUEUE_TYPE": {"stream", `the value is not one of: classic, quorum`, configtest.IsEmpty},
})

//nolint:paralleltest // sets the environment
func TestBadValues(t *testing.T) { configtest.TestBad[Config](t, badValues) }

// FuzzEnvironment checks that all settings valid for Config are valid for the library.
func FuzzEnvironment(f *testing.F) {
	configtest.Fuzz(f, badValues, func(t *testing.T, c *Config) error {
		t.Helper()
		client, err := amqpx.NewClient(c.AMQP.URL.Reveal(), c.options(zap.NewNop())...)
		if err != nil {
			return err
		}
		return client.Close(t.Context())
	}, "RPC_REPORT_DIR") // accepting a folder creates it
}

func TestReportDirOfTheHost(t *testing.T) {
	isolate(t)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("RPC_REPORT_DIR", filepath.Join(dir, "{hostname}"))
	c, faults := load(t)
	if want := filepath.Join(dir, host); faults != nil || c.ReportDir != want {
		t.Errorf("got %q, %q, want %q", c.ReportDir, faults, want)
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
	if c.Method != "b" || c.Body != "request" || c.calls().Expect != "b" || c.Calls != 1000 || c.Concurrency != 1 || !c.Idempotent ||
		c.Rate != 0 || c.Duration != 0 {
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
func TestExpectedResponse(t *testing.T) {
	for _, c := range []struct{ method, expect, want string }{
		{"a", "", "a"},
		{"sum", "42", "42"},
	} {
		isolate(t)
		t.Setenv("RPC_METHOD", c.method)
		t.Setenv("RPC_EXPECT", c.expect)
		if got, faults := load(t); got.calls().Expect != c.want || faults != nil {
			t.Errorf("%q and %q: expects %q, %q", c.method, c.expect, got.calls().Expect, faults)
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

// An error of the library proves that the setting reached the library.
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

func TestFleetNeedsTheControlPlane(t *testing.T) {
	isolate(t)
	t.Setenv("RPC_MODE", "fleet")
	t.Setenv("RPC_CONTROL", "false")
	if _, faults := load(t); len(faults) != 1 || !strings.HasPrefix(faults[0], "RPC_CONTROL: is false") {
		t.Errorf("faults %q", faults)
	}
}

func TestWorkloadOfTheSettings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings Config
		want     loadgen.Workload
	}{
		"default":            {Config{Calls: 1000, Concurrency: 1}, loadgen.Workload{Calls: 1000, InFlight: 1}},
		"by time":            {Config{Calls: 1000, Concurrency: 8, Duration: time.Minute}, loadgen.Workload{Calls: loadgen.NoLimit, Duration: time.Minute, InFlight: 8}},
		"whichever is first": {Config{Calls: 999, Concurrency: 1, Duration: time.Minute}, loadgen.Workload{Calls: 999, Duration: time.Minute, InFlight: 1}},
		"open":               {Config{Calls: 1000, Concurrency: 1, Rate: 50}, loadgen.Workload{Calls: 1000, Rate: 50, InFlight: 4096}},
		"open, wider":        {Config{Calls: 5, Concurrency: 5000, Rate: 50}, loadgen.Workload{Calls: 5, Rate: 50, InFlight: 5000}},
	} {
		if got := c.settings.workload(); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// The constant equals the default of the variable.
//
//nolint:paralleltest // sets the environment
func TestDefaultCalls(t *testing.T) {
	isolate(t)
	if c, faults := load(t); c.Calls != defaultCalls || faults != nil {
		t.Errorf("RPC_CALLS defaults to %d, %q", c.Calls, faults)
	}
}
