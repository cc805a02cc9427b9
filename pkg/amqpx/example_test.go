package amqpx_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// A server with the method "upper", and a client. Both are safe for concurrent use, and a
// program needs one of them for each queue.
func Example() {
	const url = "amqp://guest:guest@localhost:5672"
	queue := amqpx.WithQueue(amqpx.Queue{Name: "texts"})

	server, err := amqpx.NewServer(url, queue)
	if err != nil {
		log.Fatal(err)
	}
	err = server.Handle("upper", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		return []byte(strings.ToUpper(string(req.Body))), nil
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }() // ends with drain

	client, err := amqpx.NewClient(url, queue)
	if err != nil {
		log.Fatal(err)
	}
	response, err := client.Call(ctx, "upper", []byte("hello"), amqpx.WaitForServer())
	fmt.Println(string(response), err) // HELLO <nil>

	fmt.Println("client closed:", client.Close(ctx))
	drain()
	fmt.Println("server drained:", <-served)
}

// A handler is a function, so a test can call it without a broker.
func ExampleErrorf() {
	find := func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		if string(req.Body) != "ada" {
			return nil, amqpx.Errorf(amqpx.CodeNotFound, "no user %q", req.Body)
		}
		return []byte("Ada Lovelace"), nil
	}
	_, err := find(context.Background(), &amqpx.Request{Method: "find", Body: []byte("bob")})
	fmt.Println(err)
	fmt.Println(amqpx.CodeOf(err) == amqpx.CodeNotFound)
	// Output:
	// not_found: no user "bob"
	// true
}

// No broker listens at this address, so the call certainly does not run.
func ExampleOutcomeOf() {
	client, err := amqpx.NewClient("amqp://guest:guest@localhost:1")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	_, err = client.Call(ctx, "pay", []byte("order 7"))
	cancel()
	fmt.Println(amqpx.CodeOf(err), errors.Is(err, amqpx.ErrNotConnected))
	switch amqpx.OutcomeOf(err) {
	case amqpx.DidNotRun:
		fmt.Println("call again")
	case amqpx.MayHaveRun:
		fmt.Println("ask whether order 7 is paid")
	case amqpx.Ran:
		fmt.Println("handle the error of the handler")
	}
	_ = client.Close(context.Background())
	// Output:
	// deadline_exceeded true
	// call again
}

// The first middleware is the outermost. WithMiddleware does for each call of a client, or for
// each request of a server, what Chain does here for a single handler.
func ExampleMiddleware() {
	named := func(name string) amqpx.Middleware {
		return func(next amqpx.Handler) amqpx.Handler {
			return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
				fmt.Println(name, "sees", req.Method)
				response, err := next(ctx, req)
				fmt.Println(name, "sees", string(response))
				return response, err
			}
		}
	}
	greet := func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		return append([]byte("hello "), req.Body...), nil
	}
	handler := amqpx.Chain(greet, named("outer"), named("inner"))
	_, err := handler(context.Background(), &amqpx.Request{Method: "greet", Body: []byte("world")})
	fmt.Println(err)
	// Output:
	// outer sees greet
	// inner sees greet
	// inner sees hello world
	// outer sees hello world
	// <nil>
}

// The key is the same in each call for the order, so a server does not place it twice. The
// client sends the call again by itself when the connection is lost.
func ExampleWithIdempotencyKey() {
	client, err := amqpx.NewClient("amqp://guest:guest@localhost:5672")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	response, err := client.Call(ctx, "place", []byte("1 tv"), amqpx.WithIdempotencyKey("order 7"))
	cancel()
	fmt.Println(string(response), err)
	_ = client.Close(context.Background())
}

// The server drains at SIGTERM or Ctrl-C, and its requests in progress get their responses. A
// second signal ends the program at once.
func ExampleServer_Serve() {
	server, err := amqpx.NewServer("amqp://guest:guest@localhost:5672", amqpx.WithDrainTimeout(20*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	err = server.Handle("echo", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		return req.Body, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal has its usual effect
	if err := server.Serve(ctx); err != nil {
		log.Fatal(err)
	}
}

// The method "count" answers one request with many items. The loop gets them in order, and as fast
// as it takes them; if it ends early, the handler's context ends.
func ExampleClient_Stream() {
	const url = "amqp://guest:guest@localhost:5672"
	server, err := amqpx.NewServer(url)
	if err != nil {
		log.Fatal(err)
	}
	err = server.HandleStream("count", func(_ context.Context, s *amqpx.ServerStream) error {
		first, err := s.Recv()
		for i := 0; err == nil && i < 3; i++ {
			err = s.Send(fmt.Appendf(nil, "%s %d", first, i))
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }() // ends with drain

	client, err := amqpx.NewClient(url)
	if err != nil {
		log.Fatal(err)
	}
	for item, err := range client.Stream(ctx, "count", []byte("item"), amqpx.WaitForServer()) {
		if err != nil { // the last element
			fmt.Println(err, "after", amqpx.ProgressOf(err).Received, "items")
			break
		}
		fmt.Println(string(item)) // item 0, item 1, item 2
	}
	_ = client.Close(ctx)
	drain()
	fmt.Println(<-served)
}

// Items in both directions: one goroutine sends, another receives.
func ExampleClient_Open() {
	client, err := amqpx.NewClient("amqp://guest:guest@localhost:5672")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	stream, err := client.Open(ctx, "translate")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for _, word := range []string{"one", "two"} {
			if stream.Send([]byte(word)) != nil {
				return // the stream has ended, and the loop below gets the reason
			}
		}
		_ = stream.CloseSend()
	}()
	for item, err := range stream.All() {
		fmt.Println(string(item), err)
	}
	cancel()
	_ = client.Close(context.Background())
}

// A method with types is a variable which server and callers share. Tests need no broker.
func ExampleMethod() {
	type person struct{ Name string }
	type greeting struct{ Text string }
	greet := amqpx.NewMethod[person, greeting]("greet", amqpx.JSON(), amqpx.Validate(func(p person) error {
		if p.Name == "" {
			return amqpx.Errorf(amqpx.CodeInvalidArgument, "whom?").WithDetail(amqpx.BadRequest{
				FieldViolations: []amqpx.FieldViolation{{Field: "Name", Description: "is empty"}},
			})
		}
		return nil
	}))
	handler := greet.Handler(func(_ context.Context, p person) (greeting, error) {
		return greeting{"hello " + p.Name}, nil
	})
	for _, body := range []string{`{"Name":"world"}`, `{"Name":7}`, `{}`} {
		response, err := handler(context.Background(), &amqpx.Request{Body: []byte(body)})
		fmt.Println(string(response), err)
		var bad amqpx.BadRequest
		if amqpx.Detail(err, &bad) {
			fmt.Println(bad.FieldViolations)
		}
	}
	// Output:
	// {"Text":"hello world"} <nil>
	//  invalid_argument: field "Name": want a string, got number
	// [{Name want a string, got number }]
	//  invalid_argument: whom?
	// [{Name is empty }]
}

// A long call that tells its progress is a stream: each item has the progress so far or, the last one,
// the result.
func ExampleStreamMethod() {
	type request struct{ Year int }
	type report struct {
		Percent int
		Result  string
	}
	build := amqpx.NewStreamMethod[request, report]("report.build", amqpx.JSON())

	const url = "amqp://guest:guest@localhost:5672"
	server, err := amqpx.NewServer(url)
	if err != nil {
		log.Fatal(err)
	}
	err = build.Handle(server, func(ctx context.Context, s *amqpx.TypedServerStream[request, report]) error {
		req, err := s.Recv()
		if err != nil {
			return err
		}
		for percent := 0; percent < 100; percent += 25 {
			if ctx.Err() != nil { // the client has canceled the work, or has gone
				return ctx.Err()
			}
			if err := s.Send(report{Percent: percent}); err != nil {
				return err
			}
		}
		return s.Send(report{Percent: 100, Result: fmt.Sprint("report of ", req.Year)})
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }() // ends with drain

	client, err := amqpx.NewClient(url)
	if err != nil {
		log.Fatal(err)
	}
	for r, err := range build.Stream(ctx, client, request{Year: 2026}, amqpx.WaitForServer()) {
		switch {
		case err != nil: // the last element
			fmt.Println(err)
		case r.Percent < 100:
			fmt.Println(r.Percent, "%")
		default:
			fmt.Println(r.Result)
		}
	}
	_ = client.Close(ctx)
	drain()
	fmt.Println(<-served)
}

// Middleware that refuses a call says that the call did not run, and when to call again.
func ExampleRefuse() {
	limit := func(next amqpx.Handler) amqpx.Handler {
		return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			if req.User == "greedy" {
				return nil, amqpx.Refuse(amqpx.CodeResourceExhausted, "%s is over its limit", req.User).WithRetryAfter(time.Second)
			}
			return next(ctx, req)
		}
	}
	h := limit(func(context.Context, *amqpx.Request) ([]byte, error) { return nil, nil })
	_, err := h(context.Background(), &amqpx.Request{User: "greedy"})
	fmt.Println(err)
	// Output: resource_exhausted: greedy is over its limit (did not run)
}
