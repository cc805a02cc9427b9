//go:build integration

package brokertest_test

import (
	"os"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

func TestRabbitMQConforms(t *testing.T) {
	t.Parallel()
	url := os.Getenv("AMQPX_TEST_AMQP_URL")
	if url == "" {
		t.Fatal("AMQPX_TEST_AMQP_URL is not set")
	}
	conform(t, transport.NetDialer{Heartbeat: 10 * time.Second, WriteTimeout: 10 * time.Second}, url)
}
