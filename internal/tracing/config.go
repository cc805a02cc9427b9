package tracing

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"rabbitmq-rpc/internal/config"
)

// Config is what a service reads of OpenTelemetry's standard variables
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). It
// is a part of a service's settings.
//
// The SDK reads most of them itself, and goes on with a default when it cannot: they are
// here to be judged before. As their standard has it, empty is the same as unset.
type Config struct {
	// Disabled turns tracing off, whatever else is set.
	Disabled string `envconfig:"OTEL_SDK_DISABLED" empty:"ok"`
	// Exporter is otlp, the default, or none.
	Exporter string `envconfig:"OTEL_TRACES_EXPORTER" empty:"ok"`
	// Endpoint is the collector's URL, below which the path for traces is added;
	// TracesEndpoint is the whole URL and comes first. Without both, tracing is off.
	Endpoint       config.Secret `envconfig:"OTEL_EXPORTER_OTLP_ENDPOINT" empty:"ok"`
	TracesEndpoint config.Secret `envconfig:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" empty:"ok"`
	// Protocol is http/protobuf, the default, http/json or grpc; TracesProtocol comes first.
	Protocol       string `envconfig:"OTEL_EXPORTER_OTLP_PROTOCOL" empty:"ok"`
	TracesProtocol string `envconfig:"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" empty:"ok"`
	// Headers are sent to the collector, such as its token; TracesHeaders come first.
	Headers       Headers `envconfig:"OTEL_EXPORTER_OTLP_HEADERS" empty:"ok"`
	TracesHeaders Headers `envconfig:"OTEL_EXPORTER_OTLP_TRACES_HEADERS" empty:"ok"`
	// Certificate names a PEM file of the certificates to trust.
	Certificate string `envconfig:"OTEL_EXPORTER_OTLP_CERTIFICATE" empty:"ok"`
	// Timeout bounds one attempt to export, in milliseconds.
	Timeout string `envconfig:"OTEL_EXPORTER_OTLP_TIMEOUT" empty:"ok"`
	// ServiceName is the resource's service.name; the default is the service's own name.
	ServiceName string `envconfig:"OTEL_SERVICE_NAME" empty:"ok"`
	// Attributes are added to the resource: key=value, separated by commas.
	Attributes string `envconfig:"OTEL_RESOURCE_ATTRIBUTES" empty:"ok"`
	// Sampler decides which calls are recorded, SamplerArg at which ratio.
	Sampler    string `envconfig:"OTEL_TRACES_SAMPLER" empty:"ok"`
	SamplerArg string `envconfig:"OTEL_TRACES_SAMPLER_ARG" empty:"ok"`
	// Propagators are tracecontext and baggage, the default, one of them, or none.
	Propagators string `envconfig:"OTEL_PROPAGATORS" empty:"ok"`
}

// Protocols that the exporter speaks.
const (
	protocolHTTP = "http/protobuf"
	protocolJSON = "http/json"
	protocolGRPC = "grpc"
)

// Propagators that there are.
const (
	traceContext = "tracecontext"
	baggage      = "baggage"
	none         = "none"
)

// Validate judges every variable, also while tracing is off: what is wrong would show only
// when it is turned on.
func (c *Config) Validate(faults *config.Faults) {
	oneOf(faults, "OTEL_SDK_DISABLED", strings.ToLower(c.Disabled), "true", "false")
	oneOf(faults, "OTEL_TRACES_EXPORTER", c.Exporter, "otlp", none)
	checkEndpoint(faults, "OTEL_EXPORTER_OTLP_ENDPOINT", c.Endpoint)
	checkEndpoint(faults, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", c.TracesEndpoint)
	oneOf(faults, "OTEL_EXPORTER_OTLP_PROTOCOL", c.Protocol, protocolHTTP, protocolJSON, protocolGRPC)
	oneOf(faults, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", c.TracesProtocol, protocolHTTP, protocolJSON, protocolGRPC)
	c.Headers.check(faults, "OTEL_EXPORTER_OTLP_HEADERS")
	c.TracesHeaders.check(faults, "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
	checkCertificate(faults, "OTEL_EXPORTER_OTLP_CERTIFICATE", c.Certificate, c.endpoint())
	if ms, err := strconv.ParseUint(trim(c.Timeout), 10, 31); trim(c.Timeout) != "" && (err != nil || ms == 0) {
		faults.Addf("OTEL_EXPORTER_OTLP_TIMEOUT", "%q is not a whole number of milliseconds", c.Timeout)
	}
	if !utf8.ValidString(c.ServiceName) {
		faults.Addf("OTEL_SERVICE_NAME", "is no UTF-8")
	}
	checkAttributes(faults, "OTEL_RESOURCE_ATTRIBUTES", c.Attributes)
	c.checkSampler(faults)
	for _, p := range c.propagators() {
		oneOf(faults, "OTEL_PROPAGATORS", p, traceContext, baggage, none)
	}
}

// checkSampler also checks the ratio, if the sampler takes one.
func (c *Config) checkSampler(faults *config.Faults) {
	const ratio, parentRatio = "traceidratio", "parentbased_traceidratio"
	sampler, arg := strings.ToLower(trim(c.Sampler)), trim(c.SamplerArg)
	oneOf(faults, "OTEL_TRACES_SAMPLER", sampler, "always_on", "always_off", ratio,
		"parentbased_always_on", "parentbased_always_off", parentRatio)
	if arg == "" || sampler != ratio && sampler != parentRatio {
		return
	}
	if part, err := strconv.ParseFloat(arg, 64); err != nil || !(part >= 0 && part <= 1) {
		faults.Addf("OTEL_TRACES_SAMPLER_ARG", "%q is not a number from 0 to 1", arg)
	}
}

// On reports whether spans are recorded and exported.
func (c *Config) On() bool {
	return c.endpoint() != "" && !strings.EqualFold(trim(c.Disabled), "true") && trim(c.Exporter) != none
}

// endpoint is the URL in force, without a password.
func (c *Config) endpoint() string {
	if e := trim(c.TracesEndpoint.String()); e != "" {
		return e
	}
	return trim(c.Endpoint.String())
}

// protocol is the protocol in force.
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
