package amqpxgrpc

import (
	"context"
	"testing"

	"github.com/fullstorydev/grpchan/grpchantesting"
	"google.golang.org/protobuf/proto"

	"rabbitmq-rpc/pkg/amqpx"
)

// BenchmarkUnary compares calls of a generated client with calls of package amqpx that have the same
// bodies, on the broker in memory, from 64 goroutines for each processor.
func BenchmarkUnary(b *testing.B) {
	s := &service{unary: func(_ context.Context, m *grpchantesting.Message) (*grpchantesting.Message, error) { return m, nil }}
	f := start(b, s.with(setup{handle: map[string]amqpx.Handler{
		"raw": func(_ context.Context, req *amqpx.Request) ([]byte, error) { return req.Body, nil },
	}}))
	message := &grpchantesting.Message{Payload: make([]byte, 100)}
	body, err := proto.Marshal(message)
	if err != nil {
		b.Fatal(err)
	}
	stub := grpchantesting.NewTestServiceClient(f)
	for name, call := range map[string]func() error{
		"raw": func() error {
			_, err := f.client.Call(b.Context(), "raw", body)
			return err
		},
		"stub": func() error {
			_, err := stub.Unary(b.Context(), message)
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

// BenchmarkServerStream measures one message of a server stream, on the broker in memory.
func BenchmarkServerStream(b *testing.B) {
	s := &service{server: func(m *grpchantesting.Message, x grpchantesting.TestService_ServerStreamServer) error {
		for range m.GetCount() {
			if err := x.Send(m); err != nil {
				return err
			}
		}
		return nil
	}}
	client := grpchantesting.NewTestServiceClient(start(b, s.with(setup{})))
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; {
		n := min(left, 1<<30)
		left -= n
		x, err := client.ServerStream(b.Context(), &grpchantesting.Message{Payload: make([]byte, 100), Count: int32(n)})
		if err != nil {
			b.Fatal(err)
		}
		for range n {
			if _, err := x.Recv(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
