package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxprom"
)

// newServer returns a server and its metrics, which are nil if settings switch them off.
func newServer(settings *Config, options []amqpx.ServerOption) (*amqpx.Server, prometheus.Gatherer, error) {
	url := settings.AMQP.URL.Reveal()
	if !settings.HTTP.Metrics {
		server, err := amqpx.NewServer(url, options...)
		return server, nil, err
	}
	metrics := amqpxprom.NewServerMetrics(settings.Queue.Name)
	registry, err := health.NewRegistry(metrics)
	if err != nil {
		return nil, nil, err
	}
	server, err := amqpx.NewServer(url, append(options, amqpx.WithServerObserver(metrics))...)
	if err != nil {
		return nil, nil, err
	}
	metrics.Watch(server)
	return server, registry, nil
}
