// Command grpc-client calls the service of the command grpc-server with generated code. Over TCP, main
// has one line in place of the two that make client and connection, and closes the connection.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc/status"

	"rabbitmq-rpc/examples/grpc-server/greetings"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxgrpc"
)

// greet uses the service, as it did.
func greet(ctx context.Context, greeter greetings.GreeterClient) error {
	response, err := greeter.Greet(ctx, &greetings.GreetRequest{Name: "world"})
	if err != nil {
		return err
	}
	fmt.Println(response.GetGreeting())
	_, err = greeter.Greet(ctx, &greetings.GreetRequest{})
	fmt.Println(status.Code(err), amqpx.OutcomeOf(err)) // the outcome is new: did a server run the call?
	stream, err := greeter.GreetAll(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{"Ada", "Grace"} {
		if err := stream.Send(&greetings.GreetRequest{Name: name}); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		fmt.Println(response.GetGreeting())
	}
}

func main() {
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672")
	client, err := amqpx.NewClient(url, amqpx.WithQueue(amqpx.Queue{Name: "greeter"}))
	if err != nil {
		log.Fatal(err)
	}
	cc := amqpxgrpc.NewClientConn(client) // cc, err := grpc.NewClient("localhost:50051", …)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	err = greet(ctx, greetings.NewGreeterClient(cc))
	cancel()
	if err != nil {
		log.Fatal(err)
	}
	if err := client.Close(context.Background()); err != nil { // cc.Close()
		log.Fatal(err)
	}
}
