package amqpx

import (
	"crypto/tls"
	"sync"

	"go.uber.org/zap"
)

// Brokers has the addresses of the brokers and the TLS configuration at one moment. An empty
// field leaves the earlier value in force.
type Brokers struct {
	// URLs is a list of broker URLs in the format of [NewClient].
	URLs string
	// TLS is the configuration for amqps URLs, as for [WithTLS]. It must not be changed
	// afterwards.
	TLS *tls.Config
}

// WithBrokers sets a source of broker URLs and TLS configuration, which is called before each
// attempt to connect. A rotated password or certificate is therefore in use from the next
// attempt; open connections stay. By default the arguments of the constructor are used for
// ever. They must be valid in any case.
//
// The source must return soon and be safe for concurrent use, and its error must contain no
// secret. A result beside an error still counts. An empty field leaves the earlier value in
// force, and so does a list that [ParseURLs] refuses. Such a list, and an error of the source,
// are logged once until the fault changes.
func WithBrokers(source func() (Brokers, error)) Option {
	return option(func(c *config) {
		c.source = nil
		if source != nil {
			c.source = &brokerSource{ask: source}
		}
	})
}

// brokerSource holds the last valid results of the source of WithBrokers. Safe for concurrent
// use.
type brokerSource struct {
	ask func() (Brokers, error)
	log *zap.Logger

	mu     sync.Mutex
	list   string
	urls   []BrokerURL // parsed from list
	config *tls.Config // nil: the configuration of WithTLS
	told   string      // the last fault in the log
}

// start sets the initial values, from the arguments of the constructor.
func (b *brokerSource) start(list string, urls []BrokerURL, log *zap.Logger) {
	b.list, b.urls, b.log = list, urls, log
}

// refresh calls the source and returns the URLs in force.
func (b *brokerSource) refresh() []BrokerURL {
	urls, changed, fault := b.update(b.ask())
	if changed {
		b.log.Info("broker URLs changed", zap.Stringers("brokers", urls))
	}
	if fault != nil {
		b.log.Warn("how to reach the broker could not be read again, so it stays as it was", zap.Error(fault))
	}
	return urls
}

// update takes over a result of the source. It returns the URLs in force, whether they changed,
// and a fault that was not logged before.
func (b *brokerSource) update(now Brokers, fault error) (urls []BrokerURL, changed bool, _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.TLS != nil {
		b.config = now.TLS
	}
	if now.URLs != "" && now.URLs != b.list {
		urls, err := ParseURLs(now.URLs)
		if err == nil {
			b.list, b.urls, changed = now.URLs, urls, true
		} else if fault == nil {
			fault = err
		}
	}
	text := ""
	if fault != nil {
		text = fault.Error()
	}
	if text == b.told {
		fault = nil
	}
	b.told = text
	return b.urls, changed, fault
}

// tls returns the configuration in force, which is nil until the source returned one.
func (b *brokerSource) tls() *tls.Config {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.config
}
