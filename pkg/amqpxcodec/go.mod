module rabbitmq-rpc/pkg/amqpxcodec

go 1.26.0

require (
	github.com/klauspost/compress v1.20.3
	go.uber.org/goleak v1.3.0
	google.golang.org/protobuf v1.36.12
	rabbitmq-rpc/pkg/amqpx v0.0.0
)

require (
	github.com/HdrHistogram/hdrhistogram-go v1.4.0 // indirect
	github.com/cenkalti/backoff/v5 v5.0.3 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/rabbitmq/amqp091-go v1.16.0 // indirect
	go.uber.org/multierr v1.10.0 // indirect
	go.uber.org/zap v1.28.0 // indirect
)

replace rabbitmq-rpc/pkg/amqpx => ../amqpx
