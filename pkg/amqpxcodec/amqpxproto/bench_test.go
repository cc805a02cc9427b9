package amqpxproto_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
	"rabbitmq-rpc/pkg/amqpxcodec/amqpxproto"
)

// BenchmarkMethod compares typed calls with protocol buffers and calls with the same bytes, on the
// broker in memory, from 64 goroutines for each processor.
func BenchmarkMethod(b *testing.B) {
	m := amqpx.NewMethod[*text, *text]("proto", amqpxproto.Codec())
	request, err := amqpxproto.Codec().Marshal(wrapperspb.String("request"))
	if err != nil {
		b.Fatal(err)
	}
	response, err := amqpxproto.Codec().Marshal(wrapperspb.String("b"))
	if err != nil {
		b.Fatal(err)
	}
	c := startClient(b, func(s *amqpx.Server) error {
		return errors.Join(
			m.Handle(s, func(context.Context, *text) (*text, error) { return wrapperspb.String("b"), nil }),
			s.Handle("raw", func(context.Context, *amqpx.Request) ([]byte, error) { return response, nil }),
		)
	})
	for name, call := range map[string]func() error{
		"raw": func() error {
			_, err := c.Call(b.Context(), "raw", request)
			return err
		},
		"protocol buffers": func() error {
			_, err := m.Call(b.Context(), c, wrapperspb.String("request"))
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(64)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := call(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// startClient starts a server with methods, and returns a client of it.
func startClient(b *testing.B, register func(*amqpx.Server) error) *amqpx.Client {
	b.Helper()
	broker := amqpxtest.NewBroker()
	s, err := amqpx.NewServer(amqpxtest.URL, broker.Option())
	if err != nil {
		b.Fatal(err)
	}
	if err := register(s); err != nil {
		b.Fatal(err)
	}
	c, err := amqpx.NewClient(amqpxtest.URL, broker.Option())
	if err != nil {
		b.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(b.Context()) }) // the context ends before the cleanup
	b.Cleanup(served.Wait)
	b.Cleanup(func() { _ = c.Close(context.Background()) })
	if err := errors.Join(s.WaitReady(b.Context()), c.WaitReady(b.Context())); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkCodec measures the codec's part of a typed call: the request and the response are encoded
// and decoded.
func BenchmarkCodec(b *testing.B) {
	codec := amqpxproto.Codec()
	b.ReportAllocs()
	for b.Loop() {
		for _, value := range []string{"request", "b"} {
			body, err := codec.Marshal(wrapperspb.String(value))
			if err != nil {
				b.Fatal(err)
			}
			var got *text
			if err := codec.Unmarshal(body, &got); err != nil {
				b.Fatal(err)
			}
		}
	}
}
