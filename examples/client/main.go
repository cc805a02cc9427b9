// Command client calls the method of the command server.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

func main() {
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672")
	client, err := amqpx.NewClient(url, amqpx.WithQueue(amqpx.Queue{Name: "greetings"}))
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	response, err := client.Call(ctx, "greet", []byte("world"), amqpx.Idempotent())
	cancel()
	if err != nil {
		log.Fatalf("%v; outcome: %v", err, amqpx.OutcomeOf(err))
	}
	fmt.Println(string(response)) // hello world
	if err := client.Close(context.Background()); err != nil {
		log.Fatal(err)
	}
}
