package brokertest_test

import (
	"crypto/rand"
	"errors"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// The cases of queues of other connections, of refused declarations and of unused queues.

func exclusiveElsewhere(f *fixture) {
	q, err := f.channel(f.dial()).QueueDeclare(f.queue+".exclusive", false, false, true, false, nil)
	f.must(err)
	exchange := "conformance." + rand.Text()
	f.must(f.ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, false, true, false, false, nil))
	f.must(f.ch.QueueBind(f.queue, "", exchange, false, nil)) // the exchange is deleted with its last binding
	for name, use := range map[string]func(transport.Channel) error{
		"declare": func(ch transport.Channel) error {
			_, err := ch.QueueDeclare(q.Name, false, false, false, false, nil)
			return err
		},
		"consume": func(ch transport.Channel) error {
			_, err := ch.Consume(q.Name, "c", false, false, false, false, nil)
			return err
		},
		"bind": func(ch transport.Channel) error { return ch.QueueBind(q.Name, "", exchange, false, nil) },
		"delete": func(ch transport.Channel) error {
			_, err := ch.QueueDelete(q.Name, false, false, false)
			return err
		},
	} {
		ch := f.channel(f.conn)
		err := use(ch)
		f.wantException(ch, err, amqp.ResourceLocked)
		if want := "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '" + q.Name + "'"; err != nil && !strings.Contains(err.Error(), want) {
			f.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	f.publish(q.Name, text("1")) // publishing needs no access
}

// urgent is a message with a priority.
func urgent(body string, priority uint8) amqp.Publishing {
	return amqp.Publishing{Body: []byte(body), Priority: priority}
}

// prioritized declares a queue that tells the priorities 0 to 3 apart and has four messages.
func (f *fixture) prioritized() (queue string) {
	queue = f.queue + ".priorities"
	f.declare(queue, amqp.Table{"x-max-priority": int64(3)})
	for _, m := range []amqp.Publishing{text("1"), urgent("2", 1), urgent("3", 200), urgent("4", 3)} {
		f.publish(queue, m)
	}
	return queue
}

func priorities(f *fixture) {
	queue := f.prioritized()
	ch := f.channel(f.conn)
	f.must(ch.Qos(1, 0, false))
	deliveries := f.consume(ch, queue)
	for i, body := range []string{"3", "4", "2", "5", "1"} { // 200 counts as 3
		d := f.wantDelivery(deliveries, body, false)
		if i == 0 && d.Priority != 200 {
			f.Errorf("priority %d, want 200 as published", d.Priority)
		}
		if i == 2 {
			f.publish(queue, urgent("5", 2)) // overtakes 1; 2 is delivered already
		}
		f.must(d.Ack(false))
	}
	f.must(ch.Close())
}

func prioritiesRequeued(f *fixture) {
	queue := f.prioritized()
	ch := f.channel(f.conn)
	f.must(ch.Qos(3, 0, false))
	deliveries := f.consume(ch, queue)
	f.wantDelivery(deliveries, "3", false)
	f.wantDelivery(deliveries, "4", false)
	last := f.wantDelivery(deliveries, "2", false)
	f.must(last.Nack(true, true))
	f.wantDelivery(deliveries, "3", true)
	f.wantDelivery(deliveries, "4", true)
	f.wantDelivery(deliveries, "2", true)
}

func noPriorities(f *fixture) {
	f.publish(f.queue, text("1"))
	f.publish(f.queue, urgent("2", 255))
	deliveries := f.consume(f.channel(f.conn), f.queue)
	f.wantDelivery(deliveries, "1", false)
	if d := f.wantDelivery(deliveries, "2", false); d.Priority != 255 {
		f.Errorf("priority %d, want 255", d.Priority)
	}
}

func refusalTexts(f *fixture) {
	for _, c := range []struct {
		property          string
		has, wants        amqp.Table
		transient, delete bool // of the second declaration
		text              string
	}{
		{property: "durable", transient: true, text: "received 'false' but current is 'true'"},
		{property: "auto_delete", delete: true, text: "received 'true' but current is 'false'"},
		{
			property: amqp.QueueTTLArg, wants: amqp.Table{amqp.QueueTTLArg: int64(60_000)},
			text: "received the value '60000' of type 'long' but current is none",
		},
		{
			property: amqp.QueueMessageTTLArg, has: amqp.Table{amqp.QueueMessageTTLArg: int64(60_000)},
			text: "received none but current is the value '60000' of type 'long'",
		},
		{
			property: amqp.QueueMaxLenArg, has: amqp.Table{amqp.QueueMaxLenArg: int64(5)}, wants: amqp.Table{amqp.QueueMaxLenArg: int64(6)},
			text: "received '6' but current is '5'",
		},
		{
			property: amqp.QueueOverflowArg, has: amqp.Table{amqp.QueueOverflowArg: "drop-head"},
			wants: amqp.Table{amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish},
			text:  "received 'reject-publish' but current is 'drop-head'",
		},
		{
			property: amqp.QueueTypeArg, has: amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeClassic}, wants: amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum},
			text: "received 'quorum' but current is 'classic'",
		},
	} {
		name := f.queue + "." + c.property
		f.declare(name, c.has)
		ch := f.channel(f.conn)
		_, err := ch.QueueDeclare(name, !c.transient, c.delete, false, false, c.wants)
		f.wantException(ch, err, amqp.PreconditionFailed)
		refused, _ := errors.AsType[*amqp.Error](err)
		before, after, _ := strings.Cut(refused.Reason, "in vhost '")
		_, after, _ = strings.Cut(after, "': ")
		if want := "PRECONDITION_FAILED - inequivalent arg '" + c.property + "' for queue '" + name + "' "; before != want || after != c.text {
			f.Errorf("%q %q, want %q %q", before, after, want, c.text)
		}
	}
}

func unused(f *fixture) {
	const expires = int64(2_000) // the time to start a consumer
	used, lone := f.queue+".used", f.queue+".lone"
	f.declare(used, amqp.Table{amqp.QueueTTLArg: expires})
	f.consume(f.ch, used)
	f.declare(lone, amqp.Table{amqp.QueueTTLArg: expires})
	returns := f.ch.NotifyReturn(make(chan amqp.Return, 1))
	next := time.NewTicker(100 * time.Millisecond)
	defer next.Stop()
	for begun := time.Now(); len(returns) == 0; receive(f, next.C) { // a message is not a use of the queue
		if time.Since(begun) > patience {
			f.Fatal("the unused queue exists")
		}
		confirm, err := f.ch.PublishTo("", lone, true, text("1"))
		f.must(err)
		receive(f, confirm.Done())
	}
	_, err := f.ch.QueueDeclarePassive(used, true, false, false, false, nil)
	f.must(err)
}
