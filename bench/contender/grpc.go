package contender

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// grpcUnary measures gRPC, with a direct connection between client and server.
type grpcUnary struct{ items bool }

func (c grpcUnary) Settings() string {
	calls := "unary calls of a BytesValue"
	if c.items {
		calls = itemsSettings
	}
	return "grpc-go, " + calls + " over one connection on loopback, no TLS, deadline on every call; no broker"
}

// Serve implements native.
func (grpcUnary) Serve(ctx context.Context, _ Environment, h *Handler, ready func(string)) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	s.RegisterService(stubDesc(), h)
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	ready(listener.Addr().String())
	return s.Serve(listener)
}

// Dial implements native.
func (c grpcUnary) Dial(_ context.Context, env Environment) (Caller, error) {
	conn, err := grpc.NewClient(env.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	caller := newStubCaller(conn, c.items, func(context.Context) error { return conn.Close() })
	caller.timeout = callTimeout
	return caller, nil
}
