// Command errors carries an error of a domain over a call: the handler turns the error into a
// code, and the caller turns the code back into an error of the domain.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

var errNoItem = errors.New("no such item")

func count(item string) (string, error) {
	switch item {
	case "tv":
		return "3", nil
	case "radio":
		return "", errors.New("the password of the database is 1234")
	default:
		return "", errNoItem
	}
}

// handle is the server's side. An error without a code reaches the caller as CodeInternal,
// without its text; the text stays in the server's log.
func handle(_ context.Context, req *amqpx.Request) ([]byte, error) {
	number, err := count(string(req.Body))
	if errors.Is(err, errNoItem) {
		return nil, amqpx.Errorf(amqpx.CodeNotFound, "%w", err)
	}
	return []byte(number), err
}

// ask is the caller's side.
func ask(ctx context.Context, client *amqpx.Client, item string) (string, error) {
	response, err := client.Call(ctx, "count", []byte(item), amqpx.WaitForServer())
	if amqpx.CodeOf(err) == amqpx.CodeNotFound {
		return "", errNoItem
	}
	return string(response), err
}

func main() {
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672")
	queue := amqpx.WithQueue(amqpx.Queue{Name: "stock"})
	server, err := amqpx.NewServer(url, queue)
	if err != nil {
		log.Fatal(err)
	}
	client, err := amqpx.NewClient(url, queue)
	if err := errors.Join(err, server.Handle("count", handle)); err != nil {
		log.Fatal(err)
	}
	ctx, drain := context.WithTimeout(context.Background(), time.Minute)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }() // ends with drain
	for _, item := range []string{"tv", "sofa", "radio"} {
		switch number, err := ask(ctx, client, item); {
		case errors.Is(err, errNoItem):
			fmt.Printf("%s: not sold here\n", item)
		case err != nil:
			fmt.Printf("%s: %v; outcome: %v\n", item, err, amqpx.OutcomeOf(err))
		default:
			fmt.Printf("%s: %s in stock\n", item, number)
		}
	}
	_ = client.Close(ctx)
	drain()
	if err := <-served; err != nil {
		log.Fatal(err)
	}
}
