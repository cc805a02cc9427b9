package amqpx

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// wantRefused fails the test unless err is that of a call after Shutdown.
func wantRefused(t *testing.T, err error) {
	t.Helper()
	wantIs(t, err, ErrClosed)
	wantSame(t, "code", CodeOf(err), CodeUnavailable)
	wantSame(t, "outcome", OutcomeOf(err), DidNotRun)
}

func TestShutdownOfAClientWaitsForItsCalls(t *testing.T) {
	t.Parallel()
	for name, wrapped := range map[string]bool{"plain": false, "with middleware that calls again": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				r := startRig(t, handlers{"hold": func(ctx context.Context, req *Request) ([]byte, error) {
					<-release
					return echo(ctx, req)
				}})
				var opts []ClientOption
				if wrapped {
					opts = append(opts, WithMiddleware(func(next Handler) Handler {
						return func(ctx context.Context, req *Request) ([]byte, error) {
							_, _ = next(ctx, req)
							return next(ctx, req)
						}
					}))
				}
				c := startClient(t, r.broker, opts...)
				ready(t, c.WaitReady)
				call := goCall(c, within(t, time.Hour), "hold", []byte("call"))
				future := c.Go(within(t, time.Hour), "hold", []byte("future"))
				settle()
				ended := make(chan error, 2)
				for range 2 {
					go func() { ended <- c.Shutdown(t.Context()) }()
				}
				settle()
				_, err := c.Call(t.Context(), "hold", nil)
				wantRefused(t, err)
				_, err = c.Go(t.Context(), "hold", nil).Wait()
				wantRefused(t, err)
				wantSame(t, "failed calls", c.Stats().Failed, 2)
				pass(time.Minute)
				wantSame(t, "Shutdowns that returned", len(ended), 0)
				wantSame(t, "state", c.Status().State, StateReady)
				close(release)
				wantResponse(t, <-call, "call")
				if response, err := future.Wait(); err != nil || string(response) != "future" {
					t.Errorf("response %q, %v", response, err)
				}
				for range 2 {
					if err := <-ended; err != nil {
						t.Error(err)
					}
				}
				wantSame(t, "state", c.Status().State, StateClosed)
				if err := c.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				for _, name := range r.broker.QueueNames() {
					if name == c.route.replyTo {
						t.Error("the reply queue is still there")
					}
				}
			})
		})
	}
}

func TestShutdownOfAClientEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"hold": untilDone})
		call := goCall(r.client, within(t, time.Hour), "hold", nil)
		settle()
		begun := time.Now()
		err := r.client.Shutdown(within(t, time.Minute))
		wantIs(t, err, context.DeadlineExceeded)
		wantSame(t, "took", time.Since(begun), time.Minute)
		got := <-call
		wantIs(t, got.err, ErrClosed)
		wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
	})
}

func TestCloseEndsTheShutdownOfAClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"hold": untilDone})
		call := goCall(r.client, within(t, time.Hour), "hold", nil)
		settle()
		ended := make(chan error, 1)
		go func() { ended <- r.client.Shutdown(t.Context()) }()
		settle()
		if err := errors.Join(r.client.Close(t.Context()), <-ended); err != nil {
			t.Error(err)
		}
		wantIs(t, (<-call).err, ErrClosed)
	})
}

func TestShutdownOfAServerDrains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := startRig(t, handlers{"hold": func(ctx context.Context, req *Request) ([]byte, error) {
			<-release
			return echo(ctx, req)
		}})
		call := goCall(r.client, within(t, time.Hour), "hold", []byte("call"))
		settle()
		ended := make(chan error, 1)
		go func() { ended <- r.server.Shutdown(t.Context()) }()
		settle()
		wantSame(t, "state", r.server.Status().State, StateDraining)
		close(release)
		wantResponse(t, <-call, "call")
		if err := errors.Join(<-ended, r.server.wait(t), r.server.Shutdown(t.Context())); err != nil {
			t.Error(err)
		}
		if err := r.server.Serve(t.Context()); err == nil {
			t.Error("Serve after Shutdown")
		}
	})
}

func TestShutdownOfAServerEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"hold": untilDone})
		call := goCall(r.client, within(t, time.Hour), "hold", nil)
		settle()
		begun := time.Now()
		wantIs(t, r.server.Shutdown(within(t, time.Second)), context.DeadlineExceeded)
		wantSame(t, "took", time.Since(begun), time.Second)
		wantIs(t, r.server.wait(t), ErrDrainTimeout)
		_ = r.client.Close(t.Context())
		<-call
	})
}

func TestServerThatWasEndedDoesNotServe(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Server) error{
		"Close":    func(s *Server) error { s.Close(); return nil },
		"Shutdown": func(s *Server) error { return s.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, err := NewServer(testURL, onBroker(brokertest.New()))
				if err != nil {
					t.Fatal(err)
				}
				if err := end(s); err != nil {
					t.Error(err)
				}
				wantSame(t, "state", s.Status().State, StateClosed)
				wantIs(t, s.WaitReady(t.Context()), ErrClosed)
				wantIs(t, s.Serve(t.Context()), ErrClosed)
				if err := end(s); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The handlers of a server that drains call another service of the connection, and the clients
// close after them.
func TestShutdownOfAConnectionDrainsServersBeforeClients(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		conn := connectTo(t, b)
		backend := startServer(t, b, handlers{"echo": echo}, WithQueue(Queue{Name: "backend"}))
		client, err := conn.NewClient(WithQueue(Queue{Name: "backend"}))
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		front := serveOn(t, conn, handlers{"hop": func(ctx context.Context, req *Request) ([]byte, error) {
			<-release
			return client.Call(ctx, "echo", req.Body)
		}}, WithQueue(Queue{Name: "front"}))
		outside := startClient(t, b, WithQueue(Queue{Name: "front"}))
		for _, wait := range []func(context.Context) error{backend.WaitReady, client.WaitReady, front.WaitReady, outside.WaitReady} {
			ready(t, wait)
		}
		call := goCall(outside, within(t, time.Hour), "hop", []byte("two hops"))
		settle()
		ended := make(chan error, 2)
		for range 2 {
			go func() { ended <- conn.Shutdown(t.Context()) }()
		}
		settle()
		wantSame(t, "server", front.Status().State, StateDraining)
		wantSame(t, "client", client.Status().State, StateReady)
		_, err = conn.NewClient()
		wantIs(t, err, ErrClosed)
		wantSame(t, "text", err.Error(), "connection closed")
		_, err = conn.NewServer()
		wantIs(t, err, ErrClosed)
		close(release)
		wantResponse(t, <-call, "two hops")
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		wantSame(t, "connection", conn.Status().State, StateClosed)
		wantIs(t, conn.WaitReady(t.Context()), ErrClosed)
		_, err = client.Call(t.Context(), "echo", nil)
		wantRefused(t, err)
		if err := errors.Join(front.wait(t), conn.Shutdown(t.Context()), conn.Close(t.Context())); err != nil {
			t.Error(err)
		}
		b.With(func(b *brokertest.Broker) {
			for _, l := range b.Links {
				if l.Name == "amqpx connection publish" || l.Name == "amqpx connection consume" {
					t.Errorf("%q is still open", l.Name)
				}
			}
		})
	})
}

func TestShutdownOfAConnectionEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 2, handlers{"hold": untilDone})
		call := goCall(s.clients[0], within(t, time.Hour), "hold", nil)
		settle()
		begun := time.Now()
		wantIs(t, s.conn.Shutdown(within(t, time.Second)), context.DeadlineExceeded)
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
		wantIs(t, (<-call).err, ErrClosed)
		if err := s.conn.Close(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
		wantSame(t, "connections", len(s.links()), 0)
	})
}

func TestCloseOfAConnectionEndsEverythingAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 3, handlers{"hold": untilDone})
		unserved, err := s.conn.NewServer()
		if err != nil {
			t.Fatal(err)
		}
		var calls []<-chan result
		for _, c := range s.clients {
			calls = append(calls, goCall(c, within(t, time.Hour), "hold", nil))
		}
		settle()
		begun := time.Now()
		err = s.conn.Close(t.Context())
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
		if err != nil {
			t.Error(err)
		}
		for _, call := range calls {
			wantIs(t, (<-call).err, ErrClosed)
		}
		for _, server := range s.servers {
			_ = server.wait(t)
		}
		wantIs(t, unserved.Serve(t.Context()), ErrClosed)
		wantSame(t, "connections", len(s.links()), 0)
		wantSame(t, "kept servers and clients", len(s.conn.servers)+len(s.conn.clients), 0)
	})
}

// Clients and servers come and go while the connection lives, also at its end.
func TestConnectionUnderChurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 1, handlers{"echo": echo})
		var workers sync.WaitGroup
		for range 4 {
			workers.Go(func() {
				for {
					c, err := s.conn.NewClient(WithQueue(Queue{Name: queueOf(0)}))
					if err != nil {
						wantIs(t, err, ErrClosed)
						return
					}
					if _, err := c.Call(within(t, time.Hour), "echo", nil); err != nil {
						wantIs(t, err, ErrClosed)
					}
					if err := c.Close(t.Context()); err != nil {
						t.Error(err)
					}
					<-time.After(time.Second)
				}
			})
		}
		for range 3 {
			pass(10 * time.Second)
			s.broker.Kick(&amqp.Error{Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED"})
		}
		pass(10 * time.Second)
		links := s.links()
		wantSame(t, "connections", len(links), 2)
		var channels int
		s.broker.With(func(b *brokertest.Broker) {
			for _, l := range b.Links {
				channels += l.OpenChannels()
			}
		})
		if channels > 60 {
			t.Errorf("%d channels are open", channels)
		}
		if err := s.conn.Close(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
		workers.Wait()
		names := slices.DeleteFunc(s.broker.QueueNames(), func(name string) bool { return name != queueOf(0)+".reply." })
		wantSame(t, "reply queues", len(names), 0)
	})
}

func TestFaultOfFindsTheKindInAnyError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnDial = refusing(1<<30, amqp.ErrCredentials)
		c, s := connectTo(t, b), startServer(t, b, nil)
		client, err := c.NewClient()
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		for name, wait := range map[string]func(context.Context) error{"connection": c.WaitReady, "client": client.WaitReady, "server": s.WaitReady} {
			err := wait(t.Context())
			wantSame(t, name, FaultOf(err), FaultCredentials)
		}
		wantSame(t, "took", time.Since(begun), 0)
		wantSame(t, "none", FaultOf(nil), "")
		wantSame(t, "another", FaultOf(errors.Join(errNoServer, context.Canceled)), "")
		for _, st := range []Status{c.Status(), client.Status(), s.Status()} {
			wantSame(t, "needs an operator", st.NeedsOperator, true)
		}
		b.With(func(b *brokertest.Broker) { b.OnDial = refusing(1<<30, brokertest.ErrCut) })
		pass(time.Minute)
		wantIs(t, c.WaitReady(within(t, time.Second)), context.DeadlineExceeded)
		wantSame(t, "needs an operator", client.Status().NeedsOperator, false)
		b.With(func(b *brokertest.Broker) { b.OnDial = nil })
		ready(t, client.WaitReady)
	})
}

// With several brokers WaitReady waits while one of them may come back.
func TestWaitReadyWaitsForTheOtherBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnDial = func(_ context.Context, url, _ string) error {
			if url == "amqp://wrong" {
				return amqp.ErrCredentials
			}
			return brokertest.ErrCut
		}
		c, err := NewClient("amqp://wrong,amqp://away", onBroker(b))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close(context.Background()) }()
		err = c.WaitReady(within(t, time.Minute))
		wantIs(t, err, context.DeadlineExceeded)
		wantSame(t, "fault", FaultOf(err), FaultGuest)
	})
}

func TestWatchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c, s := startClient(t, b), startServer(t, b, nil)
		conn := connectTo(t, b)
		for name, watch := range map[string]func(context.Context) <-chan Status{"client": c.Watch, "server": s.Watch, "connection": conn.Watch} {
			ctx, cancel := context.WithCancel(t.Context())
			updates := watch(ctx)
			settle()
			cancel()
			settle()
			n := 0
			for range updates {
				n++
			}
			wantSame(t, name+": updates before the end", n, 1)
			for st := range watch(nil) {
				wantIs(t, st.Err, errNilContext)
			}
		}
		var last State
		seen := make(chan struct{})
		go func() {
			defer close(seen)
			for st := range conn.Watch(context.Background()) {
				last = st.State
			}
		}()
		ready(t, conn.WaitReady)
		_ = conn.Close(t.Context())
		<-seen
		wantSame(t, "last state", last, StateClosed)
	})
}
