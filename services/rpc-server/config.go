package main

import (
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/internal/logging"
	"rabbitmq-rpc/pkg/amqpx"
)

// Config is everything the server reads from the environment.
type Config struct {
	AMQP  config.AMQP
	Queue config.Queue
	HTTP  health.Config
	Log   logging.Config

	// Prefetch is how many unacknowledged requests the broker hands out to this
	// server; 0 is twice the workers.
	Prefetch int `envconfig:"RPC_PREFETCH" default:"0" min:"0" max:"65535"`
	// Workers is how many calls run at once.
	Workers int `envconfig:"RPC_WORKERS" default:"64" min:"1" max:"65535"`
	// DrainTimeout bounds the graceful stop after the first signal.
	DrainTimeout time.Duration `envconfig:"RPC_DRAIN_TIMEOUT" default:"20s" min:"1ms" max:"1h"`
}

// Validate checks what spans variables.
func (c *Config) Validate(faults *config.Faults) {
	c.AMQP.Validate(faults)
	c.Queue.Validate(faults)
	c.HTTP.Validate(faults)
}

// options returns the library's options for these settings.
func (c *Config) options(logger *zap.Logger) []amqpx.ServerOption {
	options := []amqpx.ServerOption{
		amqpx.WithMiddleware(amqpx.AccessLog(logger), amqpx.Recover(logger)),
		amqpx.WithWorkers(c.Workers),
		amqpx.WithPrefetch(c.Prefetch),
		amqpx.WithDrainTimeout(c.DrainTimeout),
	}
	for _, o := range c.AMQP.Options(name, logger) {
		options = append(options, o)
	}
	for _, o := range c.Queue.Options() {
		options = append(options, o)
	}
	return options
}
