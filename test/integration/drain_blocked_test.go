//go:build integration

package integration

import (
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// drainWhileTheBrokerBlocks drains a server while the broker blocks publishing. Requests whose
// copies cannot be published must be requeued without waiting.
func drainWhileTheBrokerBlocks(t *testing.T, broker *rig.Broker) {
	t.Helper()
	r := rig.On(t, broker.URL)
	r.Declare(true, nil)
	// The requests are held by a connection without published messages, which the broker does
	// not block.
	holder, err := rig.Dial(t, r.URL).Channel()
	if err != nil {
		t.Fatal(err)
	}
	taken, err := holder.Consume(r.Queue.Name, "holder", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	var held []amqp.Delivery
	for range 4 {
		r.Request(amqp.Publishing{AppId: "b", CorrelationId: uuid.NewString()})
		held = append(held, rig.Recv(t, taken, "a request"))
	}
	if err := holder.Cancel("holder", false); err != nil {
		t.Fatal(err)
	}
	giveBack := func(d *amqp.Delivery) {
		if err := d.Nack(false, true); err != nil {
			t.Fatal(err)
		}
	}
	server := r.Serve(rig.Methods{"b": letter})
	broker.Ctl("set_vm_memory_high_watermark", "0.0000001")
	t.Cleanup(func() { broker.Ctl("set_vm_memory_high_watermark", "0.9") })
	giveBack(&held[0]) // the server publishes its copy, which makes the broker block
	rig.Eventually(t, "the broker blocks", func() bool { return server.Status().State == amqpx.StateBlocked })
	for i := range held[1:] {
		giveBack(&held[1+i])
	}
	rig.Eventually(t, "the copies wait", func() bool { return server.Stats().Republished == 4 })
	begun := time.Now()
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if took := time.Since(begun); took > 10*time.Second { // half of the drain timeout
		t.Errorf("the drain took %v", took)
	}
	rig.Eventually(t, "the requests are in the queue", func() bool { return r.Inspect().Messages == 3 })
}
