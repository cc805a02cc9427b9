// Package amqpx is RPC over RabbitMQ. Every call settles: with a response, or with an error
// that states whether a server may have run the call.
//
// # Use
//
// A [Server] registers handlers by method name and serves a request queue until its context
// ends:
//
//	server, err := amqpx.NewServer("amqp://guest:guest@localhost:5672")
//	if err != nil {
//		return err
//	}
//	err = server.Handle("greet", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
//		return append([]byte("hello "), req.Body...), nil
//	})
//	if err != nil {
//		return err
//	}
//	return server.Serve(ctx)
//
// A [Client] calls the methods, mostly from another program:
//
//	client, err := amqpx.NewClient("amqp://guest:guest@localhost:5672")
//	if err != nil {
//		return err
//	}
//	response, err := client.Call(ctx, "greet", []byte("world"))
//
// Client and server connect in the background and stay connected: after a restart of the
// broker or a cut of the network they dial again, with backoff and without end. Meanwhile
// calls wait for the connection within their deadlines. Every call has a deadline; a call
// without a deadline gets the client's default ([WithTimeout]).
//
// A program with clients and servers of several queues makes them on one [Connection], so that
// they use two AMQP connections together instead of two each:
//
//	conn, err := amqpx.Connect("amqp://guest:guest@localhost:5672")
//	if err != nil {
//		return err
//	}
//	orders, err := conn.NewServer(amqpx.WithQueue(amqpx.Queue{Name: "orders"}))
//	if err != nil {
//		return err
//	}
//	billing, err := conn.NewClient(amqpx.WithQueue(amqpx.Queue{Name: "billing"}))
//
// [Connection.Shutdown] ends the program's part in the right order: servers drain, clients wait
// for their calls, then the connections close. [Server.Shutdown] and [Client.Shutdown] do the
// same for one server or client, and Close ends at once.
//
// WaitReady, at the start of a program, returns when the connection is made, and at once when the
// broker refuses the connection for a reason that an operator must remove ([FaultOf]). Watch
// follows the state until a context ends.
//
// # Types
//
// A [Method] has types in place of bytes. Server and callers share it, mostly as a variable of a
// package that both import:
//
//	var Greet = amqpx.NewMethod[Person, Greeting]("greet", amqpx.JSON(), amqpx.CallTimeout(time.Second))
//
//	err := Greet.Handle(server, func(ctx context.Context, p Person) (Greeting, error) { … })
//	greeting, err := Greet.Call(ctx, client, Person{Name: "world"})
//
// [JSON], [StrictJSON] and [Raw] are codecs; other codecs implement [Codec]. [Validate] checks
// requests, [Compress] compresses large bodies, and options of calls and handlers, such as
// [Idempotent], [AtMostOnce] or [MaxConcurrent], can be given to the method.
//
// # Streams
//
// A stream has any number of items in each direction, in order. The handler of a stream is registered
// with [Server.HandleStream] and gets a [ServerStream]; the stream ends when the handler returns.
// [Client.Stream] sends one item and ranges over the items of the handler, [Client.Open] returns a
// [ClientStream] for items in both directions, and [StreamMethod] is the [Method] of streams:
//
//	var Watch = amqpx.NewStreamMethod[Filter, Order]("orders.watch", amqpx.JSON())
//
//	err := Watch.Handle(server, func(ctx context.Context, s *amqpx.TypedServerStream[Filter, Order]) error { … })
//	for order, err := range Watch.Stream(ctx, client, Filter{SKU: "tv"}) { … }
//
// A sender waits while its reader is slow: [StreamWindow] bounds the items that wait at the reader of a
// client, and [WithStreamMemory] the memory of all streams together. A stream stays with one
// server and one connection. When either is lost, the stream ends with an error, is not opened
// again, and [ProgressOf] tells how far it came. A client that leaves its loop, or ends the context,
// cancels the stream. Every stream must come to its end, because it takes memory at both sides.
//
// # More shapes of calls
//
// [Client.Go] starts a call and returns a [Future], so that many calls need no goroutine each.
//
// [Client.Send] sends a one-way request and returns when the broker has confirmed it. Nobody
// reports what becomes of the request; [WithExpiration] bounds its life.
//
// [Client.CallAll] calls a method on every server of the queue and ranges over their responses, for
// methods that are registered with [OnEveryServer].
//
// [WithRetry] makes a failed call again, with backoff and within the deadline of the call: an idempotent
// call after each code of the [RetryPolicy], any other only if it certainly did not run.
// [WithHedge] makes a slow idempotent call a second time and takes the first response. Both use the
// retry budget of the client ([WithRetryBudget]), and one key for all requests of a call.
//
// [WithPriority] makes servers run a call before the calls that wait.
//
// [WithIdempotencyKey] gives a call the key by which a server knows the call again: the server runs
// the key once, within the age of [WithDedup]. With [WithDedupStore] several servers share the memory of
// keys, so that a retry that reaches another server gets the stored response. [DedupStore] is the
// interface of a store; package amqpxredis has one in Redis.
//
// # Errors
//
// A failed call returns an [*Error]. [CodeOf] classifies the error; [OutcomeOf] states whether
// calling again is safe: [DidNotRun], [MayHaveRun] or [Ran]. Sentinels such as [ErrUnroutable]
// and the context's own errors match with [errors.Is]. A handler chooses its code with
// [Errorf]; any other error reaches the caller as [CodeInternal] without its text.
//
// [Error.WithDetail] adds typed values such as a [BadRequest], which callers read with [Detail], and
// [Error.WithRetryAfter] a hint when to try again. With [Refuse] middleware refuses a call that did
// not run. [Hide] keeps the error of another service from this service's callers. [Code.HTTPStatus]
// is for gateways.
//
// # Tests
//
// A handler is a function, and so is a test's stand-in for a client where code depends on [Caller] or
// [Sender]. Package amqpxtest has the type of this stand-in, a broker in memory that fails on
// demand, and the constructor of errors with every outcome.
//
// # Metadata
//
// A caller sends headers with [WithHeader]; a handler reads them in its [Request], sets headers and
// trailers of the response with [SetResponseHeader] and [SetResponseTrailer], and code far below
// the handler finds the request with [RequestFromContext]. A caller reads headers, trailers, the
// correlation id and the id of the server with [WithCallInfo], also of a failed call. Streams have
// headers, trailers and a correlation id too, as methods of [ClientStream] and [ServerStream].
//
// # Guarantees
//
// Execution is at least once, or at most once for a method registered with [AtMostOnce]. A
// server acknowledges a request when the broker has confirmed the response, so the requests of
// a server that dies go to another server. The caller gets exactly one response. A call is
// sent a second time only when it certainly did not run, or was declared [Idempotent]; a
// server that receives the same call twice runs it once. A request that kills every server
// running it is dead-lettered ([WithDeliveryLimit]).
//
// Everything is bounded: the calls in flight, the retries ([WithRetryBudget]), the workers,
// the prefetch, the queue ([Queue]), the stored responses ([WithDedup]). Beyond a bound a
// call fails at once with [CodeResourceExhausted] and a hint when to call again.
//
// # Other languages
//
// The wire contract is plain AMQP 0-9-1: app_id names the method, reply_to and correlation_id
// lead the response back, the body is opaque. docs/protocol.md specifies the contract.
//
// # Extending
//
// [WithLogger] takes a logger of zap, [WithSlog] one of log/slog, which [FromSlog] turns into one of
// zap for middleware, and [WithDialer] opens the network connections. [Middleware] wraps calls on
// both sides with one type; [Recover], [Timeout] and [AccessLog] come with the package.
// [Client.Status], [Client.Watch] and [Client.Stats], and the same methods of [Server], show the
// connection and the counts.
package amqpx
