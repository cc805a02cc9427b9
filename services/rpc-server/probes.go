package main

import (
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxprom"
)

// newServer returns a server, and what can be asked of it over HTTP besides how it is: its
// metrics, and round trips, which need the control plane. Settings switch both off.
func newServer(settings *Config, options []amqpx.ServerOption) (*amqpx.Server, []health.Option, error) {
	metrics := amqpxprom.NewServerMetrics(settings.Queue.Name)
	registry, err := health.NewRegistry(metrics, health.CertificateMetric(settings.AMQP.CertificateEnd))
	if err != nil {
		return nil, nil, err
	}
	var shows []health.Option
	if settings.HTTP.Metrics {
		options = append(options, amqpx.WithServerObserver(metrics))
		shows = append(shows, health.WithMetrics(registry))
	}
	made, err := amqpx.NewServer(settings.AMQP.URL.Reveal(), options...)
	if err != nil {
		return nil, nil, err
	}
	metrics.Watch(made)
	shows = append(shows, health.WithHandlers(made))
	if settings.Queue.Control {
		shows = append(shows, health.WithPinger(made))
	}
	return made, shows, nil
}
