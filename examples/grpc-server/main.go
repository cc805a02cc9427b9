// Command grpc-server is a service of gRPC that is reached over RabbitMQ. Three lines of main differ from
// the same program over TCP, whose lines are comments beside them.
package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"rabbitmq-rpc/examples/grpc-server/greetings"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxgrpc"
)

// greeter is the service, as it was.
type greeter struct {
	greetings.UnimplementedGreeterServer
}

func (greeter) Greet(_ context.Context, req *greetings.GreetRequest) (*greetings.GreetResponse, error) {
	if req.GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "a name is required")
	}
	return &greetings.GreetResponse{Greeting: "hello " + req.GetName()}, nil
}

func (g greeter) GreetAll(stream greetings.Greeter_GreetAllServer) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		response, err := g.Greet(stream.Context(), req)
		if err != nil {
			return err
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

func main() {
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672")
	server, err := amqpx.NewServer(url, amqpx.WithQueue(amqpx.Queue{Name: "greeter"})) // listener, err := net.Listen("tcp", ":50051")
	if err != nil {
		log.Fatal(err)
	}
	services := amqpxgrpc.NewServer(server) // services := grpc.NewServer()
	greetings.RegisterGreeterServer(services, greeter{})
	healthpb.RegisterHealthServer(services, health.NewServer())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = services.Serve(ctx) // err = services.Serve(listener)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}
