package transport

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// discard is a connection that drops what is written.
type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// request returns a message as a client sends it.
func request(body int) amqp.Publishing {
	return amqp.Publishing{
		Headers: amqp.Table{"rpc-version": int32(1), "rpc-deadline": int64(1_700_000_000_000)}, ContentType: "application/octet-stream",
		CorrelationId: "7b1b2f0e-97d4-4a3b-bb6e-0d1f5f0a5c11", ReplyTo: "rpc_queue.reply", Expiration: "30000", Type: "method", AppId: "client",
		Body: make([]byte, body),
	}
}

// BenchmarkPublish publishes a message, confirms it, and acknowledges a delivery.
func BenchmarkPublish(b *testing.B) {
	for name, body := range map[string]int{"small": 64, "batch": 64 << 10} {
		b.Run(name, func(b *testing.B) {
			l, _ := openLink(b, &peer{}, amqp.Config{})
			ch := confirmed(b, l)
			l.socket.mu.Lock()
			l.socket.Conn = discard{l.socket.Conn}
			l.socket.mu.Unlock()
			msg := request(body)
			b.ReportAllocs()
			b.SetBytes(int64(body))
			tag := uint64(0)
			for b.Loop() {
				tag++
				if _, err := ch.PublishTo("", "rpc_queue", true, msg); err != nil {
					b.Fatal(err)
				}
				ch.confirms.confirm(tag, false, true)
				if err := ch.Ack(tag, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDelivery reads a delivery up to the channel of its consumer, and then a heartbeat,
// which makes Read return.
func BenchmarkDelivery(b *testing.B) {
	for name, body := range map[string]int{"small": 64, "batch": 64 << 10} {
		b.Run(name, func(b *testing.B) {
			msg := request(body)
			message := bytes.Join([][]byte{deliverAs("t", 1, false, "", "rpc_queue"), headerOf(b, msg), frameOf(frameBody, msg.Body), heartbeatFrame}, nil)
			f, channels := intakeOf(&repeated{stream: message}, ContentLimits{MaxBody: 16 << 20, InHand: &BytesInHand{Limit: 1 << 60}})
			q := channels[0].consumers["t"]
			f.intake.passedAt = time.Now() // or the library would get a heartbeat before the first delivery
			passed := make([]byte, len(heartbeatFrame))
			b.ReportAllocs()
			b.SetBytes(int64(len(message)))
			for b.Loop() {
				if _, err := io.ReadFull(f, passed); err != nil {
					b.Fatal(err)
				}
				<-q.out
			}
		})
	}
}
