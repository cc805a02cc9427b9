package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxprom"
)

// newClient returns a client and its metrics, which are nil if settings switch them off.
func newClient(settings *Config, options []amqpx.ClientOption) (*amqpx.Client, prometheus.Gatherer, error) {
	url := settings.AMQP.URL.Reveal()
	if !settings.HTTP.Metrics {
		client, err := amqpx.NewClient(url, options...)
		return client, nil, err
	}
	metrics := amqpxprom.NewClientMetrics(settings.Queue.Name)
	registry, err := health.NewRegistry(metrics)
	if err != nil {
		return nil, nil, err
	}
	client, err := amqpx.NewClient(url, append(options, amqpx.WithClientObserver(metrics))...)
	if err != nil {
		return nil, nil, err
	}
	metrics.Watch(client)
	return client, registry, nil
}
