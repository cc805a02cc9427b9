package brokertest_test

import (
	"testing"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

func TestBrokerInMemoryConforms(t *testing.T) {
	t.Parallel()
	conform(t, brokertest.New(), "amqp://app@memory")
}
