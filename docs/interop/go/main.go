// Program go is a client with amqp091-go and without this project's library, as docs/interop.md
// requires: go run ./docs/interop/go METHOD BODY. The environment has AMQP_URL, RPC_QUEUE and
// RPC_TIMEOUT_MS.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// RPCError is a call that failed. The outcome tells whether a function ran.
type RPCError struct{ Code, Message, Outcome string }

func (e *RPCError) Error() string { return fmt.Sprintf("%s: %s (%s)", e.Code, e.Message, e.Outcome) }

// Client makes one call at a time.
type Client struct {
	channel   *amqp.Channel
	queue     string
	responses <-chan amqp.Delivery
	returns   <-chan amqp.Return
}

// NewClient opens a channel. Direct reply-to needs no queue, and the consumer must exist before
// the first request is published.
func NewClient(conn *amqp.Connection, queue string) (*Client, error) {
	channel, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	returns := channel.NotifyReturn(make(chan amqp.Return, 1))
	responses, err := channel.Consume("amq.rabbitmq.reply-to", "", true, false, false, false, nil)
	return &Client{channel, queue, responses, returns}, err
}

// Call returns the result of a call, or an [RPCError], at the latest at the deadline of ctx.
func (c *Client) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	request := amqp.Publishing{
		AppId: method, ReplyTo: "amq.rabbitmq.reply-to", CorrelationId: rand.Text(), Type: "rpc.v1", Body: body,
	}
	if deadline, ok := ctx.Deadline(); ok {
		request.Expiration = strconv.FormatInt(max(time.Until(deadline).Milliseconds(), 0), 10)
	}
	if err := c.channel.PublishWithContext(ctx, "", c.queue, true, false, request); err != nil {
		return nil, err
	}
	for {
		select {
		case response, ok := <-c.responses:
			if !ok {
				return nil, &RPCError{"unavailable", "connection lost", "may have run"}
			}
			if response.CorrelationId == request.CorrelationId { // any other is late, and is dropped
				return result(response)
			}
		case returned := <-c.returns:
			if returned.CorrelationId == request.CorrelationId {
				return nil, &RPCError{"unavailable", "no such queue", "did not run"}
			}
		case <-ctx.Done():
			return nil, &RPCError{"deadline_exceeded", "no response", "may have run"}
		}
	}
}

// result distinguishes an error, whose body is its message, from a result.
func result(response amqp.Delivery) ([]byte, error) {
	code, failed := response.Headers["rpc-code"]
	if !failed {
		return response.Body, nil
	}
	outcome := "may have run"
	if ran, known := response.Headers["rpc-ran"].(bool); known {
		outcome = map[bool]string{true: "ran", false: "did not run"}[ran]
	}
	return nil, &RPCError{fmt.Sprint(code), string(response.Body), outcome}
}

func run(method, body string) error {
	conn, err := amqp.Dial(cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client, err := NewClient(conn, cmp.Or(os.Getenv("RPC_QUEUE"), "rpc_queue"))
	if err != nil {
		return err
	}
	timeout, err := time.ParseDuration(cmp.Or(os.Getenv("RPC_TIMEOUT_MS"), "30000") + "ms")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	response, err := client.Call(ctx, method, []byte(body))
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(response)
	return err
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
