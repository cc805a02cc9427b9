package contender

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxgrpc"
)

// stubs is the surface of pkg/amqpxgrpc: what generated code of gRPC does.
type stubs struct{ items bool }

func (c stubs) settings() string {
	if c.items {
		return "pkg/amqpxgrpc, " + itemsSettings
	}
	return "pkg/amqpxgrpc, unary calls of a BytesValue"
}

func (stubs) register(s *amqpx.Server, h *Handler) error {
	services := amqpxgrpc.NewServer(s) // without a descriptor every method runs at most once
	services.RegisterService(stubDesc(), h)
	return services.Err()
}

func (c stubs) caller(client *amqpx.Client) Caller {
	// Generated code says in its descriptor which methods are idempotent; this service has none.
	none := amqpxgrpc.IdempotentMethods(func(string) bool { return false })
	return newStubCaller(amqpxgrpc.NewClientConn(client, none), c.items, client.Close)
}

const (
	stubService = "bench.Caller"
	stubItems   = "items" // the method with a stream of items
)

// stubMethods returns the names of the unary methods.
func stubMethods() []string { return []string{MethodQuick, MethodSlow, MethodEcho, MethodHold} }

// stubDesc describes the service, with one gRPC method for each method of the handler, and the
// stream of items.
func stubDesc() *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: stubService, HandlerType: (*any)(nil)}
	for _, method := range stubMethods() {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{
			MethodName: method,
			Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				var in wrapperspb.BytesValue
				if err := decode(&in); err != nil {
					return nil, err
				}
				h, ok := srv.(*Handler)
				if !ok {
					return nil, fmt.Errorf("service of type %T", srv)
				}
				body, err := h.Answer(ctx, method, in.GetValue())
				return wrapperspb.Bytes(body), err
			},
		})
	}
	desc.Streams = []grpc.StreamDesc{{StreamName: stubItems, ServerStreams: true, Handler: sendStubItems}}
	return desc
}

// sendStubItems is the handler of the stream of items.
func sendStubItems(_ any, stream grpc.ServerStream) error {
	var in wrapperspb.BytesValue
	if err := stream.RecvMsg(&in); err != nil {
		return err
	}
	item := newItem()
	for range itemsOfCall {
		if err := stream.SendMsg(wrapperspb.Bytes(item)); err != nil {
			return err
		}
	}
	return nil
}

// stubCaller makes calls as generated code does, over any connection.
type stubCaller struct {
	grpc.ClientConnInterface
	names   map[string]string // the full names of the methods, which are constants in generated code
	items   bool
	timeout time.Duration // of a call; 0: the default of the connection
	close   func(context.Context) error
}

// newStubCaller returns a caller for a connection.
func newStubCaller(connection grpc.ClientConnInterface, items bool, end func(context.Context) error) stubCaller {
	c := stubCaller{ClientConnInterface: connection, names: make(map[string]string), items: items, close: end}
	for _, method := range stubMethods() {
		c.names[method] = "/" + stubService + "/" + method
	}
	return c
}

// Call implements caller.
func (c stubCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	if c.items {
		return []byte(ResponseBody), c.receive(ctx, body)
	}
	var out wrapperspb.BytesValue
	if err := c.Invoke(ctx, c.names[method], wrapperspb.Bytes(body), &out); err != nil {
		return nil, err
	}
	return out.GetValue(), nil
}

// receive opens a stream and receives its items.
func (c stubCaller) receive(ctx context.Context, body []byte) error {
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{StreamName: stubItems, ServerStreams: true}, "/"+stubService+"/"+stubItems)
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(wrapperspb.Bytes(body)), stream.CloseSend()); err != nil {
		return err
	}
	count := itemCount{}
	for {
		var item wrapperspb.BytesValue // a new one for each item, as generated code makes it
		switch err := stream.RecvMsg(&item); {
		case errors.Is(err, io.EOF):
			return count.check()
		case err != nil:
			return err
		}
		if err := count.add(item.GetValue()); err != nil {
			return err
		}
	}
}

// Close implements caller.
func (c stubCaller) Close(ctx context.Context) error { return c.close(ctx) }
