package brokertest_test

import (
	"crypto/rand"
	"maps"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The cases of expiration and dead-lettering (https://www.rabbitmq.com/docs/dlx). Dead letters
// arrive in the queue of the fixture.

// source declares a queue with further arguments whose dead letters go to the queue of the
// fixture, and returns its name.
func (f *fixture) source(args amqp.Table) string {
	f.Helper()
	name := f.queue + ".source"
	all := amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f.queue}
	maps.Copy(all, args)
	f.declare(name, all)
	return name
}

// reject publishes a message to a queue and rejects its delivery.
func (f *fixture) reject(queue string, msg amqp.Publishing) {
	f.Helper()
	f.publish(queue, msg)
	ch := f.channel(f.conn)
	f.must(f.wantDelivery(f.consume(ch, queue), string(msg.Body), false).Reject(false))
	f.must(ch.Close())
}

// death is an entry of x-death. The test does not compare its time.
type death struct {
	reason, queue, exchange, key, expiration string
	count                                    int64
}

// wantDeaths compares the entries of the x-death header, the newest first, and the headers about
// the first of the deaths.
func (f *fixture) wantDeaths(d amqp.Delivery, want ...death) {
	f.Helper()
	list, _ := d.Headers["x-death"].([]any)
	if len(list) != len(want) {
		f.Fatalf("x-death %v, want %v", list, want)
	}
	for i, entry := range list {
		table, _ := entry.(amqp.Table)
		var got death
		got.reason, _ = table["reason"].(string)
		got.queue, _ = table["queue"].(string)
		got.exchange, _ = table["exchange"].(string)
		got.count, _ = table["count"].(int64)
		got.expiration, _ = table["original-expiration"].(string)
		keys, _ := table["routing-keys"].([]any)
		if len(keys) == 1 {
			got.key, _ = keys[0].(string)
		}
		at, _ := table["time"].(time.Time)
		if got != want[i] || at.IsZero() {
			f.Errorf("death %+v at %v, want %+v", got, at, want[i])
		}
	}
	first := want[len(want)-1]
	for name, value := range map[string]string{"reason": first.reason, "queue": first.queue, "exchange": first.exchange} {
		if got := d.Headers["x-first-death-"+name]; got != value {
			f.Errorf("%s of the first death: %v, want %q", name, got, value)
		}
	}
}

func deadRejected(f *fixture) {
	source := f.source(nil)
	f.reject(source, amqp.Publishing{Body: []byte("1"), Headers: amqp.Table{"own": "header"}, CorrelationId: "id"})
	d := f.wantDelivery(f.consume(f.ch, f.queue), "1", false)
	f.wantDeaths(d, death{reason: "rejected", queue: source, key: source, count: 1})
	if d.Headers["own"] != "header" || d.CorrelationId != "id" {
		f.Errorf("headers %v, correlation id %q", d.Headers, d.CorrelationId)
	}
}

func deadExpired(f *fixture) {
	source := f.source(nil)
	f.publish(source, amqp.Publishing{Body: []byte("1"), Expiration: "10"})
	d := f.wantDelivery(f.consume(f.ch, f.queue), "1", false)
	f.wantDeaths(d, death{reason: "expired", queue: source, key: source, count: 1, expiration: "10"})
	if d.Expiration != "" { // else the message would expire again
		f.Errorf("the dead letter has the expiration %q", d.Expiration)
	}
}

func deadTTL(f *fixture) {
	source := f.source(amqp.Table{amqp.QueueMessageTTLArg: int64(10)})
	f.publish(source, text("1"))
	d := f.wantDelivery(f.consume(f.ch, f.queue), "1", false)
	f.wantDeaths(d, death{reason: "expired", queue: source, key: source, count: 1})
}

func deadShorterTTL(f *fixture) {
	source := f.source(amqp.Table{amqp.QueueMessageTTLArg: int64(10)})
	f.publish(source, amqp.Publishing{Body: []byte("1"), Expiration: "3600000"})
	d := f.wantDelivery(f.consume(f.ch, f.queue), "1", false)
	f.wantDeaths(d, death{reason: "expired", queue: source, key: source, count: 1, expiration: "3600000"})
}

// Without a routing key of its own, a dead letter keeps the key of the message.
func deadToExchange(f *fixture) {
	exchange, source := "conformance."+rand.Text(), f.queue+".source"
	f.must(f.ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, false, true, false, false, nil))
	f.must(f.ch.QueueBind(f.queue, "", exchange, false, nil))
	f.declare(source, amqp.Table{"x-dead-letter-exchange": exchange})
	f.reject(source, text("1"))
	d := f.wantDelivery(f.consume(f.ch, f.queue), "1", false)
	f.wantDeaths(d, death{reason: "rejected", queue: source, key: source, count: 1})
	if d.Exchange != exchange || d.RoutingKey != source {
		f.Errorf("the dead letter was published to %q with key %q", d.Exchange, d.RoutingKey)
	}
}

func deadCounted(f *fixture) {
	again := f.queue + ".again" // returns what its consumers reject
	f.declare(again, amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": again})
	f.publish(again, text("1"))
	deliveries := f.consume(f.ch, again)
	f.must(f.wantDelivery(deliveries, "1", false).Reject(false))
	f.must(f.wantDelivery(deliveries, "1", false).Reject(false))
	d := f.wantDelivery(deliveries, "1", false)
	f.wantDeaths(d, death{reason: "rejected", queue: again, key: again, count: 2})
}

func deadTwice(f *fixture) {
	source, first := f.source(nil), f.queue+".first"
	f.declare(first, amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": source, amqp.QueueMessageTTLArg: int64(10)})
	f.publish(first, text("1"))
	f.must(f.wantDelivery(f.consume(f.ch, source), "1", false).Reject(false))
	d := f.wantDelivery(f.consume(f.ch, f.queue), "1", false)
	f.wantDeaths(d, death{reason: "rejected", queue: source, key: source, count: 1}, death{reason: "expired", queue: first, key: first, count: 1})
}

// A message that would expire in the same queue again, without a rejection on its way, is
// dropped.
func deadCycle(f *fixture) {
	name := f.queue + ".circle"
	f.declare(name, amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name, amqp.QueueMessageTTLArg: int64(10)})
	f.publish(name, text("1"))
	other := f.source(amqp.Table{amqp.QueueMessageTTLArg: int64(100)})
	f.publish(other, text("2"))
	f.wantDelivery(f.consume(f.ch, f.queue), "2", false) // after the end of the circle
	q, err := f.channel(f.conn).QueueDeclarePassive(name, true, false, false, false, nil)
	f.must(err)
	if q.Messages != 0 {
		f.Errorf("%d messages go round", q.Messages)
	}
}

// A message that has expired leaves the queue when it has reached the head.
func expiresAtHead(f *fixture) {
	source := f.source(nil)
	f.publish(source, text("1"))
	f.publish(source, amqp.Publishing{Body: []byte("2"), Expiration: "1"})
	f.publish(source, text("3"))
	other := f.queue + ".timer"
	f.declare(other, amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f.queue, amqp.QueueMessageTTLArg: int64(100)})
	f.publish(other, text("timer"))
	dead := f.consume(f.ch, f.queue)
	f.wantDelivery(dead, "timer", false) // the second message has expired by now
	deliveries := f.consume(f.channel(f.conn), source)
	f.wantDelivery(deliveries, "1", false)
	f.wantDelivery(deliveries, "3", false)
	f.wantDelivery(dead, "2", false)
}
