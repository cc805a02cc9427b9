package tracing

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/config/configtest"
)

// load returns the settings of the test's environment, which has only these variables.
func load(t *testing.T, env map[string]string) (*Config, []string) {
	t.Helper()
	configtest.Isolate(t, &Config{})
	for name, value := range env {
		t.Setenv(name, value)
	}
	var c Config
	return &c, configtest.Load(t, &c)
}

// badValues has a wrong value of every variable.
var badValues = configtest.Tracing() //nolint:gochecknoglobals // a table

//nolint:paralleltest // sets the environment
func TestBadValues(t *testing.T) { configtest.TestBad[Config](t, badValues) }

// FuzzEnvironment: what the settings take, the exporters take without a complaint.
func FuzzEnvironment(f *testing.F) {
	configtest.Fuzz(f, badValues, func(t *testing.T, c *Config) error {
		t.Helper()
		core, logs := observer.New(zap.DebugLevel)
		complaints := newComplaints(func(f ...zap.Field) { zap.New(core).Warn("complaint", f...) })
		otel.SetLogger(newLibraryLog(complaints))
		otel.SetErrorHandler(otel.ErrorHandlerFunc(complaints.hear))
		e, err := newExporter(t.Context(), c.protocol())
		if err == nil {
			err = e.Shutdown(t.Context())
		}
		_, resourceErr := newResource(t.Context(), "fuzz")
		if logs.Len() > 0 {
			t.Errorf("complaints: %v", logs.All())
		}
		return errors.Join(err, resourceErr)
	})
}

//nolint:paralleltest // sets the environment
func TestMoreBadValues(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	const headers, endpoint = "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_ENDPOINT"
	const header = "header %d is not key=value, with special characters of the value percent-encoded"
	const noURL = "is not a URL such as http://collector:4318 or https://collector:4318"
	for _, c := range []struct{ name, value, want string }{
		{headers, "a=hunter2,hunter2", fmt.Sprintf(header, 2)},
		{headers, "hunter2 x=y", fmt.Sprintf(header, 1)},
		{headers, "a=hunter2%", fmt.Sprintf(header, 1)},
		{headers, "a=1,", fmt.Sprintf(header, 2)},
		{headers, "=hunter2", fmt.Sprintf(header, 1)},
		{endpoint, "localhost:4318", noURL},
		{endpoint, "unix:///hunter2", noURL},
		{endpoint, "http://h:hunter2/", noURL},
		{endpoint, "http://", noURL},
		{endpoint, "http://u:hunter2@h/", "holds a user name or password, which exporters leave out; put them into OTEL_EXPORTER_OTLP_HEADERS"},
		{endpoint, "http://h/?token=hunter2", "has a query or a fragment, which exporters leave out"},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE", junk, junk + " holds no PEM certificate"},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE", os.DevNull, "/dev/null is not an ordinary file"},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "0", `"0" is not a whole number of milliseconds`},
		{"OTEL_RESOURCE_ATTRIBUTES", "a=1,=2", `"=2" is not key=value, with special characters percent-encoded`},
		{"OTEL_RESOURCE_ATTRIBUTES", "a=%zz", `"a=%zz" is not key=value, with special characters percent-encoded`},
		{"OTEL_RESOURCE_ATTRIBUTES", "a=%ff", `"a=%ff" is no UTF-8`},
		{"OTEL_PROPAGATORS", "tracecontext,jaeger", `"jaeger" is not one of: tracecontext, baggage, none`},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			_, got := load(t, map[string]string{c.name: c.value})
			if want := []string{c.name + ": " + c.want}; !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

//nolint:paralleltest // sets the environment
func TestSamplerRatio(t *testing.T) {
	for arg, bad := range map[string]bool{"": false, "0": false, "0.25": false, "1": false, "1.1": true, "-1": true, "NaN": true, "x": true} {
		for sampler, matters := range map[string]bool{"traceidratio": true, "parentbased_traceidratio": true, "always_on": false, "": false} {
			_, got := load(t, map[string]string{"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": arg})
			if want := bad && matters; (got != nil) != want {
				t.Errorf("%s with %q: %q", sampler, arg, got)
			}
		}
	}
}

//nolint:paralleltest // sets the environment
func TestOn(t *testing.T) {
	const base, traces = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	for name, c := range map[string]struct {
		env                map[string]string
		endpoint, protocol string // in force; no endpoint: off
	}{
		"nothing":        {nil, "", protocolHTTP},
		"base":           {map[string]string{base: "http://b"}, "http://b", protocolHTTP},
		"traces":         {map[string]string{traces: "http://t/x"}, "http://t/x", protocolHTTP},
		"both":           {map[string]string{base: "http://b", traces: "http://t"}, "http://t", protocolHTTP},
		"grpc":           {map[string]string{base: "http://b", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://b", protocolGRPC},
		"traces in json": {map[string]string{base: "http://b", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "http://b", protocolJSON},
		"disabled":       {map[string]string{base: "http://b", "OTEL_SDK_DISABLED": "True"}, "", protocolHTTP},
		"not disabled":   {map[string]string{base: "http://b", "OTEL_SDK_DISABLED": "false"}, "http://b", protocolHTTP},
		"no exporter":    {map[string]string{base: "http://b", "OTEL_TRACES_EXPORTER": "none"}, "", protocolHTTP},
		"all empty":      {map[string]string{base: " ", traces: "", "OTEL_SDK_DISABLED": "", "OTEL_EXPORTER_OTLP_HEADERS": " "}, "", protocolHTTP},
	} {
		t.Run(name, func(t *testing.T) {
			got, faults := load(t, c.env)
			if faults != nil {
				t.Fatalf("faults: %q", faults)
			}
			if on := c.endpoint != ""; got.On() != on || on && got.endpoint() != c.endpoint || got.protocol() != c.protocol {
				t.Errorf("on %v, endpoint %q, protocol %q", got.On(), got.endpoint(), got.protocol())
			}
		})
	}
}

// However the settings are printed, the tokens are not.
func TestHeadersAreNotShown(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", "authorization=Bearer%20hunter2,x-id=hunter2": "authorization=xxxxx,x-id=xxxxx",
		"hunter2": "xxxxx=xxxxx", "Bearer hunter2=": "xxxxx=xxxxx", "a=b,hun ter2=": "a=xxxxx,xxxxx=xxxxx",
	} {
		c := Config{Headers: Headers(in)}
		encoded, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		described := config.Describe(&c)["OTEL_EXPORTER_OTLP_HEADERS"]
		if described != want {
			t.Errorf("%q is described as %q, want %q", in, described, want)
		}
		for _, text := range []string{
			string(encoded), described, fmt.Sprintf("%v %+v %#v %q", c, c, c, c.Headers), fmt.Sprint(zap.Any("config", c).Interface),
		} {
			if strings.Contains(text, "unter2") || strings.Contains(text, "ter2") {
				t.Errorf("%q is shown: %s", in, text)
			}
		}
	}
}
