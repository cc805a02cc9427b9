package configtest

// Tracing is WithShared's part for the variables of OpenTelemetry, which may all be empty.
func Tracing() map[string]Bad {
	const noURL = "is not a URL such as http://collector:4318 or https://collector:4318"
	const protocols = "is not one of: http/protobuf, http/json, grpc"
	const noHeader = "header 1 is not key=value, with special characters of the value percent-encoded"
	return map[string]Bad{
		"OTEL_SDK_DISABLED":                  {"yes", `"yes" is not one of: true, false`, ""},
		"OTEL_TRACES_EXPORTER":               {"zipkin", `"zipkin" is not one of: otlp, none`, ""},
		"OTEL_EXPORTER_OTLP_ENDPOINT":        {"collector:4318", noURL, ""},
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": {"amqp://u:" + Password + "@h/", noURL, ""},
		"OTEL_EXPORTER_OTLP_PROTOCOL":        {"udp", `"udp" ` + protocols, ""},
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": {"http", `"http" ` + protocols, ""},
		"OTEL_EXPORTER_OTLP_HEADERS":         {"authorization " + Password, noHeader, ""},
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS":  {Password, noHeader, ""},
		"OTEL_EXPORTER_OTLP_CERTIFICATE":     {"/nonexistent/ca", "stat /nonexistent/ca: no such file or directory", ""},
		"OTEL_EXPORTER_OTLP_TIMEOUT":         {"10s", `"10s" is not a whole number of milliseconds`, ""},
		"OTEL_RESOURCE_ATTRIBUTES":           {"production", `"production" is not key=value, with special characters percent-encoded`, ""},
		"OTEL_TRACES_SAMPLER":                {"sometimes", `"sometimes" is not one of: always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, parentbased_traceidratio`, ""},
		"OTEL_TRACES_SAMPLER_ARG":            {"half", "", ""}, // without a sampler that takes one
		"OTEL_SERVICE_NAME":                  {"\xff", "is no UTF-8", ""},
		"OTEL_PROPAGATORS":                   {"b3", `"b3" is not one of: tracecontext, baggage, none`, ""},
	}
}
