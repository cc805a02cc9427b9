package amqpx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// streamHandlers maps methods to handlers of streams.
type streamHandlers map[string]StreamHandler

// startStreamServer starts a server with handlers of streams.
func startStreamServer(t *testing.T, b *brokertest.Broker, methods streamHandlers, opts ...ServerOption) *running {
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
		if err := s.HandleStream(name, h, opts...); err != nil {
			t.Fatal(err)
		}
	}
	return serveStreams(t, s)
}

// serveStreams runs Serve until the test ends.
func serveStreams(t *testing.T, s *Server) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Server: s, stop: stop, result: make(chan error, 1)}
	go func() { r.result <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		_ = r.wait(t)
	})
	return r
}

// startStreams starts a client and a server in a bubble.
func startStreams(t *testing.T, methods streamHandlers, opts ...Option) *rig {
	t.Helper()
	r := &rig{t: t, broker: brokertest.New()}
	var (
		clientOpts []ClientOption
		serverOpts []ServerOption
	)
	for _, o := range opts {
		clientOpts, serverOpts = append(clientOpts, o), append(serverOpts, o)
	}
	r.server = startStreamServer(t, r.broker, methods, serverOpts...)
	r.client = startClient(t, r.broker, clientOpts...)
	ready(t, r.server.WaitReady)
	ready(t, r.client.WaitReady)
	return r
}

// echoStream sends back each item.
func echoStream(_ context.Context, s *ServerStream) error {
	for item, err := range s.All() {
		if err != nil {
			return err
		}
		if err := s.Send(item); err != nil {
			return err
		}
	}
	return nil
}

// countStream sends as many numbers as the first item says.
func countStream(_ context.Context, s *ServerStream) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(string(first))
	if err != nil {
		return Errorf(CodeInvalidArgument, "%w", err)
	}
	for i := range n {
		if err := s.Send([]byte(strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return nil
}

// collect ranges over a server stream of numbers, and returns how many came, in order.
func collect(t *testing.T, c *Client, ctx context.Context, method, body string, opts ...CallOption) (n int, failed error) { //nolint:revive // the client is the subject.
	t.Helper()
	for item, err := range c.Stream(ctx, method, []byte(body), opts...) {
		if err != nil {
			return n, err
		}
		if string(item) != strconv.Itoa(n) {
			t.Fatalf("item %d: %q", n, item)
		}
		n++
	}
	return n, nil
}

func TestServerStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"count": countStream})
		for _, n := range []int{0, 1, 3, 100_000} {
			got, err := collect(t, r.client, within(t, time.Minute), "count", strconv.Itoa(n))
			if err != nil {
				t.Fatal(err)
			}
			wantSame(t, "items", got, n)
		}
		_, err := collect(t, r.client, within(t, time.Minute), "count", "many")
		wantSame(t, "code", CodeOf(err), CodeInvalidArgument)
		wantSame(t, "outcome", OutcomeOf(err), Ran)
		settle()
		wantSame(t, "open", r.client.Stats().Streams.Open+r.server.Stats().Streams.Open, 0)
		wantSame(t, "opened", r.server.Stats().Streams.Opened, 5)
	})
}

func TestBidirectionalStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"echo": echoStream})
		s, err := r.client.Open(within(t, time.Minute), "echo")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			want := fmt.Appendf(nil, "item %d", i)
			if err := s.Send(want); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Recv(); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("got %q, error %v", got, err)
			}
		}
		_ = s.CloseSend()
		_, err = s.Recv()
		wantSame(t, "error", err, io.EOF)
		wantSame(t, "error of Send", s.Send(nil), io.EOF)
		s.Close()
		_, err = s.Recv()
		wantSame(t, "error", err, io.EOF)
		wantSame(t, "progress", s.Progress(), Progress{Sent: 100, Taken: 100, Received: 100})
	})
}

func TestClientStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{
			"sum": func(_ context.Context, s *ServerStream) error {
				n := 0
				for item, err := range s.All() {
					if err != nil {
						return err
					}
					n += len(item)
				}
				return s.Send([]byte(strconv.Itoa(n)))
			},
			"none": func(context.Context, *ServerStream) error { return nil },
			"two": func(_ context.Context, s *ServerStream) error {
				return errors.Join(s.Send(nil), s.Send(nil))
			},
			"early": func(context.Context, *ServerStream) error { return Errorf(CodeAborted, "enough") },
		})
		s, _ := r.client.Open(within(t, time.Minute), "sum")
		for range 20_000 {
			if err := s.Send(make([]byte, 50)); err != nil {
				t.Fatal(err)
			}
		}
		answer, err := s.CloseAndRecv()
		wantSame(t, "answer", string(answer), "1000000")
		wantSame(t, "error", err, nil)
		for method, want := range map[string]Code{"none": CodeInternal, "two": CodeInternal, "early": CodeAborted} {
			s, _ := r.client.Open(within(t, time.Minute), method)
			_ = s.Send(nil)
			_, err := s.CloseAndRecv()
			wantSame(t, method, CodeOf(err), want)
		}
	})
}
