package amqpxgrpc

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/fullstorydev/grpchan/grpchantesting"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	protolib "google.golang.org/protobuf/proto"

	"rabbitmq-rpc/pkg/amqpx"
)

type otherKey struct{}

// The context of a method is like one that the functions of grpc-go make.
func TestContextOfAMethod(t *testing.T) {
	t.Parallel()
	if !contextKeys.all {
		t.Error("a value of grpc-go is not found by its key")
	}
	parent, cancel := context.WithCancel(context.WithValue(t.Context(), otherKey{}, "other"))
	stream := &unaryTransportStream{transportStream: transportStream{method: "m"}}
	s := &Server{}
	for name, header := range map[string]map[string]any{"metadata": {"md-a": "1\x002", "b": "no metadata"}, "none": nil} {
		var own handlerContext
		if err := s.initContext(parent, &own, &amqpx.Request{Header: header, User: "user"}, stream); err != nil {
			t.Fatal(err)
		}
		for made, ctx := range map[string]context.Context{"own": own.complete(), "of grpc-go": own.wrapped()} {
			md, ok := metadata.FromIncomingContext(ctx)
			if values := md["a"]; !ok || len(md) != len(header)/2 || len(header) > 0 && (len(values) != 2 || values[1] != "2") {
				t.Errorf("%s, %s: metadata %v, %v", name, made, md, ok)
			}
			if values := metadata.ValueFromIncomingContext(ctx, "a"); len(values) != len(header) {
				t.Errorf("%s, %s: values %q", name, made, values)
			}
			if p, ok := peer.FromContext(ctx); !ok || p.Addr.String() != "user" {
				t.Errorf("%s, %s: peer %v, %v", name, made, p, ok)
			}
			if got := grpc.ServerTransportStreamFromContext(ctx); got != grpc.ServerTransportStream(stream) {
				t.Errorf("%s, %s: stream %v", name, made, got)
			}
			if method, ok := grpc.Method(ctx); !ok || method != "m" {
				t.Errorf("%s, %s: method %q, %v", name, made, method, ok)
			}
			if got := ctx.Value(otherKey{}); got != "other" {
				t.Errorf("%s, %s: value %v", name, made, got)
			}
			if md, ok := metadata.FromOutgoingContext(ctx); ok {
				t.Errorf("%s, %s: outgoing metadata %v", name, made, md)
			}
		}
	}
	var own handlerContext
	if err := s.initContext(parent, &own, &amqpx.Request{}, stream); err != nil {
		t.Fatal(err)
	}
	child, stop := context.WithTimeout(own.complete(), time.Hour)
	defer stop()
	cancel()
	<-child.Done()
}

// empty is a message that takes no memory.
//
//nolint:gochecknoglobals // it does not change.
var empty = &grpchantesting.Message{}

// A call takes two allocations in the server beside those of messages: its context and the function
// that decodes.
//
//nolint:paralleltest // it counts allocations
func TestCallTakesLittleMemory(t *testing.T) {
	desc := &grpc.MethodDesc{Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		return empty, decode(empty)
	}}
	handle := (&Server{}).unaryHandler("m", desc, nil)
	ctx, req := t.Context(), &amqpx.Request{User: "user"}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := handle(ctx, req); err != nil {
			t.Error(err)
		}
	}); n > 2 {
		t.Errorf("%v allocations", n)
	}
}

// The idempotency level of a known method takes no memory.
//
//nolint:paralleltest // it counts allocations
func TestIdempotencyLevelTakesNoMemory(t *testing.T) {
	var levels idempotencyLevels
	levels.isIdempotent(serverMethod)
	if n := testing.AllocsPerRun(100, func() { levels.isIdempotent(unaryMethod) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// A message of a stream is encoded into memory that is used again. The race detector makes pools
// forget a part of what they have.
//
//nolint:paralleltest // it counts allocations
func TestStreamsUseTheirMemoryAgain(t *testing.T) {
	codec := encoding.GetCodecV2(proto.Name)
	message := &grpchantesting.Message{Payload: make([]byte, 100), Count: math.MaxInt32}
	want, err := protolib.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	send := func(m *grpchantesting.Message) {
		b := newSendBuffer()
		defer b.release()
		if body, err := b.marshal(codec, m); err != nil || m == message && string(body) != string(want) {
			t.Errorf("%d bytes, %v, want %d", len(body), err, len(want))
		}
	}
	send(&grpchantesting.Message{Payload: make([]byte, 2*maxSendBuffer)})
	if n := testing.AllocsPerRun(1000, func() { send(message) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	b := newSendBuffer()
	if cap(b.bytes) > maxSendBuffer {
		t.Errorf("%d bytes are kept", cap(b.bytes))
	}
}
