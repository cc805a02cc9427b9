package amqpxprom_test

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
	"rabbitmq-rpc/pkg/amqpxprom"
)

// The metrics are created before the client, so that they include its first call.
func ExampleClientMetrics() {
	broker := amqpxtest.NewBroker() // a program has RabbitMQ, and leaves out this option
	metrics := amqpxprom.NewClientMetrics("orders", amqpxprom.WithMaxMethods(20))
	client, err := amqpx.NewClient("amqp://guest:guest@localhost/", broker.Option(),
		amqpx.WithQueue(amqpx.Queue{Name: "orders"}), amqpx.WithClientObserver(metrics))
	if err != nil {
		fmt.Println(err)
		return
	}
	metrics.Watch(client)
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)

	_, err = client.Call(context.Background(), "ship", []byte("42")) // no server has declared the queue
	fmt.Println(amqpx.CodeOf(err))
	_ = client.Close(context.Background())

	families, err := registry.Gather() // promhttp.HandlerFor(registry, …) does this for Prometheus
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if m.GetHistogram().GetSampleCount() == 0 && m.GetGauge().GetValue() == 0 {
				continue
			}
			fmt.Print(family.GetName())
			for _, label := range m.GetLabel() {
				fmt.Printf(" %s=%s", label.GetName(), label.GetValue())
			}
			fmt.Println()
		}
	}
	// Output:
	// unavailable
	// amqpx_client_call_duration_seconds code=unavailable method=ship queue=orders
	// amqpx_client_connection_state queue=orders state=closed
}

func ExampleServerMetrics() {
	metrics := amqpxprom.NewServerMetrics("orders")
	server, err := amqpx.NewServer("amqp://guest:guest@localhost/",
		amqpx.WithQueue(amqpx.Queue{Name: "orders"}), amqpx.WithWorkers(8), amqpx.WithServerObserver(metrics))
	if err != nil {
		fmt.Println(err)
		return
	}
	metrics.Watch(server)
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)

	families, err := registry.Gather()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, family := range families {
		if family.GetName() == "amqpx_server_workers" {
			fmt.Println(family.GetHelp(), family.GetMetric()[0].GetGauge().GetValue())
		}
	}
	// Output: Handlers that may run at once. 8
}
