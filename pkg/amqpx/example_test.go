package amqpx_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// In a program, url is the address of a RabbitMQ broker, and broker.Option() is left out.
const url = "amqp://guest:guest@localhost:5672/"

func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	broker := amqpx.NewMemoryBroker()

	server, err := amqpx.NewServer(url, broker.Option())
	if err != nil {
		fmt.Println(err)
		return
	}
	err = server.Handle("upper", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		return []byte(strings.ToUpper(string(req.Body))), nil
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	served := make(chan error)
	go func() { served <- server.Serve(ctx) }()

	client, err := amqpx.NewClient(url, broker.Option())
	if err != nil {
		fmt.Println(err)
		return
	}
	answer, err := client.Call(ctx, "upper", []byte("hello"), amqpx.WaitForServer())
	fmt.Println(string(answer), err)

	fmt.Println("client closed:", client.Close(ctx))
	stop()
	fmt.Println("server drained:", <-served)
	// Output:
	// HELLO <nil>
	// client closed: <nil>
	// server drained: <nil>
}

func ExampleErrorf() {
	broker := amqpx.NewMemoryBroker()
	defer serve(broker, "find", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		if string(req.Body) == "secret" {
			return nil, errors.New("the password of the database is 1234") // stays in the server
		}
		return nil, amqpx.Errorf(amqpx.CodeNotFound, "no user %q", req.Body)
	})()
	client, done := connect(broker)
	defer done()

	_, err := client.Call(context.Background(), "find", []byte("ada"))
	fmt.Println(err)
	fmt.Println(amqpx.CodeOf(err) == amqpx.CodeNotFound)
	_, err = client.Call(context.Background(), "find", []byte("secret"))
	fmt.Println(err)
	// Output:
	// not_found: no user "ada"
	// true
	// internal: internal error
}

func ExampleOutcomeOf() {
	broker := amqpx.NewMemoryBroker()
	client, done := connect(broker)
	defer done()

	// Without a server, the call certainly did not run.
	_, err := client.Call(context.Background(), "pay", nil)
	fmt.Println(errors.Is(err, amqpx.ErrUnroutable), amqpx.OutcomeOf(err))

	defer serve(broker, "pay", func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
		<-ctx.Done() // too slow
		return nil, ctx.Err()
	})()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err = client.Call(ctx, "pay", nil)
	switch amqpx.OutcomeOf(err) {
	case amqpx.DidNotRun:
		fmt.Println("call again")
	case amqpx.MayHaveRun, amqpx.Ran:
		fmt.Println("ask before you pay twice")
	}
	// Output:
	// true did not run
	// ask before you pay twice
}

func ExampleMiddleware() {
	named := func(name string) amqpx.Middleware {
		return func(next amqpx.Handler) amqpx.Handler {
			return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
				fmt.Println(name, "sees", req.Method)
				answer, err := next(ctx, req)
				fmt.Println(name, "sees", string(answer))
				return answer, err
			}
		}
	}
	broker := amqpx.NewMemoryBroker()
	defer serve(broker, "b", func(context.Context, *amqpx.Request) ([]byte, error) { return []byte("b's answer"), nil })()
	client, done := connect(broker, amqpx.WithMiddleware(named("outer"), named("inner")))
	defer done()

	_, err := client.Call(context.Background(), "b", nil)
	fmt.Println(err)
	// Output:
	// outer sees b
	// inner sees b
	// inner sees b's answer
	// outer sees b's answer
	// <nil>
}

func ExampleIdempotent() {
	broker := amqpx.NewMemoryBroker()
	defer serve(broker, "b", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		fmt.Println("runs", req.IdempotencyKey)
		return []byte("done"), nil
	})()
	client, done := connect(broker)
	defer done()

	broker.LoseLink() // the connection breaks after the request, before its confirm
	answer, err := client.Call(context.Background(), "b", nil, amqpx.WithIdempotencyKey("order-7"))
	fmt.Println(string(answer), err)
	// Output:
	// runs order-7
	// done <nil>
}

func ExampleServer_Serve() {
	broker := amqpx.NewMemoryBroker()
	server, err := amqpx.NewServer(url, broker.Option(), amqpx.WithDrainTimeout(5*time.Second))
	if err != nil {
		fmt.Println(err)
		return
	}
	begun := make(chan struct{})
	err = server.Handle("slow", func(context.Context, *amqpx.Request) ([]byte, error) {
		close(begun)
		<-time.After(20 * time.Millisecond) // the work
		return []byte("finished"), nil
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	// In a program: signal.NotifyContext(context.Background(), syscall.SIGTERM)
	ctx, terminate := context.WithCancel(context.Background())
	defer terminate()
	served := make(chan error)
	go func() { served <- server.Serve(ctx) }()

	client, done := connect(broker)
	defer done()
	go func() {
		<-begun
		terminate() // while the handler runs
	}()
	answer, err := client.Call(context.Background(), "slow", nil, amqpx.WaitForServer())
	fmt.Println(string(answer), err)
	fmt.Println("drained:", <-served)
	// Output:
	// finished <nil>
	// drained: <nil>
}
