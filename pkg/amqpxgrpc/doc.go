// Package amqpxgrpc runs services of gRPC over RabbitMQ, with the clients and servers of
// [rabbitmq-rpc/pkg/amqpx] in place of HTTP/2. Code that protoc-gen-go-grpc has generated, and the
// services behind it, stay as they are. What changes is how the program connects and serves:
//
//	client, err := amqpx.NewClient(url, options…) // two lines instead of grpc.NewClient
//	cc := amqpxgrpc.NewClientConn(client)
//	orders := pb.NewOrdersClient(cc)
//
//	server, err := amqpx.NewServer(url, options…) // instead of net.Listen
//	services := amqpxgrpc.NewServer(server)       // instead of grpc.NewServer
//	pb.RegisterOrdersServer(services, impl)
//	err = services.Serve(ctx)                     // instead of Serve(listener)
//
// Unary calls are calls of package amqpx, also in batches; streams of all three kinds are its
// streams. Metadata, headers, trailers, statuses with details, deadlines and cancellation travel both
// ways, interceptors work on both sides, and the services for health and reflection of grpc-go run
// unchanged.
//
// # Errors
//
// An error of a call or stream has a status, which [status.FromError] finds. The same error tells
// package amqpx more: [amqpx.OutcomeOf] whether a server may have run the call, and
// [amqpx.ProgressOf] how far a stream has come. A service returns errors as with grpc-go; an error of
// package amqpx, such as that of [amqpx.Refuse], reaches the caller as it is. An error without a
// status has the code unknown, and its text reaches the caller, as with grpc-go.
//
// # How often a method runs
//
// A method runs at most once for each call, as over HTTP/2, unless its .proto file declares it
// idempotent by the option idempotency_level: calls of such a method are sent again after a lost
// connection, and requests of a lost server run on another one. See [IdempotentMethods].
//
// # Differences
//
// A unary call without a deadline has the deadline of the client ([amqpx.WithTimeout], 30 s), and a
// unary method runs no longer than [amqpx.WithMaxHandlerTime]. Unary methods share the workers of the
// server ([amqpx.WithWorkers]). Headers of a unary method arrive with its response. The details of an
// error take at most [amqpx.MaxDetailsBytes], metadata 64 KiB, a message 16 MiB
// ([amqpx.WithMaxMessageSize]). A request that cannot be decoded is an invalid argument. A panic in a
// method is an error with code internal, and does not end the program.
//
// Not supported, and refused, are the call options for compression and authority, and credentials
// that require transport security: TLS ends at the broker. Options of grpc.NewClient and
// grpc.NewServer have no counterpart except interceptors and default call options; packages amqpxotel
// and amqpxprom replace stats handlers. The page docs/grpc.md of the repository has the whole list,
// and the form of metadata on the wire.
package amqpxgrpc
