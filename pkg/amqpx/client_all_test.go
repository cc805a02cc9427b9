package amqpx

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// startAll starts a server with a handler for calls to all servers, and another without.
func startAll(t *testing.T, b *brokertest.Broker, h Handler, opts ...ServerOption) *running {
	t.Helper()
	s, err := NewServer(testURL, append([]ServerOption{onBroker(b)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string][]HandleOption{"all": {OnEveryServer()}, "one": nil} {
		if err := s.Handle(name, h, opts...); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Server: s, stop: stop, result: make(chan error, 1)}
	go func() { r.result <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		_ = r.wait(t)
	})
	ready(t, s.WaitReady)
	return r
}

// gathered is what a call to all servers returned.
type gathered struct {
	servers, bodies []string
	codes           []Code
	outcomes        []Outcome
	err             error // of the call
	took            time.Duration
}

// callAll makes a call to all servers, at most for most responses.
func callAll(c *Client, ctx context.Context, method string, most int, opts ...CallOption) (g gathered) { //nolint:revive // the client is the subject.
	begun := time.Now()
	for r, err := range c.CallAll(ctx, method, []byte("x"), opts...) {
		if r == nil {
			g.err = err
			continue
		}
		g.servers = append(g.servers, r.Server)
		if g.bodies = append(g.bodies, string(r.Body)); err != nil {
			g.codes, g.outcomes = append(g.codes, CodeOf(err)), append(g.outcomes, OutcomeOf(err))
		}
		if len(g.servers) == most {
			break
		}
	}
	g.took = time.Since(begun)
	return g
}

func TestCallAll(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]ClientOption{"reply queue": nil, "direct": {WithReplyMode(ReplyDirect)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				var ids []string
				for range 3 {
					ids = append(ids, startAll(t, b, echo).self.id)
				}
				startServer(t, b, handlers{"all": echo}) // has no method for all servers, and no queue
				c := startClient(t, b, opts...)
				ready(t, c.WaitReady)
				got := callAll(c, within(t, time.Minute), "all", 3)
				slices.Sort(ids)
				slices.Sort(got.servers)
				if got.err != nil || !slices.Equal(got.servers, ids) || !slices.Equal(got.bodies, []string{"x", "x", "x"}) {
					t.Errorf("got %+v, want responses of %v", got, ids)
				}
				wantSame(t, "took", got.took, 0)
				got = callAll(c, t.Context(), "all", 0, CallTimeout(time.Second))
				if got.err != nil || len(got.servers) != 3 || got.took != time.Second {
					t.Errorf("until the deadline: %+v", got)
				}
				got = callAll(c, within(t, time.Minute), "one", 3)
				if !slices.Equal(got.codes, []Code{CodeFailedPrecondition, CodeFailedPrecondition, CodeFailedPrecondition}) || got.outcomes[0] != DidNotRun {
					t.Errorf("not for all: %+v", got)
				}
				got = callAll(c, within(t, time.Minute), "none", 3)
				if !slices.Equal(got.codes, []Code{CodeUnimplemented, CodeUnimplemented, CodeUnimplemented}) || got.outcomes[0] != DidNotRun {
					t.Errorf("no such method: %+v", got)
				}
				wantResponse(t, <-goCall(c, within(t, time.Minute), "all", []byte("y")), "y") // and a call to one
				stats := c.Stats()
				wantSame(t, "calls", stats.OK, 5)
				wantSame(t, "pending", c.pending.len(), 0)
				pass(time.Second) // until the response is acknowledged
				for _, q := range b.QueueNames() {
					wantSame(t, q, b.Ready(q)+b.Unacked(q), 0)
				}
			})
		})
	}
}

func TestCallAllIsSeenByMiddlewareAndHandlers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		var handed Request
		var left time.Duration
		startAll(t, b, func(ctx context.Context, req *Request) ([]byte, error) {
			handed = *req
			end, _ := ctx.Deadline()
			left = time.Until(end)
			<-time.After(time.Second)
			return nil, errors.Join(Errorf(CodeNotFound, "no"), SetResponseHeader(ctx, "h", "v"))
		})
		c := startClient(t, b, WithMiddleware(func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				own := *req
				own.Header = map[string]any{"token": "t"}
				return next(ctx, &own)
			}
		}), WithCallOptions(Idempotent(), WithRetry(RetryPolicy{}), WithHedge(time.Millisecond)))
		ready(t, c.WaitReady)
		for r, err := range c.CallAll(within(t, time.Minute), "all", nil) {
			wantSame(t, "code", CodeOf(err), CodeNotFound)
			wantSame(t, "outcome", OutcomeOf(err), Ran)
			wantSame(t, "header", r.Header["h"], any("v"))
			wantSame(t, "time", r.HandlerTime, time.Second)
			break
		}
		wantSame(t, "header", handed.Header["token"], any("t"))
		wantSame(t, "user", handed.User, "app")
		wantSame(t, "one way", handed.OneWay, false)
		wantSame(t, "deadline", left, time.Minute)
		wantSame(t, "hedged", c.Stats().Hedged+c.Stats().Retried, 0)
	})
}

func TestCallAllThatFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, c.WaitReady)
		got := callAll(c, within(t, time.Minute), "all", 0)
		wantSend(t, result{err: got.err}, CodeUnavailable, DidNotRun)
		wantIs(t, got.err, ErrUnroutable)
		s := startAll(t, b, untilDone)
		got = callAll(c, t.Context(), "all", 0, CallTimeout(time.Second), WithHeader(map[string]any{"rpc-x": 1}))
		wantSend(t, result{err: got.err}, CodeInvalidArgument, DidNotRun)
		got = callAll(c, t.Context(), "all", 0, CallTimeout(0))
		wantSend(t, result{err: got.err}, CodeInvalidArgument, DidNotRun)
		got = callAll(c, t.Context(), "all", 0, CallTimeout(time.Second), WithCallInfo(new(CallInfo)))
		wantSend(t, result{err: got.err}, CodeInvalidArgument, DidNotRun)
		s2 := startAll(t, b, pastDeadline)
		s.stop()
		_ = s.wait(t)
		got = callAll(c, t.Context(), "all", 0, CallTimeout(time.Second))
		wantSend(t, result{err: got.err}, CodeDeadlineExceeded, MayHaveRun)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		got = callAll(c, ctx, "all", 0)
		wantSend(t, result{err: got.err}, CodeCanceled, MayHaveRun)
		time.AfterFunc(time.Second, func() { b.Kick(nil) })
		got = callAll(c, within(t, time.Minute), "all", 0)
		wantSend(t, result{err: got.err}, CodeUnavailable, MayHaveRun)
		wantIs(t, got.err, ErrNotConnected)
		pass(5 * time.Second)
		ready(t, c.WaitReady)
		ready(t, s2.WaitReady)
		time.AfterFunc(time.Second, func() { _ = c.Close(context.Background()) })
		got = callAll(c, within(t, time.Minute), "all", 0)
		wantSend(t, result{err: got.err}, CodeUnavailable, MayHaveRun)
		wantIs(t, got.err, ErrClosed)
		got = callAll(c, within(t, time.Minute), "all", 0)
		wantSend(t, result{err: got.err}, CodeUnavailable, DidNotRun)
		wantIs(t, got.err, ErrClosed)
	})
}

// The loop ends early, or the context is canceled: the handlers that run see it. The end of the time
// is known to the servers.
func TestCallAllThatIsGivenUp(t *testing.T) {
	t.Parallel()
	for mode, opts := range map[string][]ClientOption{"reply queue": nil, "direct": {WithReplyMode(ReplyDirect)}} {
		for name, c := range map[string]struct {
			giveUp func(cancel func()) // beside the loop
			leaves bool                // the loop ends early
			want   error               // of the handlers' contexts
			opts   []CallOption
			sent   int // cancellations
		}{
			"early end":    {giveUp: func(func()) {}, leaves: true, want: context.Canceled, sent: 1},
			"with a key":   {giveUp: func(func()) {}, leaves: true, want: context.Canceled, sent: 1, opts: []CallOption{WithIdempotencyKey("key")}},
			"cancellation": {giveUp: func(cancel func()) { cancel() }, want: context.Canceled, sent: 1},
			"deadline":     {giveUp: func(func()) {}, want: context.DeadlineExceeded, opts: []CallOption{CallTimeout(2 * time.Second)}},
		} {
			t.Run(mode+", "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := brokertest.New()
					startAll(t, b, echo, WithControl(true)) // responds
					w := newWatchedHandler()
					for range 2 {
						startAll(t, b, w.run, WithControl(true))
					}
					client := startClient(t, b, append(opts, WithControl(true))...)
					ready(t, client.WaitReady)
					ctx, cancel := context.WithCancel(within(t, time.Hour))
					time.AfterFunc(time.Second, func() { c.giveUp(cancel) })
					n := 0
					for r, err := range client.CallAll(ctx, "all", []byte("x"), c.opts...) {
						if r == nil {
							wantSame(t, "code", CodeOf(err), CodeCanceled)
							break
						}
						if n++; n == 1 && c.leaves {
							<-w.begun
							<-w.begun
							break
						}
					}
					for range 2 {
						wantSame(t, "error of the context", <-w.ended, c.want)
					}
					settle()
					wantSame(t, "cancellations", len(b.MessagesTo(controlExchangeName)), c.sent)
				})
			})
		}
	}
}

// A call to all servers that is given up before a server takes its request does not run there.
func TestCallAllThatIsGivenUpBeforeItRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		w := newWatchedHandler()
		startAll(t, b, w.run, WithControl(true), WithWorkers(1))
		client := startClient(t, b, WithControl(true))
		ready(t, client.WaitReady)
		first, cancelFirst := context.WithCancel(within(t, time.Hour))
		results := make(chan gathered, 2)
		go func() { results <- callAll(client, first, "all", 0) }()
		<-w.begun
		second, cancelSecond := context.WithCancel(within(t, time.Hour))
		go func() { results <- callAll(client, second, "all", 0) }()
		settle()
		cancelSecond()
		settle()
		cancelFirst()
		settle()
		for range 2 {
			got := <-results
			wantSend(t, result{err: got.err}, CodeCanceled, MayHaveRun)
		}
		wantSame(t, "handlers", len(w.begun)+len(w.ended), 1) // the end of the first
	})
}

// A server that drains ends the calls to all servers that it runs, and refuses those that wait.
func TestCallAllAndADrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		s := startAll(t, b, func(context.Context, *Request) ([]byte, error) {
			<-time.After(5 * time.Second)
			return []byte("done"), nil
		}, WithWorkers(1))
		c := startClient(t, b)
		ready(t, c.WaitReady)
		results := make(chan gathered, 2)
		for range 2 {
			go func() { results <- callAll(c, within(t, time.Minute), "all", 1) }()
			settle()
		}
		s.stop()
		_ = s.wait(t)
		codes, bodies := []Code(nil), []string(nil)
		for range 2 {
			got := <-results
			codes, bodies = append(codes, got.codes...), append(bodies, got.bodies...)
		}
		slices.Sort(bodies)
		if !slices.Equal(codes, []Code{CodeUnavailable}) || !slices.Equal(bodies, []string{"", "done"}) {
			t.Errorf("codes %v, bodies %q", codes, bodies)
		}
		wantSame(t, "queues", slices.ContainsFunc(b.QueueNames(), func(q string) bool { return q != DefaultQueue && b.Ready(q) > 0 }), false)
	})
}

// A server whose permissions do not allow the exchange serves calls without it.
func TestServerWithoutCallsToAllServers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnCall = func(op, name string) error {
			if op == "declare exchange" && name == DefaultQueue+".control.all" {
				return &amqp.Error{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED"}
			}
			return nil
		}
		core, logs := observer.New(zap.WarnLevel)
		startAll(t, b, echo, WithLogger(zap.New(core)))
		c := startClient(t, b)
		ready(t, c.WaitReady)
		wantResponse(t, <-goCall(c, within(t, time.Minute), "all", []byte("x")), "x")
		wantSame(t, "warnings", logs.FilterMessage("a queue cannot be used, the server does without it").Len(), 1)
		wantIs(t, callAll(c, within(t, time.Minute), "all", 1).err, ErrUnroutable)
		b.With(func(b *brokertest.Broker) { b.OnCall = nil })
		pass(companionRetry)
		wantSame(t, "responses", len(callAll(c, within(t, time.Minute), "all", 1).servers), 1)
	})
}
