package amqpx

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// The rows of the failure table of docs/reliability.md that concern streams. The state machine alone
// is tested in package stream.

// cutLinks ends the connections whose names contain a role.
func cutLinks(b *brokertest.Broker, role string) {
	b.With(func(b *brokertest.Broker) {
		for _, l := range slices.Clone(b.Links) {
			if strings.Contains(l.Name, role) {
				l.End(brokertest.BrokenSocket())
			}
		}
	})
}

// wantFailed checks the error of a stream.
func wantFailed(t *testing.T, err error, code Code, outcome Outcome, targets ...error) {
	t.Helper()
	wantSame(t, "code", CodeOf(err), code)
	wantSame(t, "outcome", OutcomeOf(err), outcome)
	wantIs(t, err, targets...)
}

// handled is a handler that tells its stream, and the error with which it ended.
type handled struct {
	streams chan *ServerStream
	ends    chan error
}

func newHandled() *handled {
	return &handled{streams: make(chan *ServerStream, 10), ends: make(chan error, 10)}
}

// handle sends items until the context ends, if n is positive n of them.
func (h *handled) handle(ctx context.Context, s *ServerStream) error {
	h.streams <- s
	<-ctx.Done()
	h.ends <- context.Cause(ctx)
	return ctx.Err()
}

func TestStreamWithoutServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		client := startClient(t, b)
		ready(t, client.WaitReady)
		begun := time.Now()
		_, err := collect(t, client, context.Background(), "count", "1")
		wantFailed(t, err, CodeUnavailable, DidNotRun, ErrUnroutable)
		wantSame(t, "time", time.Since(begun), 0)
		patient := make(chan error, 1)
		go func() {
			n, err := collect(t, client, context.Background(), "count", "3", WaitForServer())
			wantSame(t, "items", n, 3)
			patient <- err
		}()
		pass(time.Minute)
		s := startStreamServer(t, b, streamHandlers{"count": countStream})
		ready(t, s.WaitReady)
		wantSame(t, "error", <-patient, nil)
		_ = s
	})
}

// The queue of openings exists, and no server consumes it.
func TestStreamWithoutConsumer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"count": countStream})
		r.server.stop()
		wantSame(t, "drain", r.server.wait(t), nil)
		begun := time.Now()
		_, err := collect(t, r.client, context.Background(), "count", "1")
		wantFailed(t, err, CodeUnavailable, MayHaveRun, ErrNoServer)
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("it took %v", took)
		}
		_, err = collect(t, r.client, within(t, time.Second/2), "count", "1")
		wantFailed(t, err, CodeDeadlineExceeded, MayHaveRun, context.DeadlineExceeded)
	})
}

func TestStreamsThatAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		h := newHandled()
		s, err := NewServer(testURL, onBroker(b), WithMaxStreams(4, 3))
		if err != nil {
			t.Fatal(err)
		}
		for name, opts := range map[string][]HandleOption{"wait": nil, "single": {MaxStreams(1)}} {
			if err := s.HandleStream(name, h.handle, opts...); err != nil {
				t.Fatal(err)
			}
		}
		server := serveStreams(t, s)
		ready(t, server.WaitReady)
		one, two := startClient(t, b), startClient(t, b)
		open := func(c *Client, method string) *ClientStream {
			x, err := c.Open(within(t, time.Hour), method)
			if err != nil {
				t.Fatal(err)
			}
			_ = x.Send(nil)
			settle()
			return x
		}
		refused := func(x *ClientStream, code Code) {
			t.Helper()
			_, err := x.Recv()
			wantFailed(t, err, code, DidNotRun)
			coded := codedError(err)
			wantSame(t, "hint", coded.RetryAfter() > 0, code == CodeResourceExhausted)
		}
		refused(open(one, "other"), CodeUnimplemented)
		open(one, "single")
		refused(open(one, "single"), CodeResourceExhausted)
		first := open(one, "wait")
		open(one, "wait")
		refused(open(one, "wait"), CodeResourceExhausted) // the client has 3
		open(two, "wait")                                 // the server has 4
		waits := open(two, "wait")
		wantSame(t, "ready openings", b.Ready(DefaultQueue+".streams"), 1) // left to other servers
		first.Close()
		settle()
		wantSame(t, "ready openings", b.Ready(DefaultQueue+".streams"), 0)
		wantSame(t, "streams", server.Stats().Streams.Open, 4)
		wantSame(t, "refused", server.Stats().Streams.Refused, 3)
		waits.Close()
	})
}

func TestCallerLimitHoldsForStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		r := startStreams(t, streamHandlers{})
		_ = r
		b := brokertest.New()
		s := startStreamServer(t, b, streamHandlers{"wait": h.handle}, WithCallerLimits(CallerLimits{MaxCalls: 1}))
		ready(t, s.WaitReady)
		one, two := startClient(t, b), startClient(t, b) // the same user
		first, _ := one.Open(within(t, time.Hour), "wait")
		_ = first.Send(nil)
		<-h.streams
		second, _ := two.Open(within(t, time.Hour), "wait")
		_, err := second.Recv()
		wantFailed(t, err, CodeResourceExhausted, DidNotRun)
	})
}

func TestCanceledStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		r := startStreams(t, streamHandlers{"wait": h.handle})
		ctx, cancel := context.WithCancel(context.Background())
		s, _ := r.client.Open(ctx, "wait")
		_ = s.Send([]byte("x"))
		<-h.streams
		cancel()
		_, err := s.Recv()
		wantFailed(t, err, CodeCanceled, MayHaveRun, context.Canceled)
		wantSame(t, "progress", ProgressOf(err), Progress{Sent: 1})
		wantSame(t, "Send", s.Send(nil), io.EOF)
		wantSame(t, "code at the server", CodeOf(<-h.ends), CodeCanceled)
		settle()
		wantSame(t, "open", r.server.Stats().Streams.Open, 0)
	})
}

// A loop that ends early cancels the stream.
func TestLoopThatEndsEarly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"count": countStream})
		for _, err := range r.client.Stream(context.Background(), "count", []byte("1000000")) {
			if err != nil {
				t.Error(err)
			}
			break
		}
		settle()
		wantSame(t, "open", r.server.Stats().Streams.Open+r.client.Stats().Streams.Open, 0)
		wantSame(t, "failed", r.server.Stats().Streams.Failed, 1)
	})
}

func TestDeadlineOfAStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		r := startStreams(t, streamHandlers{"wait": h.handle})
		s, _ := r.client.Open(within(t, time.Minute), "wait")
		begun := time.Now()
		_, err := s.Recv()
		wantFailed(t, err, CodeDeadlineExceeded, MayHaveRun, context.DeadlineExceeded)
		wantSame(t, "time", time.Since(begun), time.Minute)
		wantSame(t, "Send", s.Send(nil), io.EOF)
		if err := <-h.ends; CodeOf(err) != CodeDeadlineExceeded {
			t.Errorf("the server: %v", err)
		}
	})
}

// A stream that neither side ends is ended by the limit of the server.
func TestMaxStreamTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		h := newHandled()
		server := startStreamServer(t, b, streamHandlers{"wait": h.handle, "echo": echoStream}, WithMaxStreamTime(time.Hour))
		client := startClient(t, b)
		ready(t, server.WaitReady)
		for _, method := range []string{"wait", "echo"} {
			s, _ := client.Open(context.Background(), method)
			begun := time.Now()
			_, err := s.Recv()
			wantFailed(t, err, CodeDeadlineExceeded, MayHaveRun)
			wantSame(t, "time", time.Since(begun).Round(time.Second), time.Hour)
		}
	})
}

func TestStreamAtALostLink(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		role   string
		server Code          // what the handler learns
		limit  time.Duration // until the other side learns it
		text   string
	}{
		"of the server": {"server", CodeUnavailable, DefaultStreamKeepAlive * 3 / 2, "the connection of the server has ended"},
		"of the client": {"client", CodeUnavailable, DefaultStreamKeepAlive * 3, "the connection to the broker was lost"},
		"of both":       {"", CodeUnavailable, 0, "the connection to the broker was lost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHandled()
				r := startStreams(t, streamHandlers{"wait": h.handle, "count": countStream})
				s, _ := r.client.Open(context.Background(), "wait")
				_ = s.Send([]byte("x"))
				x := <-h.streams
				_, _ = x.Recv()
				_ = x.Send([]byte("y"))
				settle()
				begun := time.Now()
				cutLinks(r.broker, c.role)
				item, err := s.Recv() // what has come is not lost
				wantSame(t, "item", string(item), "y")
				wantSame(t, "error", err, nil)
				_, err = s.Recv()
				wantFailed(t, err, CodeUnavailable, MayHaveRun)
				if err != nil && !strings.Contains(err.Error(), c.text) {
					t.Errorf("error %v, want %q", err, c.text)
				}
				wantSame(t, "received", ProgressOf(err).Received, 1)
				wantSame(t, "sent", ProgressOf(err).Sent, 1)
				wantSame(t, "code at the server", CodeOf(<-h.ends), c.server)
				if took := time.Since(begun); took > c.limit {
					t.Errorf("it took %v", took)
				}
				n, err := collect(t, r.client, within(t, time.Minute), "count", "10", WaitForServer())
				wantSame(t, "items afterwards", n, 10)
				wantSame(t, "error afterwards", err, nil)
			})
		})
	}
}

// The server learns the loss of the client at its next item.
func TestClientIsLostWhileTheServerSends(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		r := startStreams(t, streamHandlers{"wait": h.handle})
		s, _ := r.client.Open(context.Background(), "wait")
		_ = s.Send(nil)
		x := <-h.streams
		begun := time.Now()
		cutLinks(r.broker, "client")
		_ = x.Send([]byte("y"))
		wantFailed(t, <-h.ends, CodeUnavailable, Ran)
		wantSame(t, "time", time.Since(begun), 0)
		err := x.Send(nil)
		wantFailed(t, err, CodeUnavailable, Ran)
		wantSame(t, "sent", ProgressOf(err).Sent, 1)
	})
}

// The broker blocks publishing longer than any limit of liveness: the stream goes on, complete.
func TestStreamOverABlockedBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ticks := func(ctx context.Context, s *ServerStream) error {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for range 10_000 {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return ctx.Err()
				}
				if err := s.Send([]byte("tick")); err != nil {
					return err
				}
			}
			return nil
		}
		r := startStreams(t, streamHandlers{"ticks": ticks})
		n := 0
		for _, err := range r.client.Stream(context.Background(), "ticks", nil) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 1000 {
				r.broker.SetAlarm("low on memory")
				time.AfterFunc(time.Minute, func() { r.broker.SetAlarm("") })
			}
		}
		wantSame(t, "items", n, 10_000)
	})
}

// A draining server takes no streams and ends those that it has.
func TestDrainWithStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		who := func(name string) StreamHandler {
			return func(_ context.Context, s *ServerStream) error {
				if err := s.Send([]byte(name)); err != nil {
					return err
				}
				return echoStream(context.Background(), s)
			}
		}
		b := brokertest.New()
		one := startStreamServer(t, b, streamHandlers{"who": who("one")}, WithDrainTimeout(time.Hour))
		ready(t, one.WaitReady)
		client := startClient(t, b)
		open := func() (*ClientStream, string) {
			s, _ := client.Open(context.Background(), "who")
			first, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return s, string(first)
		}
		old, first := open()
		wantSame(t, "server", first, "one")
		two := startStreamServer(t, b, streamHandlers{"who": who("two")})
		ready(t, two.WaitReady)
		one.stop()
		settle()
		for range 5 {
			s, first := open()
			wantSame(t, "server", first, "two")
			s.Close()
		}
		for range 1000 {
			_ = old.Send([]byte("x"))
			if _, err := old.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		_ = old.CloseSend()
		_, err := old.Recv()
		wantSame(t, "error", err, io.EOF)
		wantSame(t, "drain", one.wait(t), nil)
	})
}

// A drain that runs out of time tells the clients; handlers can see it come.
func TestDrainTimeoutWithStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		draining := make(chan struct{})
		stubborn := func(ctx context.Context, s *ServerStream) error {
			<-s.Draining()
			close(draining)
			<-ctx.Done()
			return ctx.Err()
		}
		r := startStreams(t, streamHandlers{"stubborn": stubborn})
		s, _ := r.client.Open(context.Background(), "stubborn")
		_ = s.Send(nil)
		settle()
		begun := time.Now()
		r.server.stop()
		<-draining
		_, err := s.Recv()
		wantFailed(t, err, CodeUnavailable, MayHaveRun)
		if text := err.Error(); !strings.Contains(text, "the server was stopped") {
			t.Errorf("error %v", err)
		}
		wantSame(t, "time", time.Since(begun), DefaultDrainTimeout)
		wantIs(t, r.server.wait(t), ErrDrainTimeout)
	})
}

func TestCloseOfAClientWithStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		r := startStreams(t, streamHandlers{"wait": h.handle})
		c := startClient(t, r.broker)
		s, _ := c.Open(context.Background(), "wait")
		_ = s.Send(nil)
		<-h.streams
		settle() // the client knows the server
		begun := time.Now()
		if err := c.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		_, err := s.Recv()
		wantFailed(t, err, CodeUnavailable, MayHaveRun, ErrClosed)
		end := <-h.ends
		if CodeOf(end) != CodeCanceled {
			t.Errorf("the server: %v", end)
		}
		wantSame(t, "time", time.Since(begun), 0)
		_, err = collect(t, c, context.Background(), "wait", "")
		wantFailed(t, err, CodeUnavailable, DidNotRun, ErrClosed)
	})
}

// A client that publishes to the request exchange uses it for streams, too.
func TestStreamsOverTheExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		server := startStreamServer(t, b, streamHandlers{"echo": echoStream})
		ready(t, server.WaitReady)
		client := startClient(t, b, WithExchange(testExchange))
		s, _ := client.Open(within(t, time.Hour), "echo")
		for range 10 {
			_ = s.Send([]byte("x"))
			if _, err := s.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		for _, key := range []string{DefaultQueue + ".streams", DefaultQueue + ".s."} {
			found := 0
			b.With(func(b *brokertest.Broker) {
				for _, m := range b.Sent {
					if strings.HasPrefix(m.Key, key) {
						found++
						wantSame(t, "exchange of a message to "+key, m.Exchange, testExchange)
					}
				}
			})
			if found == 0 {
				t.Errorf("no message to %s", key)
			}
		}
	})
}

// A client without streams, and a server without methods for them, declare nothing.
func TestNothingIsDeclaredWithoutStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("1")), "1")
		replies := 0
		for _, name := range r.broker.QueueNames() {
			if strings.HasSuffix(name, ".streams") || strings.Contains(name, ".s.") {
				t.Errorf("queue %s", name)
			}
			if strings.Contains(name, ".reply.") {
				replies++
			}
		}
		wantSame(t, "reply queues", replies, 1)
	})
}

// The broker refuses the queue for streams: they end, and calls work on.
func TestClientMayNotDeclareItsStreamQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		server := startStreamServer(t, b, streamHandlers{"count": countStream})
		ready(t, server.WaitReady)
		client := startClient(t, b)
		ready(t, client.WaitReady)
		refuse := true
		b.With(func(b *brokertest.Broker) {
			b.OnCall = func(op, name string) error {
				if refuse && op == "declare" && strings.Contains(name, ".reply.") {
					return &amqp.Error{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED - configure access"}
				}
				return nil
			}
		})
		_, err := collect(t, client, within(t, time.Minute), "count", "1")
		wantFailed(t, err, CodeUnavailable, DidNotRun)
		refused, ok := errors.AsType[*amqp.Error](err)
		wantSame(t, "reason", ok && refused.Code == amqp.AccessRefused, true)
		wantSame(t, "reconnects", client.Stats().Reconnects, 0)
		refuse = false
		n, err := collect(t, client, within(t, time.Minute), "count", "3")
		wantSame(t, "items", n, 3)
		wantSame(t, "error", err, nil)
	})
}

// The queue of a server for frames is deleted: its streams end, and it serves on.
func TestStreamQueueOfAServerIsDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		r := startStreams(t, streamHandlers{"wait": h.handle, "count": countStream})
		s, _ := r.client.Open(context.Background(), "wait")
		_ = s.Send(nil)
		<-h.streams
		r.broker.With(func(b *brokertest.Broker) {
			for name, q := range b.Queues {
				if strings.Contains(name, ".s.") {
					b.Remove(q)
				}
			}
		})
		wantSame(t, "code at the server", CodeOf(<-h.ends), CodeUnavailable)
		_, err := s.Recv()
		wantFailed(t, err, CodeUnavailable, MayHaveRun)
		pass(2 * companionRetry)
		n, err := collect(t, r.client, within(t, time.Minute), "count", "3")
		wantSame(t, "items", n, 3)
		wantSame(t, "error", err, nil)
		wantSame(t, "reconnects", r.server.Stats().Reconnects, 0)
	})
}
