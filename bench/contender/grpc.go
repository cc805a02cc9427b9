package contender

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// grpcUnary measures gRPC, with a direct connection between client and server.
type grpcUnary struct{}

func (grpcUnary) Settings() string {
	return "grpc-go, unary calls of a BytesValue over one connection on loopback, no TLS, deadline on every call; no broker"
}

const grpcService = "bench.Caller"

// Serve implements native.
func (grpcUnary) Serve(ctx context.Context, _ Environment, h *Handler, ready func(string)) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	s.RegisterService(grpcDesc(), h)
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	ready(listener.Addr().String())
	return s.Serve(listener)
}

// grpcDesc describes the service, with one gRPC method for each method of the handler.
func grpcDesc() *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: grpcService, HandlerType: (*any)(nil)}
	for _, method := range []string{MethodQuick, MethodSlow, MethodEcho, MethodHold} {
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
	return desc
}

// Dial implements native.
func (grpcUnary) Dial(_ context.Context, env Environment) (Caller, error) {
	conn, err := grpc.NewClient(env.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return grpcCaller{conn}, nil
}

type grpcCaller struct{ conn *grpc.ClientConn }

// Call implements caller.
func (c grpcCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var out wrapperspb.BytesValue
	if err := c.conn.Invoke(ctx, "/"+grpcService+"/"+method, wrapperspb.Bytes(body), &out); err != nil {
		return nil, err
	}
	return out.GetValue(), nil
}

// Close implements caller.
func (c grpcCaller) Close(context.Context) error { return c.conn.Close() }
