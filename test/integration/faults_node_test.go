//go:build integration

package integration

import (
	"fmt"
	"testing"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// nodeLimits sets the limits for all users of a broker, and checks the server's reported fault
// for each limit. RabbitMQ 3.10 has only connection_max, and ignores a value set at runtime.
func nodeLimits(t *testing.T, b *rig.Broker) {
	t.Helper()
	for _, c := range []struct {
		setting string
		limit   int // below the server's needs
		want    faulty
	}{
		{"connection_max", 0, faulty{amqpx.FaultConnectionLimit, []string{"open virtual host", "a limit of connections is reached"}, zap.WarnLevel}},
		{"channel_max_per_node", 1, faulty{amqpx.FaultChannelLimit, []string{"open channel", "a limit of channels is reached"}, zap.WarnLevel}},
		{"cluster_queue_limit", 0, faulty{amqpx.FaultQueueLimit, []string{"declare queue", "a limit of queues is reached"}, zap.ErrorLevel}},
		{"consumer_max_per_channel", 0, faulty{amqpx.FaultConsumerLimit, []string{"consumer_max_per_channel"}, zap.ErrorLevel}},
	} {
		t.Run(c.setting, func(t *testing.T) {
			r := rig.On(t, b.URL)
			b.Ctl("eval", fmt.Sprintf("application:set_env(rabbit, %s, %d).", c.setting, c.limit))
			server, logs := startingServer(t, r, b.URL)
			c.want.check(t, server, logs)
			b.Ctl("eval", fmt.Sprintf("application:set_env(rabbit, %s, infinity).", c.setting))
			becomesReady(t, server)
		})
	}
}
