package service

import (
	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/internal/logging"
	"rabbitmq-rpc/internal/tracing"
)

// Config holds the settings that every service reads from the environment. The settings of a
// service embed it.
type Config struct {
	AMQP    config.AMQP
	Queue   config.Queue
	HTTP    health.Config
	Log     logging.Config
	Tracing tracing.Config

	// Traces is set by StartTraces; nil while tracing is off.
	Traces *tracing.Tracing
}

// Validate checks rules that involve several variables.
func (c *Config) Validate(faults *config.Faults) {
	c.AMQP.Validate(faults)
	c.Queue.Validate(faults)
	c.HTTP.Validate(faults)
	c.Tracing.Validate(faults)
}

// shared returns the part of a service's settings that every service has.
func (c *Config) shared() *Config { return c }

// Settings holds all settings of a service: a pointer to a struct that embeds [Config].
type Settings interface {
	config.Spec
	shared() *Config
}
