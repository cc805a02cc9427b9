package configtest

// Tracing returns the entries of WithShared for the variables of OpenTelemetry. Without an
// endpoint tracing is off, and then no value is a fault.
func Tracing() map[string]Bad {
	return map[string]Bad{
		"OTEL_SDK_DISABLED":                  {"yes", "", ""},
		"OTEL_TRACES_EXPORTER":               {"zipkin", "", ""},
		"OTEL_EXPORTER_OTLP_ENDPOINT":        {"collector:4318", "is not a URL such as http://collector:4318 or https://collector:4318", ""},
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": {"amqp://u:" + Password + "@h/", "is not a URL such as http://collector:4318 or https://collector:4318", ""},
		"OTEL_EXPORTER_OTLP_PROTOCOL":        {"udp", "", ""},
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": {"http", "", ""},
		"OTEL_EXPORTER_OTLP_HEADERS":         {"authorization " + Password, "", ""},
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS":  {Password, "", ""},
		"OTEL_EXPORTER_OTLP_CERTIFICATE":     {"/nonexistent/ca", "", ""},
		"OTEL_EXPORTER_OTLP_TIMEOUT":         {"10s", "", ""},
		"OTEL_RESOURCE_ATTRIBUTES":           {"production", "", ""},
		"OTEL_TRACES_SAMPLER":                {"sometimes", "", ""},
		"OTEL_TRACES_SAMPLER_ARG":            {"half", "", ""},
		"OTEL_SERVICE_NAME":                  {"\xff", "", ""},
		"OTEL_PROPAGATORS":                   {"b3", "", ""},
	}
}
