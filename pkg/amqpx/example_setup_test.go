package amqpx_test

import (
	"context"
	"sync"

	"rabbitmq-rpc/pkg/amqpx"
)

// serve starts a server with the given method and returns a function to stop the server.
func serve(broker *amqpx.MemoryBroker, method string, h amqpx.Handler) (stop func()) {
	server, err := amqpx.NewServer(url, broker.Option())
	if err == nil {
		err = server.Handle(method, h)
	}
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(ctx) })
	if err := server.WaitReady(ctx); err != nil {
		panic(err)
	}
	return func() {
		cancel()
		served.Wait()
	}
}

// connect returns a client and a function to close the client.
func connect(broker *amqpx.MemoryBroker, opts ...amqpx.ClientOption) (*amqpx.Client, func()) {
	client, err := amqpx.NewClient(url, append([]amqpx.ClientOption{broker.Option()}, opts...)...)
	if err != nil {
		panic(err)
	}
	return client, func() { _ = client.Close(context.Background()) }
}
