package amqpx

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// CallTimeout ends a call early, never late, whichever way it is made and set.
func TestCallTimeout(t *testing.T) {
	t.Parallel()
	ways := map[string]func(c *Client, ctx context.Context, opts ...CallOption) error{
		"Call": func(c *Client, ctx context.Context, opts ...CallOption) error {
			_, err := c.Call(ctx, "m", nil, opts...)
			return err
		},
		"Go": func(c *Client, ctx context.Context, opts ...CallOption) error {
			_, err := c.Go(ctx, "m", nil, opts...).Wait()
			return err
		},
	}
	for kind, call := range ways {
		for name, c := range map[string]struct {
			deadline, timeout, want time.Duration // deadline 0: none
			client                  []ClientOption
		}{
			"no deadline":        {timeout: 2 * time.Second, want: 2 * time.Second},
			"beyond the default": {timeout: time.Hour, want: time.Hour},
			"later deadline":     {deadline: time.Minute, timeout: 2 * time.Second, want: 2 * time.Second},
			"earlier deadline":   {deadline: time.Second, timeout: time.Minute, want: time.Second},
			"of the method":      {want: 3 * time.Second, client: []ClientOption{WithMethod("m", CallTimeout(3*time.Second))}},
			"the last counts":    {timeout: time.Second, want: time.Second, client: []ClientOption{WithMethod("m", CallTimeout(3*time.Second))}},
			"with middleware":    {timeout: 2 * time.Second, want: 2 * time.Second, client: []ClientOption{WithMiddleware(passOn)}},
		} {
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := brokertest.New()
					s := startServer(t, b, handlers{"m": untilDone}, WithMaxHandlerTime(2*time.Hour))
					client := startClient(t, b, c.client...)
					ready(t, s.WaitReady)
					ready(t, client.WaitReady)
					ctx := context.Background()
					if c.deadline > 0 {
						ctx = within(t, c.deadline)
					}
					var opts []CallOption
					if c.timeout > 0 {
						opts = append(opts, CallTimeout(c.timeout))
					}
					begun := time.Now()
					err := call(client, ctx, opts...)
					wantIs(t, err, context.DeadlineExceeded)
					wantSame(t, "code", CodeOf(err), CodeDeadlineExceeded)
					wantSame(t, "took", time.Since(begun), c.want)
					if err := call(client, ctx, CallTimeout(0)); CodeOf(err) != CodeInvalidArgument || OutcomeOf(err) != DidNotRun {
						t.Errorf("CallTimeout(0): %v", err)
					}
				})
			})
		}
	}
	if _, err := NewClient(testURL, WithMethod("m", CallTimeout(-1))); err == nil {
		t.Error("NewClient accepts a timeout below 0")
	}
}

// A method's own limit holds in place of the server's, also for handlers that are stuck.
func TestHandlerTimeout(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ server, method, want time.Duration }{
		"shorter":              {time.Minute, time.Second, time.Second},
		"longer":               {time.Second, time.Minute, time.Minute},
		"server without limit": {0, time.Second, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				s, err := NewServer(testURL, onBroker(b), WithMaxHandlerTime(c.server))
				if err != nil {
					t.Fatal(err)
				}
				release := make(chan struct{})
				stuck := func(context.Context, *Request) ([]byte, error) {
					<-release
					return nil, nil
				}
				if err := errors.Join(s.Handle("m", untilDone, HandlerTimeout(c.method)), s.Handle("stuck", stuck, HandlerTimeout(c.method))); err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(context.Background())
				served := make(chan error, 1)
				go func() { served <- s.Serve(ctx) }()
				ready(t, s.WaitReady)
				client := startClient(t, b)
				got := <-goCall(client, within(t, time.Hour), "m", nil)
				wantSame(t, "code", CodeOf(got.err), CodeDeadlineExceeded)
				wantSame(t, "took", got.took, c.want)
				got = <-goCall(client, within(t, time.Hour), "stuck", nil)
				wantSame(t, "code of a stuck handler", CodeOf(got.err), CodeDeadlineExceeded)
				if got.took < c.want+stuckGrace || got.took > c.want+stuckGrace+watchPauseMax {
					t.Errorf("the stuck handler was given up after %v", got.took)
				}
				close(release)
				stop()
				if err := <-served; err != nil {
					t.Error(err)
				}
			})
		})
	}
	s, err := NewServer(testURL)
	if err != nil {
		t.Fatal(err)
	}
	if s.Handle("m", echo, HandlerTimeout(0)) == nil || s.Handle("m", echo, MaxConcurrent(0)) == nil {
		t.Error("Handle accepts limits of 0")
	}
	if err := s.Handle("m", echo); err != nil {
		t.Errorf("a faulty registration blocks the next: %v", err)
	}
}

// startLimited starts a server whose method "m" has two slots, and a client without retries.
func startLimited(t *testing.T, h Handler, opts ...ClientOption) *rig {
	t.Helper()
	r := &rig{t: t, broker: brokertest.New()}
	s, err := NewServer(testURL, onBroker(r.broker))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Handle("m", h, MaxConcurrent(2)), s.Handle("other", echo)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.server = &running{Server: s, stop: stop, result: make(chan error, 1)}
	go func() { r.server.result <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		_ = r.server.wait(t)
	})
	r.client = startClient(t, r.broker, opts...)
	ready(t, s.WaitReady)
	ready(t, r.client.WaitReady)
	return r
}

func TestMaxConcurrentRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		release := make(chan struct{})
		r := startLimited(t, counted(&runs, func(context.Context, *Request) ([]byte, error) {
			<-release
			return []byte("done"), nil
		}), WithRetryBudget(0, 0))
		ctx := within(t, time.Hour)
		running := []<-chan result{goCall(r.client, ctx, "m", []byte("1"), WithIdempotencyKey("k")), goCall(r.client, ctx, "m", []byte("2"))}
		settle()
		got := <-goCall(r.client, ctx, "m", []byte("3"))
		wantSame(t, "code", CodeOf(got.err), CodeResourceExhausted)
		wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		if hint := codedError(got.err).RetryAfter(); hint < slotHintMin || hint > 2*slotHintMax {
			t.Errorf("hint %v", hint)
		}
		wantSame(t, "refused", r.server.Stats().Refused, 1)
		wantResponse(t, <-goCall(r.client, ctx, "other", []byte("x")), "x")
		duplicate := goCall(r.client, ctx, "m", []byte("1"), WithIdempotencyKey("k"))
		putRequest(r.broker, amqp.Publishing{AppId: "m", Body: []byte("one way")})
		settle()
		wantSame(t, "runs", runs.Load(), 2)
		close(release)
		for _, call := range append(running, duplicate) {
			wantResponse(t, <-call, "done")
		}
		settle()
		wantSame(t, "runs with the one-way request", runs.Load(), 3)
		wantResponse(t, <-goCall(r.client, ctx, "m", []byte("4")), "done")
	})
}

// With its usual budget a client tries again until there is room.
func TestMaxConcurrentIsRetried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		r := startLimited(t, func(context.Context, *Request) ([]byte, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-time.After(100 * time.Millisecond)
			return nil, nil
		})
		var calls []<-chan result
		for range 10 {
			calls = append(calls, goCall(r.client, within(t, time.Minute), "m", nil))
		}
		for _, call := range calls {
			wantResponse(t, <-call, "")
		}
		wantSame(t, "at once", most.Load(), 2)
	})
}
