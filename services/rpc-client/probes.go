package main

import (
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxprom"
)

// newClient returns a client, and the options of its HTTP server: the metrics, and round
// trips, which need the control plane. Settings can switch off both.
func newClient(settings *Config, options []amqpx.ClientOption) (*amqpx.Client, []health.Option, error) {
	metrics := amqpxprom.NewClientMetrics(settings.Queue.Name, amqpxprom.WithNativeHistograms(settings.HTTP.NativeHistograms))
	registry, err := health.NewRegistry(metrics, health.CertificateMetric(settings.AMQP.CertificateEnd))
	if err != nil {
		return nil, nil, err
	}
	var shows []health.Option
	if settings.HTTP.Metrics {
		options = append(options, amqpx.WithClientObserver(metrics))
		shows = append(shows, health.WithMetrics(registry))
	}
	made, err := amqpx.NewClient(settings.AMQP.URL.Reveal(), options...)
	if err != nil {
		return nil, nil, err
	}
	metrics.Watch(made)
	if settings.Queue.Control {
		shows = append(shows, health.WithPinger(made))
	}
	return made, shows, nil
}
