package brokertest_test

import (
	"crypto/rand"

	amqp "github.com/rabbitmq/amqp091-go"
)

func otherProperties(f *fixture) {
	_, err := f.ch.QueueDeclare(f.queue, true, true, false, false, nil)
	f.wantException(f.ch, err, amqp.PreconditionFailed)
}

func otherArguments(f *fixture) {
	_, err := f.ch.QueueDeclare(f.queue, true, false, false, false, amqp.Table{amqp.QueueTTLArg: int64(60_000)})
	f.wantException(f.ch, err, amqp.PreconditionFailed)
}

func passiveMissing(f *fixture) {
	_, err := f.ch.QueueDeclarePassive(f.queue+".missing", true, false, false, false, nil)
	f.wantException(f.ch, err, amqp.NotFound)
}

func consumeMissing(f *fixture) {
	_, err := f.ch.Consume(f.queue+".missing", "c", false, false, false, false, nil)
	f.wantException(f.ch, err, amqp.NotFound)
}

func confirmed(f *fixture) {
	f.publish(f.queue, text("1"))
	f.wantReady(1)
	f.publish(f.queue+".missing", text("2")) // not mandatory: confirmed and lost
}

func returnedFirst(f *fixture) {
	returns := f.ch.NotifyReturn(make(chan amqp.Return, 1))
	confirm, err := f.ch.PublishTo("", f.queue+".missing", true, text("1"))
	f.must(err)
	receive(f, confirm.Done())
	select {
	case r := <-returns:
		if r.ReplyCode != amqp.NoRoute || string(r.Body) != "1" || r.RoutingKey != f.queue+".missing" {
			f.Errorf("return %d of %q to %q", r.ReplyCode, r.Body, r.RoutingKey)
		}
	default:
		f.Error("the confirm came before the return")
	}
	if !confirm.Acked() {
		f.Error("the returned message was not confirmed")
	}
}

func acknowledged(f *fixture) {
	f.publish(f.queue, text("1"))
	ch := f.channel(f.conn)
	d := f.wantDelivery(f.consume(ch, f.queue), "1", false)
	f.must(ch.Ack(d.DeliveryTag, false))
	f.must(ch.Close())
	f.wantReady(0)
}

func requeued(f *fixture) {
	for _, body := range []string{"1", "2", "3"} {
		f.publish(f.queue, text(body))
	}
	ch := f.channel(f.conn)
	f.must(ch.Qos(2, 0, false))
	deliveries := f.consume(ch, f.queue)
	f.wantDelivery(deliveries, "1", false)
	second := f.wantDelivery(deliveries, "2", false)
	f.must(second.Nack(true, true))
	f.wantDelivery(deliveries, "1", true)
	f.wantDelivery(deliveries, "2", true)
}

func rejected(f *fixture) {
	f.publish(f.queue, text("1"))
	ch := f.channel(f.conn)
	d := f.wantDelivery(f.consume(ch, f.queue), "1", false)
	f.must(d.Reject(false))
	f.must(ch.Close())
	f.wantReady(0)
}

func prefetched(f *fixture) {
	for _, body := range []string{"1", "2", "3"} {
		f.publish(f.queue, text(body))
	}
	ch := f.channel(f.conn)
	f.must(ch.Qos(2, 0, false))
	deliveries := f.consume(ch, f.queue)
	f.wantDelivery(deliveries, "1", false)
	second := f.wantDelivery(deliveries, "2", false)
	f.wantReady(1)
	f.must(ch.Ack(second.DeliveryTag, true))
	f.wantDelivery(deliveries, "3", false)
}

func channelEnds(f *fixture) {
	f.publish(f.queue, text("1"))
	ch := f.channel(f.conn)
	f.wantDelivery(f.consume(ch, f.queue), "1", false)
	f.must(ch.Close())
	f.wantDelivery(f.consume(f.ch, f.queue), "1", true)
}

func exclusive(f *fixture) {
	conn := f.dial()
	q, err := f.channel(conn).QueueDeclare("", false, false, true, false, nil)
	f.must(err)
	if q.Name == "" {
		f.Error("the queue has no name")
	}
	ch := f.channel(f.conn)
	_, err = ch.QueueDeclarePassive(q.Name, false, false, true, false, nil)
	f.wantException(ch, err, amqp.ResourceLocked)
	conn.Close()
	ch = f.channel(f.conn)
	_, err = ch.QueueDeclarePassive(q.Name, false, false, true, false, nil)
	f.wantException(ch, err, amqp.NotFound)
}

func deleted(f *fixture) {
	ch := f.channel(f.conn)
	cancels := ch.NotifyCancel(make(chan string, 1))
	deliveries := f.consume(ch, f.queue)
	_, err := f.ch.QueueDelete(f.queue, false, false, false)
	f.must(err)
	if tag := receive(f, cancels); tag == "" {
		f.Error("the cancellation names no consumer")
	}
	if d := receive(f, deliveries); d.DeliveryTag != 0 {
		f.Errorf("delivery %d after the cancellation", d.DeliveryTag)
	}
}

func unknownTag(f *fixture) {
	ends := f.ch.NotifyClose(make(chan *amqp.Error, 1))
	f.must(f.ch.Ack(7, false))
	if end := receive(f, ends); end == nil || end.Code != amqp.PreconditionFailed {
		f.Errorf("the channel ended with %v", end)
	}
}

func expires(f *fixture) {
	f.publish(f.queue, amqp.Publishing{Body: []byte("1"), Expiration: "0"})
	f.publish(f.queue, text("2"))
	f.wantDelivery(f.consume(f.ch, f.queue), "2", false)
}

func directReply(f *fixture) {
	const address = "amq.rabbitmq.reply-to"
	replies, err := f.ch.Consume(address, "replies", true, false, false, false, nil)
	f.must(err)
	f.publish(f.queue, amqp.Publishing{Body: []byte("1"), ReplyTo: address})
	ch := f.channel(f.conn)
	d := f.wantDelivery(f.consume(ch, f.queue), "1", false)
	if d.ReplyTo == address {
		f.Error("the broker did not replace the reply address")
	}
	_, err = ch.PublishTo("", d.ReplyTo, false, text("2"))
	f.must(err)
	f.wantDelivery(replies, "2", false)
}

func noExchange(f *fixture) {
	err := f.ch.ExchangeDeclarePassive(f.queue, amqp.ExchangeFanout, true, false, false, false, nil)
	f.wantException(f.ch, err, amqp.NotFound)
}

func fanout(f *fixture) {
	exchange := "conformance." + rand.Text()
	f.must(f.ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, false, true, false, false, nil))
	f.must(f.ch.QueueBind(f.queue, "", exchange, false, nil))
	f.must(f.ch.PublishFanout(exchange, text("1")))
	f.wantDelivery(f.consume(f.ch, f.queue), "1", false)
}

func full(f *fixture) {
	bounded := f.queue + ".bounded"
	f.declare(bounded, amqp.Table{amqp.QueueMaxLenArg: int64(1), amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish})
	f.publish(bounded, text("1"))
	confirm, err := f.ch.PublishTo("", bounded, false, text("2"))
	f.must(err)
	receive(f, confirm.Done())
	if confirm.Acked() {
		f.Error("the broker took a message beyond the limit")
	}
}

func bindMissing(f *fixture) {
	exchange := "conformance." + rand.Text()
	f.must(f.ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, false, true, false, false, nil))
	f.must(f.ch.QueueBind(f.queue, "", exchange, false, nil)) // the exchange is deleted with its last binding
	f.wantException(f.ch, f.ch.QueueBind(f.queue+".missing", "", exchange, false, nil), amqp.NotFound)
}

func direct(f *fixture) {
	exchange := "conformance." + rand.Text()
	f.must(f.ch.ExchangeDeclare(exchange, amqp.ExchangeDirect, false, true, false, false, nil))
	f.must(f.ch.ExchangeDeclarePassive(exchange, amqp.ExchangeDirect, false, true, false, false, nil))
	for range 2 { // the second time changes nothing
		f.must(f.ch.QueueBind(f.queue, f.queue, exchange, false, nil))
	}
	returns := f.ch.NotifyReturn(make(chan amqp.Return, 2))
	for _, c := range []struct{ key, returned string }{{f.queue, ""}, {"other", "2"}, {"", "3"}} {
		var err error
		if body := text(c.returned); c.key == "" {
			err = f.ch.PublishFanout(exchange, body)
		} else {
			confirm, refused := f.ch.PublishTo(exchange, c.key, true, body)
			f.must(refused)
			receive(f, confirm.Done())
			if !confirm.Acked() {
				f.Errorf("the message with key %q was not confirmed", c.key)
			}
		}
		f.must(err)
		if c.returned == "" {
			continue
		}
		if r := receive(f, returns); string(r.Body) != c.returned || r.RoutingKey != c.key {
			f.Errorf("return of %q to %q, want %q to %q", r.Body, r.RoutingKey, c.returned, c.key)
		}
	}
	d := f.wantDelivery(f.consume(f.channel(f.conn), f.queue), "", false)
	if d.Exchange != exchange || d.RoutingKey != f.queue {
		f.Errorf("delivery from exchange %q with key %q", d.Exchange, d.RoutingKey)
	}
	f.wantReady(0)
}

func otherExchange(f *fixture) {
	exchange := "conformance." + rand.Text()
	f.must(f.ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, false, true, false, false, nil))
	f.must(f.ch.QueueBind(f.queue, "", exchange, false, nil)) // the exchange is deleted with its last binding
	err := f.ch.ExchangeDeclare(exchange, amqp.ExchangeDirect, false, true, false, false, nil)
	f.wantException(f.ch, err, amqp.PreconditionFailed)
}

func publishToNoExchange(f *fixture) {
	ends := f.ch.NotifyClose(make(chan *amqp.Error, 1))
	confirm, err := f.ch.PublishTo("conformance."+rand.Text(), f.queue, true, text("1"))
	f.must(err)
	receive(f, confirm.Done())
	if confirm.Acked() {
		f.Error("a message to no exchange was confirmed")
	}
	if end := receive(f, ends); end == nil || end.Code != amqp.NotFound {
		f.Errorf("the channel ended with %v", end)
	}
}
