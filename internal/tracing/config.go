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

// Config is what a service reads of OpenTelemetry's standard variables
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). It
// is a part of a service's settings.
//
// The SDK reads most of them itself: they are here to be judged before. As their standard
// has it, empty is the same as unset, and what is not understood is ignored.
type Config struct {
	// Disabled turns tracing off, whatever else is set.
	Disabled string `envconfig:"OTEL_SDK_DISABLED" empty:"ok" url:"ok"`
	// Exporter is otlp, the default, or none.
	Exporter string `envconfig:"OTEL_TRACES_EXPORTER" empty:"ok" url:"ok"`
	// Endpoint is the collector's URL, below which the path for traces is added;
	// TracesEndpoint is the whole URL and comes first. Without both, tracing is off.
	Endpoint       Endpoint `envconfig:"OTEL_EXPORTER_OTLP_ENDPOINT" empty:"ok" url:"ok"`
	TracesEndpoint Endpoint `envconfig:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" empty:"ok" url:"ok"`
	// Protocol is http/protobuf, the default, http/json or grpc; TracesProtocol comes first.
	Protocol       string `envconfig:"OTEL_EXPORTER_OTLP_PROTOCOL" empty:"ok" url:"ok"`
	TracesProtocol string `envconfig:"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" empty:"ok" url:"ok"`
	// Headers are sent to the collector, such as its token; TracesHeaders come first.
	Headers       Headers `envconfig:"OTEL_EXPORTER_OTLP_HEADERS" empty:"ok" url:"ok"`
	TracesHeaders Headers `envconfig:"OTEL_EXPORTER_OTLP_TRACES_HEADERS" empty:"ok" url:"ok"`
	// Certificate names a PEM file of the certificates to trust.
	Certificate string `envconfig:"OTEL_EXPORTER_OTLP_CERTIFICATE" empty:"ok" url:"ok"`
	// Timeout bounds one attempt to export, in milliseconds.
	Timeout string `envconfig:"OTEL_EXPORTER_OTLP_TIMEOUT" empty:"ok" url:"ok"`
	// ServiceName is the resource's service.name; the default is the service's own name.
	ServiceName string `envconfig:"OTEL_SERVICE_NAME" empty:"ok" url:"ok"`
	// Attributes are added to the resource: key=value, separated by commas.
	Attributes Attributes `envconfig:"OTEL_RESOURCE_ATTRIBUTES" empty:"ok" url:"ok"`
	// Sampler decides which calls are recorded, SamplerArg at which ratio.
	Sampler    string `envconfig:"OTEL_TRACES_SAMPLER" empty:"ok" url:"ok"`
	SamplerArg string `envconfig:"OTEL_TRACES_SAMPLER_ARG" empty:"ok" url:"ok"`
	// Propagators are tracecontext and baggage, the default, one of them, or none.
	Propagators string `envconfig:"OTEL_PROPAGATORS" empty:"ok" url:"ok"`

	ignored []ignored // found by Validate
}

// Protocols that the exporter speaks.
const (
	protocolHTTP = "http/protobuf"
	protocolJSON = "http/json"
	protocolGRPC = "grpc"
)

// Propagators and exporters that there are.
const (
	traceContext = "tracecontext"
	baggage      = "baggage"
	none         = "none"
	exporterOTLP = "otlp"
)

// Validate judges every variable. As OpenTelemetry's standard has it, a value that is not
// understood is ignored, and a warning is logged when tracing starts. Only what there is no
// default for is a fault, and only while tracing is on: an endpoint, headers or a
// certificate that cannot be used.
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

// checkExport judges what an export cannot do without.
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

// ignored is a variable that is ignored, and why.
type ignored struct{ name, why string }

// ignore has a variable ignored.
func (c *Config) ignore(name string, value *string, why string) {
	c.ignored = append(c.ignored, ignored{name, why})
	*value = ""
}

// keepOne ignores a word that is none of those.
func (c *Config) keepOne(name string, value *string, words ...string) {
	if word := trim(*value); word != "" && !slices.Contains(words, word) {
		c.ignore(name, value, notOneOf(word, words...))
	}
}

// keepKnown ignores what is none of the words in a list, and none beside others.
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

// checkSampler also checks the ratio, which counts if the sampler takes one.
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

// warn logs what is ignored, and takes it out of the environment, from which the SDK would
// read it and complain in its own words.
func (c *Config) warn(log *zap.Logger) {
	for _, v := range c.ignored {
		log.Warn("a setting of OpenTelemetry is ignored", zap.String("variable", v.name), zap.String("reason", v.why))
		_ = os.Unsetenv(v.name) // it fails only for names that are none
	}
}

// On reports whether spans are recorded and exported.
func (c *Config) On() bool {
	return c.endpoint() != "" && !strings.EqualFold(trim(c.Disabled), "true") && c.Exporter != none
}

// endpoint is the scheme, host and port of the URL in force.
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
