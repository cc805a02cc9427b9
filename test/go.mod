module rabbitmq-rpc/test

go 1.26.0

replace rabbitmq-rpc => ../

require (
	github.com/google/uuid v1.6.0
	github.com/rabbitmq/amqp091-go v1.16.0
	go.uber.org/goleak v1.3.0
	go.uber.org/zap v1.28.0
	rabbitmq-rpc v0.0.0-00010101000000-000000000000
)

require (
	github.com/cenkalti/backoff/v5 v5.0.3 // indirect
	go.uber.org/multierr v1.10.0 // indirect
)
