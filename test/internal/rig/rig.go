package rig

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"rabbitmq-rpc/pkg/amqpx"
)

// Methods holds the handlers of a server by method.
type Methods map[string]amqpx.Handler

// Rig is one test's part of a broker, with an exclusive request queue. Its servers, clients
// and connections end with the test, and the queue is deleted.
type Rig struct {
	t testing.TB
	// URL is the broker's URL.
	URL string
	// Queue is the request queue. Change it before creating servers and clients.
	Queue amqpx.Queue

	raw func() *amqp.Connection
}

// New returns a rig on the broker under test.
func New(t testing.TB) *Rig {
	t.Helper()
	return On(t, URL())
}

// On returns a rig on the broker at url.
func On(t testing.TB, url string) *Rig {
	t.Helper()
	r := Beyond(t, url)
	t.Cleanup(func() {
		conn, err := amqp.Dial(url)
		if err != nil {
			return // the test took its broker down
		}
		defer func() { _ = conn.Close() }()
		if ch, err := conn.Channel(); err == nil {
			for _, companion := range []string{"", ".batch", ".retry", ".dead"} {
				_, _ = ch.QueueDelete(r.Queue.Name+companion, false, false, false)
			}
			_ = ch.ExchangeDelete(r.Queue.Name+".control", false, false)
			_ = ch.ExchangeDelete(r.Queue.Name+".rpc", false, false)
		}
	})
	return r
}

// Beyond returns a rig on an unreachable broker, with nothing to clean up.
func Beyond(t testing.TB, url string) *Rig {
	t.Helper()
	return &Rig{
		t:     t,
		URL:   url,
		Queue: amqpx.Queue{Name: "test." + uuid.NewString(), Type: amqpx.QueueClassic},
		raw:   sync.OnceValue(func() *amqp.Connection { return Dial(t, url) }),
	}
}

// Server is a server that runs until a drain or the end of its test.
type Server struct {
	*amqpx.Server

	t    testing.TB
	stop context.CancelFunc
	done chan struct{}
	err  error // the result of Serve, valid after done is closed
}

// Stop begins a graceful stop and returns at once.
func (s *Server) Stop() { s.stop() }

// Close stops the server without waiting for handlers, and returns after Serve has returned.
// The connections are closed by then, so the broker has no consumers of this server any more
// and redelivers its unacknowledged requests to other servers. A handler of the server itself
// must call Server.Server.Close, which does not wait.
func (s *Server) Close() {
	s.t.Helper()
	s.Server.Close()
	_ = s.Wait() // ErrDrainTimeout, if it cut handlers off
}

// Serve starts a server on the rig's queue and waits until it consumes.
func (r *Rig) Serve(methods Methods, opts ...amqpx.ServerOption) *Server {
	r.t.Helper()
	return r.ServeAt(r.URL, methods, opts...)
}

// ServeAt is Serve with another broker URL.
func (r *Rig) ServeAt(url string, methods Methods, opts ...amqpx.ServerOption) *Server {
	r.t.Helper()
	s := r.StartAt(url, methods, opts...)
	if err := s.WaitReady(Patience(r.t)); err != nil {
		r.t.Fatalf("server does not become ready: %v", err)
	}
	return s
}

// Start starts a server and returns at once.
func (r *Rig) Start(methods Methods, opts ...amqpx.ServerOption) *Server {
	r.t.Helper()
	return r.StartAt(r.URL, methods, opts...)
}

// StartAt is Start with another broker URL.
func (r *Rig) StartAt(url string, methods Methods, opts ...amqpx.ServerOption) *Server {
	r.t.Helper()
	all := []amqpx.ServerOption{amqpx.WithLogger(r.logger()), amqpx.WithQueue(r.Queue), quickly()}
	server, err := amqpx.NewServer(url, append(all, opts...)...)
	if err != nil {
		r.t.Fatalf("make a server: %v", err)
	}
	for name, h := range methods {
		if err := server.Handle(name, h); err != nil {
			r.t.Fatalf("register %q: %v", name, err)
		}
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(r.t.Context()))
	s := &Server{Server: server, t: r.t, stop: stop, done: make(chan struct{})}
	go func() { // ends with the drain in the cleanup
		defer close(s.done)
		s.err = server.Serve(ctx)
	}()
	r.t.Cleanup(func() {
		s.stop()
		s.Server.Close()
		<-s.done
	})
	return s
}

// Drain stops the server gracefully and returns the result of Serve.
func (s *Server) Drain() error {
	s.t.Helper()
	s.stop()
	return s.Wait()
}

// Wait waits for the server's end and returns the result of Serve.
func (s *Server) Wait() error {
	s.t.Helper()
	Recv(s.t, s.done, "the server to stop")
	return s.err
}

// Client returns a client of the rig's queue.
func (r *Rig) Client(opts ...amqpx.ClientOption) *amqpx.Client {
	r.t.Helper()
	return r.ClientAt(r.URL, opts...)
}

// ClientAt is Client with another broker URL.
func (r *Rig) ClientAt(url string, opts ...amqpx.ClientOption) *amqpx.Client {
	r.t.Helper()
	all := []amqpx.ClientOption{amqpx.WithLogger(r.logger()), amqpx.WithQueue(r.Queue), quickly()}
	client, err := amqpx.NewClient(url, append(all, opts...)...)
	if err != nil {
		r.t.Fatalf("make a client: %v", err)
	}
	r.t.Cleanup(func() {
		ctx, cancel := afterwards(r.t)
		defer cancel()
		if err := client.Close(ctx); err != nil {
			r.t.Errorf("close a client: %v", err)
		}
	})
	return client
}

// Ready returns a connected client.
func (r *Rig) Ready(opts ...amqpx.ClientOption) *amqpx.Client {
	r.t.Helper()
	c := r.Client(opts...)
	Connected(r.t, c)
	return c
}

// Connected waits until the client is connected.
func Connected(t testing.TB, c *amqpx.Client) {
	t.Helper()
	if err := c.WaitReady(Patience(t)); err != nil {
		t.Fatalf("client does not become ready: %v", err)
	}
}

// Call makes a call that must succeed and returns the response.
func Call(t testing.TB, c *amqpx.Client, method string, body []byte, opts ...amqpx.CallOption) []byte {
	t.Helper()
	response, err := c.Call(Patience(t), method, body, opts...)
	if err != nil {
		t.Fatalf("call %q: %v", method, err)
	}
	return response
}

// quickly shortens the backoff, for tests of lost connections.
func quickly() amqpx.Option {
	return amqpx.WithBackoff(10*time.Millisecond, 300*time.Millisecond)
}

// logger returns a logger whose lines appear if the test fails.
func (r *Rig) logger() *zap.Logger {
	return zaptest.NewLogger(r.t, zaptest.Level(zap.InfoLevel))
}
