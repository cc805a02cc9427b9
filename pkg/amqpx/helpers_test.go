package amqpx

import (
	"context"
	"errors"
	"maps"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// testURL contains a password, and tests of error texts check that the password is missing.
const (
	testURL      = "amqp://app:secret@broker.test:5672/"
	testPassword = "secret"
)

// rig is a broker with one client and one server, in a synctest bubble.
type rig struct {
	t      *testing.T
	broker *brokertest.Broker
	client *Client
	server *running
}

// running is a server with Serve in progress.
type running struct {
	*Server
	stop   context.CancelFunc // starts the drain
	result chan error         // the result of Serve
}

// wait waits for Serve to end and returns its error.
func (r *running) wait(t *testing.T) error {
	t.Helper()
	err := <-r.result
	r.result <- err // for the cleanup
	return err
}

// handlers maps the methods of a server to their handlers.
type handlers map[string]Handler

// echo is a handler that returns the request's body.
func echo(_ context.Context, req *Request) ([]byte, error) { return req.Body, nil }

// counted wraps a handler and counts its runs in n.
func counted(n *atomic.Int64, h Handler) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		n.Add(1)
		return h(ctx, req)
	}
}

// untilDone is a handler that runs until its context ends.
func untilDone(ctx context.Context, _ *Request) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// pastDeadline is a handler that runs for a second after its context ended. A test of a caller's
// deadline needs it: the response of untilDone can reach the caller in the instant of the
// deadline.
func pastDeadline(ctx context.Context, _ *Request) ([]byte, error) {
	<-ctx.Done()
	<-time.After(time.Second)
	return nil, ctx.Err()
}

// startClient creates a client and closes the client when the test ends.
func startClient(t *testing.T, b *brokertest.Broker, opts ...ClientOption) *Client {
	t.Helper()
	c, err := NewClient(testURL, append([]ClientOption{onBroker(b)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

// onceMethod is the method that startServer registers with AtMostOnce.
const onceMethod = "once"

// startServer creates a server and runs Serve until the test ends.
func startServer(t *testing.T, b *brokertest.Broker, methods handlers, opts ...ServerOption) *running {
	t.Helper()
	s, err := NewServer(testURL, append([]ServerOption{onBroker(b)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range methods {
		var opts []HandleOption
		if name == onceMethod {
			opts = append(opts, AtMostOnce())
		}
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
	return r
}

// startRig starts a client and a server and waits until both are ready. Call startRig inside a
// synctest bubble.
func startRig(t *testing.T, methods handlers, opts ...Option) *rig {
	t.Helper()
	b := brokertest.New()
	var (
		clientOpts []ClientOption
		serverOpts []ServerOption
	)
	for _, o := range opts {
		clientOpts, serverOpts = append(clientOpts, o), append(serverOpts, o)
	}
	r := &rig{t: t, broker: b}
	r.server = startServer(t, b, methods, serverOpts...)
	r.client = startClient(t, b, clientOpts...)
	ready(t, r.server.WaitReady)
	ready(t, r.client.WaitReady)
	return r
}

func ready(t *testing.T, wait func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := wait(ctx); err != nil {
		t.Fatalf("not ready: %v", err)
	}
	settle()
}

// within returns the test's context with a timeout.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// refusing is an onDial hook that fails n times.
func refusing(n int64, err error) func(context.Context, string, string) error {
	var dials atomic.Int64
	return func(context.Context, string, string) error {
		if dials.Add(1) <= n {
			return err
		}
		return nil
	}
}

// result is the result of a call and its duration.
type result struct {
	response []byte
	err      error
	took     time.Duration
}

// copied makes a message a copy by a server of a request that servers have lost n times. The
// message had the caller's user.
func copied(n any) func(*amqp.Publishing) {
	return func(p *amqp.Publishing) {
		headers := amqp.Table{wire.HeaderDeliveries: n, wire.HeaderUser: p.UserId}
		maps.Copy(headers, p.Headers)
		p.Headers, p.UserId = headers, "app"
	}
}

// goCall makes a call in a goroutine and returns a channel for the result.
func goCall(c *Client, ctx context.Context, method string, body []byte, opts ...CallOption) <-chan result { //nolint:revive // the client is the subject.
	done := make(chan result, 1)
	begun := time.Now()
	go func() {
		response, err := c.Call(ctx, method, body, opts...)
		done <- result{response, err, time.Since(begun)}
	}()
	return done
}

// settle waits until every other goroutine of the bubble is blocked.
func settle() { synctest.Wait() }

// pass lets the bubble's virtual time advance by d.
func pass(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

func wantResponse(t *testing.T, got result, want string) {
	t.Helper()
	if got.err != nil || string(got.response) != want {
		t.Errorf("answer %q, error %v; want answer %q", got.response, got.err, want)
	}
}

func wantSame[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func wantIs(t *testing.T, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("error %v does not match %v", err, target)
		}
	}
}

// testTarget returns the broker of a URL.
func testTarget(url string) transport.Target {
	u, _ := parseURL(url)
	return u.target()
}
