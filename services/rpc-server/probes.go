package main

import (
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxprom"
)

// newServer returns a server, and the options of its HTTP server: the metrics, the handlers,
// and round trips, which need the control plane. Settings can switch off metrics and the
// control plane.
func newServer(settings *Config, options []amqpx.ServerOption) (*amqpx.Server, []health.Option, error) {
	metrics := amqpxprom.NewServerMetrics(settings.Queue.Name, amqpxprom.WithNativeHistograms(settings.HTTP.NativeHistograms))
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
