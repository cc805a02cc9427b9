package documented

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxprom"
)

type client struct{}

func (client) Stats() amqpx.ClientStats { return amqpx.ClientStats{} }
func (client) Status() amqpx.Status     { return amqpx.Status{BrokerCertificateEnd: time.Unix(1, 0)} }

type server struct{}

func (server) Stats() amqpx.ServerStats { return amqpx.ServerStats{} }
func (server) Status() amqpx.Status     { return amqpx.Status{BrokerCertificateEnd: time.Unix(1, 0)} }

// metrics returns the names of all metrics of clients and servers, with their help.
func metrics(t *testing.T) map[string]string {
	t.Helper()
	ofClient, ofServer := amqpxprom.NewClientMetrics("q"), amqpxprom.NewServerMetrics("q")
	ofClient.Watch(client{})
	ofServer.Watch(server{})
	ofClient.CallSettled("m", "", 1)
	ofClient.BatchSent(1)
	ofClient.StreamEnded("m", "", 1, amqpx.Progress{})
	ofServer.HandlerEnded("m", "", 1, 1)
	ofServer.RequestRefused("m", amqpx.CodeUnimplemented)
	ofServer.BatchReceived(1)
	ofServer.StreamEnded("m", "", 1, amqpx.Progress{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(ofClient, ofServer)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{"rabbitmq_rpc_build_info": "", "rabbitmq_rpc_certificate_not_after_seconds": ""}
	for _, f := range families {
		found[f.GetName()] = f.GetHelp()
	}
	return found
}

func TestEveryMetricIsInTheManual(t *testing.T) {
	t.Parallel()
	inCode, inManual := metrics(t), firstCells(t, "## Metrics")
	if len(inCode) < 30 {
		t.Fatalf("found only %d metrics", len(inCode))
	}
	for _, name := range slices.Sorted(maps.Keys(inCode)) {
		if !inManual[name] {
			t.Errorf("docs/operations.md does not list the metric %s: %s", name, inCode[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(inManual)) {
		if _, ok := inCode[name]; !ok {
			t.Errorf("docs/operations.md lists the metric %s, which nothing shows", name)
		}
	}
}
