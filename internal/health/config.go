package health

import (
	"net"
	"strconv"

	"rabbitmq-rpc/internal/config"
)

// Config holds the settings of the HTTP server. It is a part of a service's settings.
type Config struct {
	// Addr is host:port; an empty host means every interface, port 0 any free port.
	Addr string `envconfig:"HTTP_ADDR" default:":8080"`
	// Metrics enables /metrics.
	Metrics bool `envconfig:"METRICS" default:"true"`
	// NativeHistograms adds native buckets to the histograms of /metrics.
	NativeHistograms bool `envconfig:"METRICS_NATIVE_HISTOGRAMS" default:"false"`
}

// Validate checks the form of the address.
func (c *Config) Validate(faults *config.Faults) {
	_, port, err := net.SplitHostPort(c.Addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		faults.Addf("HTTP_ADDR", "is not an address such as :8080 or 127.0.0.1:8080")
	}
}
