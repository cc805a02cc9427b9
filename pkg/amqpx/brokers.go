package amqpx

import (
	"crypto/tls"
	"sync"

	"go.uber.org/zap"
)

// Brokers is how the brokers are reached at one moment. What is left out is as it was
// before.
type Brokers struct {
	// URLs is a list as [NewClient] takes it.
	URLs string
	// TLS is the configuration for amqps URLs, as [WithTLS] takes it. It must not be
	// changed afterwards.
	TLS *tls.Config
}

// WithBrokers has source asked before each attempt to connect, so that a rotated password
// or certificate is in use from the next one on; connections that are open stay. The
// default is to use for ever what the constructor was given, which still has to be good.
//
// The source must return soon, must be safe for concurrent use, and its error must hold no
// secret. Beside an error, what it returns still counts; what it leaves out, and a list
// that [ParseURLs] refuses, is as it was before, and the log tells of it.
func WithBrokers(source func() (Brokers, error)) Option {
	return option(func(c *config) {
		c.source = nil
		if source != nil {
			c.source = &brokerSource{ask: source}
		}
	})
}

// brokerSource holds the last good answers of the source of WithBrokers. Safe for
// concurrent use.
type brokerSource struct {
	ask func() (Brokers, error)
	log *zap.Logger

	mu     sync.Mutex
	list   string
	urls   []BrokerURL // of list
	config *tls.Config // nil: that of WithTLS
	told   string      // the fault that was logged last
}

// start gives the source what the constructor was given.
func (b *brokerSource) start(list string, urls []BrokerURL, log *zap.Logger) {
	b.list, b.urls, b.log = list, urls, log
}

// refresh asks the source and returns the URLs that are in force.
func (b *brokerSource) refresh() []BrokerURL {
	now, fault := b.ask()
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.TLS != nil {
		b.config = now.TLS
	}
	if now.URLs != "" && now.URLs != b.list {
		urls, err := ParseURLs(now.URLs)
		if err == nil {
			b.list, b.urls = now.URLs, urls
			b.log.Info("broker URLs changed", zap.Stringers("brokers", urls))
		} else if fault == nil {
			fault = err
		}
	}
	text := ""
	if fault != nil {
		text = fault.Error()
	}
	if text != "" && text != b.told {
		b.log.Warn("how to reach the broker could not be read again, so it stays as it was", zap.Error(fault))
	}
	b.told = text
	return b.urls
}

// tls returns the configuration in force; nil is that of WithTLS.
func (b *brokerSource) tls() *tls.Config {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.config
}
