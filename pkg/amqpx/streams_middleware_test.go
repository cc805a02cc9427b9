package amqpx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// noted is middleware that notes the begin and the end of what it sees.
type noted struct {
	mu    sync.Mutex
	notes []string
}

func (n *noted) add(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notes = append(n.notes, fmt.Sprintf(format, args...))
}

func (n *noted) all() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.notes, ", ")
}

func (n *noted) middleware(next Handler) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		n.add("%s begins", req.Method)
		own := *req
		own.Header = maps.Clone(req.Header)
		if own.Header == nil {
			own.Header = make(map[string]any)
		}
		own.Header["seen"] = "yes"
		body, err := next(ctx, &own)
		n.add("%s ends %s", req.Method, CodeOf(err))
		return body, err
	}
}

// Middleware of both sides sees a stream as a call, and its changes of the request have an effect.
func TestMiddlewareSeesStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		var client, server, inner noted
		streamMiddleware := func(next StreamHandler) StreamHandler {
			return func(ctx context.Context, s *ServerStream) error {
				inner.add("inner begins with %v", s.Request().Header["seen"])
				defer func() { inner.add("inner ends") }()
				return next(ctx, s)
			}
		}
		s := startStreamServer(t, b, streamHandlers{
			"echo":  echoStream,
			"panic": func(context.Context, *ServerStream) error { panic("secret") },
			"plain": func(context.Context, *ServerStream) error { return errors.New("secret") },
		}, WithMiddleware(server.middleware), WithStreamMiddleware(streamMiddleware))
		ready(t, s.WaitReady)
		c := startClient(t, b, WithMiddleware(client.middleware))
		for range 3 {
			n := 0
			for item, err := range c.Stream(within(t, time.Minute), "echo", []byte("x")) {
				if err != nil || string(item) != "x" {
					t.Errorf("item %q, error %v", item, err)
				}
				n++
			}
			wantSame(t, "items", n, 1)
			settle() // the middleware ends after the stream
		}
		for _, method := range []string{"panic", "plain"} {
			_, err := collect(t, c, within(t, time.Minute), method, "")
			wantFailed(t, err, CodeInternal, Ran)
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("error %v", err)
			}
			settle()
		}
		want := "echo begins, echo ends , echo begins, echo ends , echo begins, echo ends , panic begins, panic ends internal, plain begins, plain ends internal"
		wantSame(t, "client", client.all(), want)
		wantSame(t, "server", server.all(), strings.Replace(strings.Replace(want, "panic ends internal, ", "", 1), "plain ends internal", "plain ends unknown", 1))
		wantSame(t, "inner", inner.all(), strings.TrimSuffix(strings.Repeat("inner begins with yes, inner ends, ", 5), ", "))
		wantSame(t, "panics", s.Stats().Panics, 1)
	})
}

// Middleware that refuses, or forgets, a stream, at either side.
func TestMiddlewareRefusesStreams(t *testing.T) {
	t.Parallel()
	refuses := func(Handler) Handler {
		return func(context.Context, *Request) ([]byte, error) { return nil, refusal(CodeFailedPrecondition, "no") }
	}
	forgets := func(Handler) Handler {
		return func(context.Context, *Request) ([]byte, error) { return nil, nil }
	}
	twice := func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			_, _ = next(ctx, req)
			return next(ctx, req)
		}
	}
	for name, c := range map[string]struct {
		client, server Middleware
		code           Code // "": the stream succeeds
	}{
		"client refuses": {client: refuses, code: CodeFailedPrecondition},
		"client forgets": {client: forgets, code: CodeInternal},
		"client twice":   {client: twice},
		"server refuses": {server: refuses, code: CodeFailedPrecondition},
		"server forgets": {server: forgets, code: CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				var serverOpts []ServerOption
				var clientOpts []ClientOption
				if c.server != nil {
					serverOpts = append(serverOpts, WithMiddleware(c.server))
				}
				if c.client != nil {
					clientOpts = append(clientOpts, WithMiddleware(c.client))
				}
				s := startStreamServer(t, b, streamHandlers{"count": countStream}, serverOpts...)
				ready(t, s.WaitReady)
				client := startClient(t, b, clientOpts...)
				n, err := collect(t, client, within(t, time.Minute), "count", "3")
				if c.code == "" {
					wantSame(t, "items", n, 3)
					wantSame(t, "error", err, nil)
				} else {
					wantFailed(t, err, c.code, DidNotRun)
				}
				settle()
				wantSame(t, "open", s.Stats().Streams.Open+client.Stats().Streams.Open, 0)
			})
		})
	}
}

// earlyHeaders is a handler that checks the headers of the client, sends headers before it proceeds,
// and fails with trailers.
func earlyHeaders(t *testing.T, sent, want map[string]any, proceed <-chan struct{}) StreamHandler {
	t.Helper()
	return func(_ context.Context, s *ServerStream) error {
		if got := s.Request().Header; !reflect.DeepEqual(got, want) {
			t.Errorf("the server got %v", got)
		}
		if err := s.SetHeader(map[string]any{"first": "1"}); err != nil {
			return err
		}
		if err := s.SendHeader(sent); err != nil {
			return err
		}
		if err := s.SetHeader(map[string]any{"late": "1"}); !errors.Is(err, errHeadersSent) {
			t.Errorf("late headers: %v", err)
		}
		for _, bad := range []map[string]any{{"n": 1}, {"rpc-x": "1"}, {"": "1"}, {"n": []any{1}}, {"n": strings.Repeat("x", 1<<17)}} {
			if err := s.SetTrailer(bad); CodeOf(err) != CodeInvalidArgument {
				t.Errorf("trailer %.40v: %v", bad, err)
			}
		}
		<-proceed
		return errors.Join(s.SetTrailer(map[string]any{"text": "0"}), s.SetTrailer(sent), Errorf(CodeNotFound, "x"))
	}
}

func TestHeadersOfStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sent := map[string]any{"text": "1", "bytes": []byte{0xff}, "list": []string{"a", "b"}, "mixed": []any{"a", []byte("b")}, "empty": ""}
		want := map[string]any{"text": "1", "bytes": []byte{0xff}, "list": []any{"a", "b"}, "mixed": []any{"a", []byte("b")}, "empty": ""}
		proceed := make(chan struct{})
		r := startStreams(t, streamHandlers{
			"early": earlyHeaders(t, sent, want, proceed),
			"late": func(_ context.Context, s *ServerStream) error {
				_ = s.SetHeader(sent)
				return nil
			},
			"never": func(context.Context, *ServerStream) error { return nil },
		})
		s, err := r.client.Open(within(t, time.Minute), "early", WithHeader(sent))
		if err != nil {
			t.Fatal(err)
		}
		header, err := s.Header()
		wantSame(t, "error", err, nil)
		all := maps.Clone(want)
		all["first"] = "1"
		if !reflect.DeepEqual(header, all) {
			t.Errorf("headers %v", header)
		}
		wantSame(t, "trailers before the end", len(s.Trailer()), 0)
		close(proceed)
		_, err = s.Recv()
		wantFailed(t, err, CodeNotFound, Ran)
		if got := s.Trailer(); !reflect.DeepEqual(got, want) {
			t.Errorf("trailers %v", got)
		}
		late, _ := r.client.Open(within(t, time.Minute), "late")
		if header, err := late.Header(); err != nil || !reflect.DeepEqual(header, want) {
			t.Errorf("headers %v, error %v", header, err)
		}
		for method, want := range map[string]Code{"never": "", "unknown": ""} {
			none, err := r.client.Open(within(t, time.Minute), method)
			if err != nil {
				t.Fatal(err)
			}
			header, err := none.Header()
			wantSame(t, "headers of "+method, len(header), 0)
			wantSame(t, "error of "+method, CodeOf(err), want)
		}
		r.server.stop()
		wantSame(t, "error of the server", <-r.server.result, nil)
		r.server.result <- nil
		gone, err := r.client.Open(within(t, time.Second), "never")
		if err != nil {
			t.Fatal(err)
		}
		_, err = gone.Header()
		wantSame(t, "error without a server", CodeOf(err), CodeDeadlineExceeded)
	})
}

// Wrong arguments are errors at once, and harm nothing.
func TestMisuseOfStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"echo": echoStream}, WithMaxMessageSize(1<<20))
		ctx := within(t, time.Minute)
		for name, open := range map[string]func() (*ClientStream, error){
			"no method":   func() (*ClientStream, error) { return r.client.Open(ctx, "") },
			"long method": func() (*ClientStream, error) { return r.client.Open(ctx, strings.Repeat("m", 256)) },
			"no context":  func() (*ClientStream, error) { return r.client.Open(nil, "echo") }, //nolint:staticcheck // the mistake.
			"nil option":  func() (*ClientStream, error) { return r.client.Open(ctx, "echo", nil) },
			"no client":   func() (*ClientStream, error) { return (*Client)(nil).Open(ctx, "echo") },
			"call info":   func() (*ClientStream, error) { return r.client.Open(ctx, "echo", WithCallInfo(new(CallInfo))) },
			"number":      func() (*ClientStream, error) { return r.client.Open(ctx, "echo", WithHeader(map[string]any{"n": 1})) },
			"reserved": func() (*ClientStream, error) {
				return r.client.Open(ctx, "echo", WithHeader(map[string]any{"rpc-n": "1"}))
			},
		} {
			if _, err := open(); CodeOf(err) != CodeInvalidArgument || OutcomeOf(err) != DidNotRun {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err := collect(t, r.client, ctx, "echo", "item", WithCallInfo(new(CallInfo)))
		wantSame(t, "code with a call info", CodeOf(err), CodeInvalidArgument)
		large := make([]byte, 1<<20)
		_, err = collect(t, r.client, ctx, "echo", string(large))
		wantSame(t, "code", CodeOf(err), CodeInvalidArgument)
		s, _ := r.client.Open(ctx, "echo")
		wantIs(t, s.Send(large), ErrTooLarge)
		_ = s.Send(large[:1<<19])
		_ = s.CloseSend()
		n := 0
		for item, err := range s.All() {
			wantSame(t, "size", len(item), 1<<19)
			wantSame(t, "error", err, nil)
			n++
		}
		wantSame(t, "items", n, 1)
		server, err := NewServer(testURL)
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "error", server.HandleStream("m", echoStream), nil)
		for name, err := range map[string]error{
			"twice":       server.HandleStream("m", echoStream),
			"also a call": server.Handle("m", echo),
			"no name":     server.HandleStream("", echoStream),
			"no handler":  server.HandleStream("n", nil),
			"nil option":  server.HandleStream("n", echoStream, nil),
			"no server":   (*Server)(nil).HandleStream("n", echoStream),
		} {
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		}
		_, err = NewServer(testURL, WithMaxStreams(0, 1), WithMaxStreamTime(-1), WithStreamMiddleware(nil), WithStreamMemory(0), WithStreamKeepAlive(time.Millisecond))
		for _, text := range []string{"max streams 0", "max stream time", "stream middleware 1 is nil", "stream memory 0", "stream keep-alive 1ms"} {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("error %v, want %q", err, text)
			}
		}
	})
}

// The window that a client sets is what the server may send.
func TestStreamWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"count": countStream})
		s, _ := r.client.Open(within(t, time.Hour), "count", StreamWindow(10, 1<<20))
		_ = s.Send([]byte("100000"))
		settle()
		wantSame(t, "sent", r.server.Stats().Streams.ItemsSent, 10)
		for range 1000 {
			if _, err := s.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if sent := r.server.Stats().Streams.ItemsSent; sent > 1010 {
			t.Errorf("%d items sent", sent)
		}
		s.Close()
		_, err := s.Recv()
		wantFailed(t, err, CodeCanceled, MayHaveRun)
		wantSame(t, "received", ProgressOf(err).Received, 1000)
		wantSame(t, "no stream", ProgressOf(io.EOF), Progress{})
		if names := r.broker.QueueNames(); !slices.Contains(names, DefaultQueue+".streams") {
			t.Errorf("queues %v", names)
		}
	})
}
