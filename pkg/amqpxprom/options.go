package amqpxprom

// ClientOption changes the metrics of a client: [WithMaxMethods], [WithNativeHistograms].
type ClientOption interface{ ofClient(c *config) }

// ServerOption changes the metrics of a server: [WithNativeHistograms].
type ServerOption interface{ ofServer(c *config) }

// Option changes the metrics of a client or of a server.
type Option interface {
	ClientOption
	ServerOption
}

type config struct {
	maxMethods int
	native     bool
}

// clientOption implements [ClientOption].
type clientOption func(*config)

func (o clientOption) ofClient(c *config) { o(c) }

// option implements [Option].
type option func(*config)

func (o option) ofClient(c *config) { o(c) }

func (o option) ofServer(c *config) { o(c) }

// DefaultMaxMethods is the default number of method names in a client's metrics.
const DefaultMaxMethods = 100

// WithMaxMethods sets the number of method names with series of their own; calls of all
// further methods are counted together as method "other", and so are streams. The default is
// [DefaultMaxMethods], which also applies if n is less than 1. Each method has up to 17 histograms,
// one per code.
func WithMaxMethods(n int) ClientOption {
	return clientOption(func(c *config) {
		if n < 1 {
			n = DefaultMaxMethods
		}
		c.maxMethods = n
	})
}

// WithNativeHistograms sets whether histograms have native buckets beside the classic ones
// (https://prometheus.io/docs/specs/native_histograms/): a Prometheus server that scrapes them gets
// a resolution of 10 % at any value. The default is false, because native buckets make each record
// half as expensive again.
func WithNativeHistograms(on bool) Option { return option(func(c *config) { c.native = on }) }
