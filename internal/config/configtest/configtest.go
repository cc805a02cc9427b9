// Package configtest provides helpers for tests of the services' settings.
package configtest

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/internal/config"
)

// Isolate unsets every variable of spec for the duration of the test.
func Isolate(t testing.TB, spec any) {
	t.Helper()
	for name := range config.Describe(spec) {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}

// Load reads the test's environment into spec and returns its faults.
func Load(t testing.TB, spec config.Spec) []string {
	t.Helper()
	err := config.Load(spec)
	if bad, ok := errors.AsType[*config.Error](err); ok {
		return bad.Lines
	}
	if err != nil {
		t.Fatalf("Load returned a %T: %v", err, err)
	}
	return nil
}

// Bad holds an invalid value of a variable and its fault, and the fault of an empty value: ""
// if an empty value is valid.
type Bad = struct{ Value, Fault, Empty string }

// IsEmpty is the fault of an empty value.
const IsEmpty = "is empty; unset it for the default or give it a value"

// Password is in one of the invalid values, and must not appear in any fault.
const Password = "hunter2"

// WithShared adds the variables of all services to a service's own variables.
func WithShared(own map[string]Bad) map[string]Bad {
	const noTLS = "is set, but no broker URL begins with amqps://"
	all := map[string]Bad{
		"AMQP_URL":                  {"http://u:" + Password + "@h/", "the URL does not begin with amqp:// or amqps://", IsEmpty},
		"AMQP_URL_FILE":             {"/nonexistent/url", "no such file or directory", ""},
		"AMQP_TLS_CA_FILE":          {"/nonexistent/ca", noTLS, ""},
		"AMQP_TLS_CERT_FILE":        {"/nonexistent/cert", noTLS, ""},
		"AMQP_TLS_KEY_FILE":         {"/nonexistent/key", noTLS, ""},
		"AMQP_TLS_SERVER_NAME":      {"broker.test", noTLS, ""},
		"AMQP_HEARTBEAT":            {"10", `"10" is not a duration such as 500ms, 5s or 2m`, IsEmpty},
		"AMQP_DIAL_TIMEOUT":         {"soon", `the value is not a duration such as 500ms, 5s or 2m`, IsEmpty},
		"AMQP_WRITE_TIMEOUT":        {"-1s", `-1s is less than 1ms`, IsEmpty},
		"AMQP_BACKOFF_MIN":          {"0s", `0s is less than 1ms`, IsEmpty},
		"AMQP_BACKOFF_MAX":          {"2h", `2h0m0s is more than 1h0m0s`, IsEmpty},
		"AMQP_RETURN_HOME":          {"-5m", `-5m0s is less than 0s`, IsEmpty},
		"RPC_QUEUE":                 {"amq.x", "begins with amq., which the broker reserves", IsEmpty},
		"RPC_QUEUE_TYPE":            {"stream", `the value is not one of: classic, quorum`, IsEmpty},
		"RPC_SHARDS":                {"65", `65 is more than 64`, IsEmpty},
		"RPC_QUEUE_DURABLE":         {"maybe", `the value is not true or false`, IsEmpty},
		"RPC_PERSISTENT":            {"2", `"2" is not true or false`, IsEmpty},
		"RPC_BATCH":                 {"on", `"on" is not one of: auto, off`, IsEmpty},
		"RPC_CONTROL":               {"off", `"off" is not true or false`, IsEmpty},
		"RPC_MAX_MESSAGE_BYTES":     {"16MB", `"16MB" is not a whole number`, IsEmpty},
		"HTTP_ADDR":                 {"8080", `is not an address such as :8080 or 127.0.0.1:8080`, IsEmpty},
		"METRICS":                   {"no", `"no" is not true or false`, IsEmpty},
		"METRICS_NATIVE_HISTOGRAMS": {"no", `"no" is not true or false`, IsEmpty},
		"LOG_LEVEL":                 {"loud", `the value is not one of: debug, info, warn, error`, IsEmpty},
		"LOG_FORMAT":                {"xml", `"xml" is not one of: auto, json, console`, IsEmpty},
	}
	maps.Copy(all, Tracing())
	maps.Copy(all, own)
	return all
}

// TestBad sets every variable of the table to its invalid value, first one at a time and then
// all together, and checks the faults; the table must contain every variable.
func TestBad[T any, S interface {
	*T
	config.Spec
}](t *testing.T, table map[string]Bad) {
	t.Helper()
	have := slices.Sorted(maps.Keys(config.Describe(S(new(T)))))
	if want := slices.Sorted(maps.Keys(table)); !slices.Equal(have, want) {
		t.Errorf("the variables are\n%q, the table has\n%q", have, want)
	}
	for name, bad := range table {
		for value, fault := range map[string]string{bad.Value: bad.Fault, "": bad.Empty} {
			t.Run(name+"="+value, func(t *testing.T) {
				Isolate(t, S(new(T)))
				t.Setenv(name, value)
				var want []string
				if fault != "" {
					want = []string{name + ": " + fault}
				}
				got := Load(t, S(new(T)))
				if len(got) > 0 && strings.HasPrefix(name, "AMQP_TLS_") {
					got = got[:1] // The faults of the missing file and its missing partner follow.
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
	t.Run("all at once", func(t *testing.T) {
		Isolate(t, S(new(T)))
		want := 0
		for name, bad := range table {
			tracing := strings.HasPrefix(name, "OTEL_") // a bad endpoint makes further variables faulty
			if bad.Fault != "" && !strings.HasPrefix(name, "AMQP_TLS_") && name != "AMQP_URL_FILE" && !tracing {
				t.Setenv(name, bad.Value)
				want++
			}
		}
		faults := Load(t, S(new(T)))
		if len(faults) != want {
			t.Errorf("%d faults, want %d: %q", len(faults), want, faults)
		}
		if text := strings.Join(faults, "\n"); strings.Contains(text, Password) {
			t.Errorf("the password is shown: %s", text)
		}
	})
}
