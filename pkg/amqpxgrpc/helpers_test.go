package amqpxgrpc

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// setup is what start starts with.
type setup struct {
	register func(grpc.ServiceRegistrar)
	server   []ServerOption
	client   []ClientOption
	amqpx    []amqpx.Option           // of client and server
	handle   map[string]amqpx.Handler // methods that are none of gRPC
}

// fixture is a client and a server on one broker in memory.
type fixture struct {
	*ClientConn

	broker *amqpxtest.Broker
	client *amqpx.Client
	server *amqpx.Server
}

// start starts a server with the services and a client, and waits until both are ready.
func start(t testing.TB, with setup) *fixture {
	t.Helper()
	broker := amqpxtest.NewBroker()
	var serverOptions []amqpx.ServerOption
	var clientOptions []amqpx.ClientOption
	for _, o := range append([]amqpx.Option{broker.Option()}, with.amqpx...) {
		serverOptions, clientOptions = append(serverOptions, o), append(clientOptions, o)
	}
	server, err := amqpx.NewServer(amqpxtest.URL, serverOptions...)
	if err != nil {
		t.Fatal(err)
	}
	services := NewServer(server, with.server...)
	with.register(services)
	for name, h := range with.handle {
		if err := server.Handle(name, h); err != nil {
			t.Fatal(err)
		}
	}
	client, err := amqpx.NewClient(amqpxtest.URL, clientOptions...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- services.Serve(ctx) }()
	t.Cleanup(func() {
		err := client.Close(context.Background())
		drain()
		if err := errors.Join(err, <-served); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(server.WaitReady(t.Context()), client.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
	return &fixture{NewClientConn(client, with.client...), broker, client, server}
}
