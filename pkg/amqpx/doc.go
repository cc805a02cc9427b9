// Package amqpx is RPC over RabbitMQ that settles every call: with an answer, or
// with an error that says whether a server may have run it.
//
// # Use
//
// A [Server] registers handlers by method name and serves a request queue until
// its context ends. A [Client] calls them:
//
//	server, err := amqpx.NewServer(url)
//	err = server.Handle("b", func(context.Context, *amqpx.Request) ([]byte, error) {
//		return []byte("b"), nil
//	})
//	err = server.Serve(ctx)
//
//	client, err := amqpx.NewClient(url)
//	answer, err := client.Call(ctx, "b", []byte("request"))
//
// Both connect in the background and stay connected: they dial again, with backoff
// and without end, over restarts of the broker and cuts of the network, and calls
// wait for the link within their deadlines. Every call has a deadline; one without
// gets a default.
//
// # Errors
//
// A failed call returns an [*Error]. [CodeOf] classifies it; [OutcomeOf] says
// whether calling again is safe: [DidNotRun], [MayHaveRun] or [Ran]. Sentinels such
// as [ErrUnroutable] and the context's own errors match with [errors.Is]. A handler
// chooses its code with [Errorf]; any other error reaches the caller as
// [CodeInternal] without its text.
//
// # Guarantees
//
// Execution is at least once, or for a method registered with [AtMostOnce] at most
// once: a request is acknowledged when the broker has confirmed its answer, so a
// server that dies hands its requests to another one. The caller gets exactly one
// answer. A call is sent a second time only when it certainly did not run, or was
// declared [Idempotent]; a server that sees it twice runs it once. What kills every
// server that runs it ends in the dead letters ([WithDeliveryLimit]).
//
// Everything is bounded: the calls in flight, the retries ([WithRetryBudget]), the
// workers, the prefetch, the queue ([Queue]), the stored answers ([WithReplay]).
// Beyond a bound a call fails at once with [CodeResourceExhausted] and a hint when to
// call again.
//
// # Other languages
//
// The wire contract is plain AMQP 0-9-1: app_id names the method, reply_to and
// correlation_id lead the answer back, the body is opaque. docs/protocol.md
// specifies it.
//
// # Extending
//
// [Middleware] wraps calls on both sides with one type; [Recover], [Timeout] and
// [AccessLog] come with the package. [Client.Status], [Client.Watch] and
// [Client.Stats], and the same on a [Server], show the link and the counts.
package amqpx
