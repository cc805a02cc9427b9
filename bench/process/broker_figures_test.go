package process

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const brokerMetrics = `# TYPE rabbitmq_connections gauge
rabbitmq_connections 8
rabbitmq_connections_opened_total 99
rabbitmq_channels 12
rabbitmq_queues 5
rabbitmq_queues_created_total 17
# HELP rabbitmq_global_messages_received_total Total number of messages
rabbitmq_global_messages_received_total{protocol="amqp091"} 1200
rabbitmq_global_messages_received_total{protocol="amqp10"} 34
rabbitmq_global_messages_received_confirm_total{protocol="amqp091"} 7
erlang_vm_memory_bytes_total{kind="system"} 1e6
erlang_vm_memory_bytes_total{kind="processes"} 500000
erlang_vm_memory_system_bytes_total{usage="binary"} 4e8
erlang_vm_memory_system_bytes_total{usage="ets"} 1e6
`

func TestReadBroker(t *testing.T) {
	t.Parallel()
	broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(brokerMetrics))
	}))
	defer broker.Close()
	want := BrokerFigures{Messages: 1234, Connections: 8, Channels: 12, Declared: 17, Queues: 5, Memory: 1_500_000}
	if got, err := ReadBroker(t.Context(), broker.URL); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if _, err := ReadBroker(t.Context(), broker.URL+"/elsewhere"); err == nil {
		t.Error("a page that is missing is no error")
	}
}

func TestParseBrokerFaults(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"a metric is missing": strings.ReplaceAll(brokerMetrics, "rabbitmq_channels", "rabbitmq_canals"),
		"no number":           strings.ReplaceAll(brokerMetrics, "1200", "many"),
	} {
		if _, err := parseBroker(strings.NewReader(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
