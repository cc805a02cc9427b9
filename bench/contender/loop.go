package contender

import (
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// loop is RPC written by hand over amqp091-go, as a good engineer writes it in an afternoon,
// without reconnecting, deadlines for the server or typed errors.
type loop struct {
	confirms bool // publisher confirms on both sides; else none
	split    bool // separate connections for publishing and consuming, on both sides
	direct   bool // direct reply-to instead of an exclusive reply queue
	// deadlines adds the deadline information of amqpx to the messages: the time budget as
	// expiration and header in requests, and the server's times in responses.
	deadlines bool
	secure
}

const (
	// loopPrefetch is sufficient for the loads and equal to amqpx's default. If workers are
	// set, the prefetch is twice the number of workers, as in amqpx.
	loopPrefetch = 128
	// directReplyTo is RabbitMQ's pseudo-queue for direct reply-to, see
	// https://www.rabbitmq.com/docs/direct-reply-to.
	directReplyTo = "amq.rabbitmq.reply-to"
)

func (l loop) Settings() string {
	text := "amqp091-go by hand: exclusive reply queue read without acks"
	if l.direct {
		text = "amqp091-go by hand: direct reply-to"
	}
	if l.confirms {
		text += ", publisher confirms on both sides, a request acked after its response's confirm"
	} else {
		text += ", no publisher confirms, a request acked after its response was written"
	}
	if l.split {
		text += ", two connections each side"
	} else {
		text += ", one connection each side"
	}
	if l.deadlines {
		text += ", deadline and times in properties and headers"
	} else {
		text += ", no deadlines"
	}
	return text + l.secure.settings() + fmt.Sprintf(", prefetch %d and the handler inline in the consuming goroutine, unless workers are set, transient messages", loopPrefetch)
}

// prefetchOf returns the prefetch of a server in env.
func prefetchOf(env Environment) int {
	if env.Workers > 0 {
		return 2 * env.Workers
	}
	return loopPrefetch
}

// loopConns holds the connections and channels of a client or server.
type loopConns struct {
	conns    []*amqp.Connection
	pub, sub *amqp.Channel
}

func (l loop) open(url string) (_ *loopConns, err error) {
	k := &loopConns{}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	if k.pub, err = k.channel(url); err != nil {
		return nil, err
	}
	k.sub = k.pub
	if l.split {
		if k.sub, err = k.channel(url); err != nil {
			return nil, err
		}
	}
	if l.confirms {
		err = k.pub.Confirm(false)
	}
	return k, err
}

// channel opens a new connection and one channel on it.
func (k *loopConns) channel(url string) (*amqp.Channel, error) {
	conn, err := amqp.Dial(url)
	if err != nil {
		return nil, err
	}
	k.conns = append(k.conns, conn)
	return conn.Channel()
}

func (k *loopConns) close() error {
	var faults []error
	for _, conn := range k.conns {
		faults = append(faults, conn.Close())
	}
	return errors.Join(faults...)
}
