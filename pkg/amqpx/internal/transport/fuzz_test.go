package transport

import (
	"fmt"
	"net"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/wire/wiretest"
)

// FuzzHeaders compares the check of headers with the encoders of this package and of amqp091-go:
// accepted headers must encode without error, to the same fields, within the estimated size.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte{4, 1, 'a', 'b', 16, 1, 1, 'c', 'd', 12, 2, 'x', 'y', 'z', 'z'})
	f.Add([]byte{1, 1, 'n', 'n', 9, 0, 0, 0, 0, 1, 0, 0, 0})
	f.Add(append([]byte{1, 1, 'n', 'n', 16, 1, 200}, make([]byte, 500)...))
	near, far := net.Pipe()
	p := servePeer(far, &peer{})
	conn, err := amqp.Open(near, amqp.Config{SASL: []amqp.Authentication{&amqp.PlainAuth{}}, Vhost: "/", Locale: "en_US"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close(); <-p.ended })
	ch, err := conn.Channel()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := wiretest.Seed(raw)
		header := s.Table(0)
		encoded, err := wire.EncodeHeader(header)
		if len(header) == 0 || err != nil || wire.CheckHeader(encoded) != nil {
			return
		}
		header = encoded
		if err := ch.PublishWithContext(t.Context(), "", "q", false, false, amqp.Publishing{Headers: header}); err != nil {
			t.Fatalf("the encoder refused %#v: %v", header, err)
		}
		written := <-p.headers
		if size, _ := wire.HeaderSize(header); len(written) > wire.MaxHeaderBytes || len(written) > size {
			t.Errorf("%d bytes, taken for %d", len(written), size)
		}
		own, err := appendTable(nil, header)
		if err != nil {
			t.Fatalf("this package refused %#v: %v", header, err)
		}
		library := fieldReader{b: written}
		want := library.table()
		again := fieldReader{b: own}
		if got := again.table(); library.bad || again.bad || fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) { // NaN is not equal to itself
			t.Errorf("encoded %#v, amqp091-go %#v", got, want)
		}
	})
}
