package tracing

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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

// load returns the settings of the test's environment, which contains only these variables.
func load(t *testing.T, env map[string]string) (*Config, []string) {
	t.Helper()
	configtest.Isolate(t, &Config{})
	for name, value := range env {
		t.Setenv(name, value)
	}
	var c Config
	return &c, configtest.Load(t, &c)
}

// badValues holds an invalid value for every variable.
var badValues = configtest.Tracing() //nolint:gochecknoglobals // a table

//nolint:paralleltest // sets the environment
func TestBadValues(t *testing.T) { configtest.TestBad[Config](t, badValues) }

// FuzzEnvironment checks that the exporters accept all settings that Config accepts, without
// an error in the log.
func FuzzEnvironment(f *testing.F) {
	configtest.Fuzz(f, badValues, func(t *testing.T, c *Config) error {
		t.Helper()
		core, logs := observer.New(zap.DebugLevel)
		complaints := newComplaints(func(f ...zap.Field) { zap.New(core).Warn("complaint", f...) })
		otel.SetLogger(newLibraryLog(complaints))
		otel.SetErrorHandler(otel.ErrorHandlerFunc(complaints.hear))
		c.warn(zap.NewNop())
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

// Values that an export needs are faults while tracing is on, and are ignored while it is off.
//
//nolint:paralleltest // sets the environment
func TestWhatAnExportNeeds(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	const headers, endpoint, certificate = "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_CERTIFICATE"
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
		{certificate, junk, junk + " holds no PEM certificate"},
		{certificate, os.DevNull, "/dev/null is not an ordinary file"},
		{certificate, "/nonexistent/hunter2", "no such file or directory"},
		{certificate, "https://u:hunter2@h/", "no such file or directory"},
	} {
		for off, with := range map[string]map[string]string{
			"on": nil, "disabled": {"OTEL_SDK_DISABLED": "TRUE"}, "no exporter": {"OTEL_TRACES_EXPORTER": "none"},
		} {
			t.Run(c.name+"="+c.value+" "+off, func(t *testing.T) {
				env := map[string]string{endpoint: "https://h", c.name: c.value}
				maps.Copy(env, with)
				settings, got := load(t, env)
				if want := []string{c.name + ": " + c.want}; with == nil && !slices.Equal(got, want) {
					t.Errorf("got  %q\nwant %q", got, want)
				}
				if with == nil {
					return
				}
				if got != nil || !slices.Equal(settings.ignored, []ignored{{c.name, c.want}}) {
					t.Errorf("faults %q, ignored %q, want only %s", got, settings.ignored, c.want)
				}
			})
		}
	}
}

// Invalid values are ignored, with a warning, whether tracing is on or off
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
//
//nolint:paralleltest // sets the environment
func TestWhatIsNotUnderstoodIsIgnored(t *testing.T) {
	const pair = "is not key=value, with special characters percent-encoded"
	const protocols, samplers = "http/protobuf, http/json, grpc", "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, parentbased_traceidratio"
	for _, c := range []struct{ name, value, why, left string }{
		{"OTEL_SDK_DISABLED", "yes", `"yes" is not one of: true, false`, ""},
		{"OTEL_TRACES_EXPORTER", "console", "the value is not one of: otlp, none", ""},
		{"OTEL_TRACES_EXPORTER", "otlp,console", "the value is not one of: otlp, none", "otlp"},
		{"OTEL_TRACES_EXPORTER", "none,otlp", `"none" stands beside other words`, "otlp"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc,http", "the value is not one of: " + protocols, ""},
		{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "gprc", `"gprc" is not one of: ` + protocols, ""},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "0", `"0" is not a whole number of milliseconds`, ""},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "10s", `"10s" is not a whole number of milliseconds`, ""},
		{"OTEL_RESOURCE_ATTRIBUTES", "hunter2", "attribute 1 " + pair, ""},
		{"OTEL_RESOURCE_ATTRIBUTES", "a=1,=hunter2", "attribute 2 " + pair, ""},
		{"OTEL_RESOURCE_ATTRIBUTES", "a=%zz", "attribute 1 " + pair, ""},
		{"OTEL_RESOURCE_ATTRIBUTES", "a=%ff", "attribute 1 is no UTF-8", ""},
		{"OTEL_SERVICE_NAME", "\xff", "is no UTF-8", ""},
		{"OTEL_TRACES_SAMPLER", "xray", "the value is not one of: " + samplers, ""},
		{"OTEL_TRACES_SAMPLER", "always_onn", `"always_onn" is not one of: ` + samplers, ""},
		{"OTEL_TRACES_SAMPLER_ARG", "endpoint=hunter2", "is set without a sampler that takes a ratio", ""},
		{"OTEL_PROPAGATORS", "tracecontext,baggage,b3", `"b3" is not one of: tracecontext, baggage, none`, "tracecontext,baggage"},
		{"OTEL_PROPAGATORS", "hunter2", "the value is not one of: tracecontext, baggage, none", ""},
		{"OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "the value is not one of: gzip, none", ""},
	} {
		for _, endpoint := range []string{"", "http://127.0.0.1:1"} {
			t.Run(c.name+"="+c.value+" "+endpoint, func(t *testing.T) {
				settings, faults := load(t, map[string]string{c.name: c.value, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
				if faults != nil {
					t.Fatalf("faults: %q", faults)
				}
				if shown, ok := config.Describe(settings)[c.name]; ok && shown != c.left {
					t.Errorf("described as %q, want %q", shown, c.left)
				}
				core, logs := observer.New(zap.DebugLevel)
				tr, err := Start(t.Context(), settings, Service{Name: "tester", Queue: "q"}, zap.New(core))
				if err != nil {
					t.Fatal(err)
				}
				tr.Stop(t.Context())
				line := one(t, logs, "a setting of OpenTelemetry is ignored").ContextMap()
				if line["variable"] != c.name || line["reason"] != c.why {
					t.Errorf("got  %q\nwant %q", line, c.why)
				}
				if n := logs.FilterMessage("the tracing library complains").Len(); n > 0 || (tr != nil) != (endpoint != "") {
					t.Errorf("%d complaints of the library, tracing %v", n, tr)
				}
			})
		}
	}
}

//nolint:paralleltest // sets the environment
func TestSamplerRatio(t *testing.T) {
	for arg, bad := range map[string]bool{"": false, "0": false, "0.25": false, "1": false, "1.1": true, "-1": true, "NaN": true, "x": true} {
		for sampler, takes := range map[string]bool{"traceidratio": true, "parentbased_traceidratio": true, "always_on": false, "": false} {
			c, got := load(t, map[string]string{"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": arg})
			if want := arg != "" && (bad || !takes); (len(c.ignored) > 0) != want || got != nil {
				t.Errorf("%s with %q: %q, %q", sampler, arg, c.ignored, got)
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
		"traces":         {map[string]string{traces: "http://t/x"}, "http://t", protocolHTTP},
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

// Tokens are hidden in every printed form of the settings.
func TestHeadersAreNotShown(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", "authorization=Bearer%20hunter2,x-id=hunter2": "2 headers",
		"hunter2": "1 header", "Bearer hunter2=": "1 header", "a=b,hunter2=c": "2 headers",
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

// The errors of exporters contain the whole URL, and collectors may echo the request.
func TestErrorsOfExportersLoseTheirSecrets(t *testing.T) {
	t.Parallel()
	secrets := Headers("authorization=Bearer%20hunter2,x=hun%2Cter2, y=z").secrets()
	for text, want := range map[string]string{
		`Post "http://u:hunter2@h:1/hunter2/v1/traces?x=hunter2": dial tcp: refused`: `Post "http://h:1": dial tcp: refused`,
		`failed to send to https://h/hunter2: 401 (body: Bearer hunter2, hun,ter2)`:  `failed to send to https://h 401 (body: xxxxx, xxxxx)`,
		`z stays`: `z stays`,
	} {
		if got := withoutSecrets(text, secrets); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

//nolint:paralleltest // sets the environment
func TestEndpointAndAttributesAreNotShown(t *testing.T) {
	c, faults := load(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1/hunter2/otlp", "OTEL_RESOURCE_ATTRIBUTES": "api.token=hunter2,b=c",
	})
	if faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	described := config.Describe(c)
	if e, a := described["OTEL_EXPORTER_OTLP_ENDPOINT"], described["OTEL_RESOURCE_ATTRIBUTES"]; e != "http://127.0.0.1:1" || a != "2 attributes" {
		t.Errorf("endpoint %q, attributes %q", e, a)
	}
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(encoded) + fmt.Sprintf("%v %+v %#v", *c, *c, *c); strings.Contains(text, "hunter2") {
		t.Errorf("shown: %s", text)
	}
}
