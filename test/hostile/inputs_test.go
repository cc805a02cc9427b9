//go:build hostile

package hostile

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/encoding/protowire"
)

// input is a message, or a set of messages, sent to a server repeatedly.
type input struct {
	name, about string
	// program is the server's program: "rpc-server", unless the input needs other handlers.
	program string
	// every is the pause between two sendings.
	every time.Duration
	// url changes the server's URL; tls makes the server connect by TLS.
	url func(string) string
	tls bool
	// send publishes the input once.
	send func(a *attack) error
}

// inputs returns all inputs.
func inputs() []input {
	const often, seldom = 500 * time.Millisecond, 3 * time.Second
	return []input{
		{name: "direct-address-keyed", about: "requests with a key and a made-up address of direct reply-to", every: often, send: forged("key")},
		{name: "direct-address", about: "the same without a key", every: often, send: forged("")},
		{name: "direct-address-ping", about: "pings to all servers with such an address", every: often, send: forgedPings},
		{name: "one-120MB", about: "one message of 120 MB", every: seldom, send: large(1, 120<<20)},
		{name: "24-15MB", about: "24 messages of 15 MB", every: seldom, send: large(24, 15<<20)},
		{name: "batch-of-headers", about: "a batch with one record of 64 MB, millions of headers", every: seldom, send: manyHeaders},
		{name: "unreadable-headers", about: "headers nested 60 deep, and 9,000 of them, to each queue", every: often, send: unreadable},
		{name: "unreadable-headers-tls", about: "the same by TLS", every: often, tls: true, send: unreadable},
		{name: "unreadable-headers-upper", about: "the same with the scheme AMQP://", every: often, send: unreadable, url: func(url string) string {
			return strings.Replace(url, "amqp://", "AMQP://", 1)
		}},
		{name: "forever", about: "200 requests without a deadline whose handlers end only with their contexts", program: "server", every: 5 * time.Second, send: requests(200, "forever")},
		{name: "deaf", about: "30 requests whose handlers take 5 s although they may take 0.5 s, deaf to their contexts", program: "server", every: 2 * time.Second, send: requests(30, "deaf")},
		{name: "typed-nil", about: "handlers that return nil pointers as errors, bare and wrapped", program: "server", every: often, send: requests(1, "typed-nil", "wrapped-nil")},
	}
}

// addresses returns well-formed reply_to addresses of direct reply-to to which RabbitMQ cannot
// deliver. Some versions close the publisher's connection.
func addresses() []string {
	pid := func(tag byte, node string, id, serial uint32, rest ...byte) string {
		term := append([]byte{131, tag, 119, byte(len(node))}, node...)
		term = binary.BigEndian.AppendUint32(term, id)
		term = binary.BigEndian.AppendUint32(term, serial)
		return "amq.rabbitmq.reply-to." + base64.StdEncoding.EncodeToString(append(term, rest...))
	}
	var all []string
	for _, node := range []string{"rabbit@localhost", "zz@localhost", "reply@12345"} {
		all = append(all, pid(88, node, 1, 0, 0, 0, 0, 1)+".a", pid(103, node, 999, 0, 1)+"."+base64.StdEncoding.EncodeToString([]byte("xxxxxxxxxxxxxxxx")))
	}
	return all
}

func forged(key string) func(*attack) error {
	return func(a *attack) error {
		for _, address := range addresses() {
			msg := amqp.Publishing{AppId: "b", CorrelationId: uuid.NewString(), ReplyTo: address}
			if key != "" {
				msg.MessageId = uuid.NewString()
			}
			if err := a.publish("", a.queue, msg); err != nil {
				return err
			}
		}
		return nil
	}
}

func forgedPings(a *attack) error {
	for _, address := range addresses() {
		msg := amqp.Publishing{AppId: "ping", CorrelationId: uuid.NewString(), ReplyTo: address}
		if err := a.publish(a.queue+".control", "", msg); err != nil {
			return err
		}
	}
	return nil
}

func large(n, size int) func(*attack) error {
	body := make([]byte, size)
	return func(a *attack) error {
		messages := make([]amqp.Publishing, n)
		for i := range messages {
			messages[i] = amqp.Publishing{AppId: "b", CorrelationId: uuid.NewString(), ReplyTo: "nobody", Body: body}
		}
		return a.publish("", a.queue, messages...)
	}
}

// manyHeaders sends a batch of one call (protocol.md, Batches).
func manyHeaders(a *attack) error {
	const size, id, method, headers, name, value = 64 << 20, 1, 2, 9, 1, 2
	call := protowire.AppendString(protowire.AppendTag(nil, id, protowire.BytesType), uuid.NewString())
	call = protowire.AppendString(protowire.AppendTag(call, method, protowire.BytesType), "b")
	var header []byte
	for i := 0; len(call) < size; i++ {
		header = protowire.AppendString(protowire.AppendTag(header[:0], name, protowire.BytesType), fmt.Sprintf("%x", i))
		header = protowire.AppendString(protowire.AppendTag(header, value, protowire.BytesType), "")
		call = protowire.AppendBytes(protowire.AppendTag(call, headers, protowire.BytesType), header)
	}
	body := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), call)
	return a.publish("", a.queue+".batch", amqp.Publishing{
		ContentType: "application/vnd.amqpx.calls.v1", ReplyTo: "nobody", CorrelationId: uuid.NewString(), Body: body,
	})
}

// unreadable sends headers that amqp091-go cannot decode to every queue of the service.
func unreadable(a *attack) error {
	const depth, number = 60, 9000
	deep, many := amqp.Table{}, amqp.Table{}
	for range depth {
		deep = amqp.Table{"t": deep}
	}
	for i := range number {
		many[fmt.Sprint("h", i)] = int32(i)
	}
	for _, headers := range []amqp.Table{deep, many} {
		for _, queue := range []string{"", ".batch", ".retry"} {
			msg := amqp.Publishing{AppId: "b", CorrelationId: uuid.NewString(), ReplyTo: "nobody", Headers: headers}
			if err := a.publish("", a.queue+queue, msg); err != nil {
				return err
			}
		}
		if err := a.publish(a.queue+".control", "", amqp.Publishing{AppId: "ping", Headers: headers}); err != nil {
			return err
		}
	}
	return nil
}

// requests sends n requests to each of the given methods.
func requests(n int, methods ...string) func(*attack) error {
	return func(a *attack) error {
		var messages []amqp.Publishing
		for _, method := range methods {
			for range n {
				messages = append(messages, amqp.Publishing{AppId: method, CorrelationId: uuid.NewString(), ReplyTo: "nobody"})
			}
		}
		return a.publish("", a.queue, messages...)
	}
}
