package tracing

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
)

// Config holds the standard variables of OpenTelemetry that a service reads
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). It is a
// part of a service's settings.
//
// The SDK itself reads most of the variables; Config exists to check them first. As the
// standard requires, an empty variable counts as unset, and invalid values are ignored.
type Config struct {
	// Disabled turns tracing off, regardless of all other settings.
	Disabled string `envconfig:"OTEL_SDK_DISABLED" empty:"ok" url:"ok"`
	// Exporter is otlp, the default, or none.
	Exporter string `envconfig:"OTEL_TRACES_EXPORTER" empty:"ok" url:"ok"`
	// Endpoint is the collector's URL, to which the path for traces is added; TracesEndpoint
	// is the complete URL and takes precedence. Without both, tracing is off.
	Endpoint       Endpoint `envconfig:"OTEL_EXPORTER_OTLP_ENDPOINT" empty:"ok" url:"ok"`
	TracesEndpoint Endpoint `envconfig:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" empty:"ok" url:"ok"`
	// Protocol is http/protobuf, the default, http/json or grpc; TracesProtocol takes
	// precedence.
	Protocol       string `envconfig:"OTEL_EXPORTER_OTLP_PROTOCOL" empty:"ok" url:"ok"`
	TracesProtocol string `envconfig:"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" empty:"ok" url:"ok"`
	// Headers are sent to the collector, for example a token; TracesHeaders take precedence.
	Headers       Headers `envconfig:"OTEL_EXPORTER_OTLP_HEADERS" empty:"ok" url:"ok"`
	TracesHeaders Headers `envconfig:"OTEL_EXPORTER_OTLP_TRACES_HEADERS" empty:"ok" url:"ok"`
	// Certificate is the path of a PEM file of the certificates to trust.
	Certificate string `envconfig:"OTEL_EXPORTER_OTLP_CERTIFICATE" empty:"ok" url:"ok"`
	// Timeout limits one attempt to export, in milliseconds.
	Timeout string `envconfig:"OTEL_EXPORTER_OTLP_TIMEOUT" empty:"ok" url:"ok"`
	// ServiceName is the resource's service.name; the default is the service's own name.
	ServiceName string `envconfig:"OTEL_SERVICE_NAME" empty:"ok" url:"ok"`
	// Attributes are added to the resource: key=value, separated by commas.
	Attributes Attributes `envconfig:"OTEL_RESOURCE_ATTRIBUTES" empty:"ok" url:"ok"`
	// Sampler selects the calls to record, SamplerArg the ratio.
	Sampler    string `envconfig:"OTEL_TRACES_SAMPLER" empty:"ok" url:"ok"`
	SamplerArg string `envconfig:"OTEL_TRACES_SAMPLER_ARG" empty:"ok" url:"ok"`
	// Propagators are tracecontext and baggage, the default, only one of the two, or none.
	Propagators string `envconfig:"OTEL_PROPAGATORS" empty:"ok" url:"ok"`

	ignored []ignored // set by Validate
}

// Protocols of the exporter.
const (
	protocolHTTP = "http/protobuf"
	protocolJSON = "http/json"
	protocolGRPC = "grpc"
)

// The supported propagators and exporters.
const (
	traceContext = "tracecontext"
	baggage      = "baggage"
	none         = "none"
	exporterOTLP = "otlp"
)

// Validate checks every variable. As OpenTelemetry's standard requires, invalid values are
// ignored, and a warning is logged when tracing starts. A value is a fault only if tracing is
// on and no default exists: an unusable endpoint, header or certificate.
func (c *Config) Validate(faults *config.Faults) {
	c.ignored = nil
	if trim(c.Disabled) != "" && !isWord(c.Disabled, "true", "false") {
		c.ignore("OTEL_SDK_DISABLED", &c.Disabled, notOneOf(c.Disabled, "true", "false"))
	}
	c.keepKnown("OTEL_TRACES_EXPORTER", &c.Exporter, exporterOTLP, none)
	c.keepOne("OTEL_EXPORTER_OTLP_PROTOCOL", &c.Protocol, protocolHTTP, protocolJSON, protocolGRPC)
	c.keepOne("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", &c.TracesProtocol, protocolHTTP, protocolJSON, protocolGRPC)
	c.keepKnown("OTEL_PROPAGATORS", &c.Propagators, traceContext, baggage, none)
	c.checkSampler()
	if ms, err := strconv.ParseUint(trim(c.Timeout), 10, 31); trim(c.Timeout) != "" && (err != nil || ms == 0) {
		c.ignore("OTEL_EXPORTER_OTLP_TIMEOUT", &c.Timeout, config.QuoteNumber(c.Timeout)+" is not a whole number of milliseconds")
	}
	if !utf8.ValidString(c.ServiceName) {
		c.ignore("OTEL_SERVICE_NAME", &c.ServiceName, "is no UTF-8")
	}
	if fault := faultOfAttributes(string(c.Attributes)); fault != "" {
		attributes := string(c.Attributes)
		c.ignore("OTEL_RESOURCE_ATTRIBUTES", &attributes, fault)
		c.Attributes = Attributes(attributes)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"} {
		value := os.Getenv(name)
		c.keepOne(name, &value, "gzip", none)
	}
	c.checkExport(faults)
}

// checkExport checks the variables that every export needs.
func (c *Config) checkExport(faults *config.Faults) {
	var found config.Faults
	checkEndpoint(&found, "OTEL_EXPORTER_OTLP_ENDPOINT", c.Endpoint)
	checkEndpoint(&found, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", c.TracesEndpoint)
	c.Headers.check(&found, "OTEL_EXPORTER_OTLP_HEADERS")
	c.TracesHeaders.check(&found, "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
	checkCertificate(&found, "OTEL_EXPORTER_OTLP_CERTIFICATE", c.Certificate, c.endpoint())
	if c.On() {
		faults.Add(&found)
		return
	}
	for name, text := range found.All() {
		c.ignored = append(c.ignored, ignored{name, text})
	}
}

// ignored is an ignored variable and the reason.
type ignored struct{ name, why string }

// ignore records that a variable is ignored, and clears its value.
func (c *Config) ignore(name string, value *string, why string) {
	c.ignored = append(c.ignored, ignored{name, why})
	*value = ""
}

// keepOne ignores a value that is none of the words.
func (c *Config) keepOne(name string, value *string, words ...string) {
	if word := trim(*value); word != "" && !slices.Contains(words, word) {
		c.ignore(name, value, notOneOf(word, words...))
	}
}

// keepKnown removes unknown words from a list, and "none" if the list has further words.
func (c *Config) keepKnown(name string, value *string, words ...string) {
	var known, unknown []string
	for word := range strings.SplitSeq(*value, ",") {
		switch word = trim(word); {
		case word == "":
		case slices.Contains(words, word):
			known = append(known, word)
		default:
			unknown = append(unknown, word)
		}
	}
	if len(known) > 1 && slices.Contains(known, none) {
		c.ignored = append(c.ignored, ignored{name, `"none" stands beside other words`})
		known = slices.DeleteFunc(known, func(word string) bool { return word == none })
	}
	for _, word := range unknown {
		c.ignored = append(c.ignored, ignored{name, notOneOf(word, words...)})
	}
	*value = strings.Join(known, ",")
}

// checkSampler also checks the ratio, which matters only if the sampler uses a ratio.
func (c *Config) checkSampler() {
	const name = "OTEL_TRACES_SAMPLER_ARG"
	const ratio, parentRatio = "traceidratio", "parentbased_traceidratio"
	samplers := []string{"always_on", "always_off", ratio, "parentbased_always_on", "parentbased_always_off", parentRatio}
	if trim(c.Sampler) != "" && !isWord(c.Sampler, samplers...) {
		c.ignore("OTEL_TRACES_SAMPLER", &c.Sampler, notOneOf(c.Sampler, samplers...))
	}
	arg := trim(c.SamplerArg)
	if arg == "" {
		return
	}
	part, err := strconv.ParseFloat(arg, 64)
	switch {
	case !isWord(c.Sampler, ratio, parentRatio):
		c.ignore(name, &c.SamplerArg, "is set without a sampler that takes a ratio")
	case err != nil || !(part >= 0 && part <= 1):
		c.ignore(name, &c.SamplerArg, config.QuoteNumber(arg)+" is not a number from 0 to 1")
	}
}

// sampleRatio returns the ratio of the calls without a parent that are sampled. parentBased is false
// if the sampler decides about calls with a parent too; then only the SDK's sampler can decide.
func (c *Config) sampleRatio() (ratio float64, parentBased bool) {
	switch strings.ToLower(trim(c.Sampler)) {
	case "", "parentbased_always_on":
		return 1, true
	case "parentbased_always_off":
		return 0, true
	case "parentbased_traceidratio":
		ratio, err := strconv.ParseFloat(trim(c.SamplerArg), 64)
		if err != nil { // checkSampler has left only numbers, and the default, which is empty
			ratio = 1
		}
		return ratio, true
	default:
		return 0, false
	}
}

// warn logs the ignored variables and removes them from the environment; otherwise the SDK
// would read them and log its own errors.
func (c *Config) warn(log *zap.Logger) {
	for _, v := range c.ignored {
		log.Warn("a setting of OpenTelemetry is ignored", zap.String("variable", v.name), zap.String("reason", v.why))
		_ = os.Unsetenv(v.name) // Unsetenv fails only for invalid names
	}
}

// On reports whether spans are recorded and exported.
func (c *Config) On() bool {
	return c.endpoint() != "" && !strings.EqualFold(trim(c.Disabled), "true") && c.Exporter != none
}

// endpoint returns the scheme, host and port of the URL in force.
func (c *Config) endpoint() string {
	if e := trim(c.TracesEndpoint.String()); e != "" {
		return e
	}
	return trim(c.Endpoint.String())
}

// protocol returns the protocol in force.
func (c *Config) protocol() string {
	for _, p := range []string{c.TracesProtocol, c.Protocol} {
		if p = trim(p); p != "" {
			return p
		}
	}
	return protocolHTTP
}

// propagators lists the propagators in force.
func (c *Config) propagators() []string {
	var list []string
	for p := range strings.SplitSeq(c.Propagators, ",") {
		if p = trim(p); p != "" {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return []string{traceContext, baggage}
	}
	return list
}

func trim(s string) string { return strings.TrimSpace(s) }
