package amqpx

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// badURLs returns invalid URLs. Each contains the password.
func badURLs() []string {
	return []string{
		"http://app:secret@host/",
		"amqp://app:secret@host:port/",
		"amqp://app:sec ret@host/secret",
		"amqp://app:secret%zz@host/",
		"app:secret@host:5672",
		"://app:secret@host",
		"amqp://app:secret@[::1",
		"amqp://app:secret\x7f@host/",
	}
}

func TestBadURLIsNamedByItsPlaceWithoutItsPassword(t *testing.T) {
	t.Parallel()
	for _, u := range badURLs() {
		t.Run(u, func(t *testing.T) {
			t.Parallel()
			_, err := NewClient(testURL + "," + u)
			_, serverErr := NewServer(testURL + "," + u)
			for _, err := range []error{err, serverErr} {
				if err == nil {
					t.Fatal("accepted")
				}
				if text := err.Error(); !strings.Contains(text, "the second URL ") || strings.Contains(text, testPassword) {
					t.Errorf("text %q: want the URL's place in it and no password", text)
				}
			}
		})
	}
}

func TestPasswordWithACommaIsNotShown(t *testing.T) {
	t.Parallel()
	_, err := NewClient("amqp://app:sec,secret@host/")
	if err == nil || strings.Contains(err.Error(), testPassword) {
		t.Errorf("error %v: want one without the password", err)
	}
}

func TestClientFaultsAreNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := NewClient(" , ",
		WithQueue(Queue{Name: strings.Repeat("q", 256), Type: QueueQuorum, Transient: true}),
		WithMaxMessageSize(0), WithHeartbeat(time.Millisecond), WithDialTimeout(0), WithWriteTimeout(-1),
		WithBackoff(0, -time.Second), WithReplyMode("pigeon"), WithTimeout(0), WithMaxInFlight(0),
		WithMaxInFlightBytes(-1), WithRetryBudget(math.NaN(), -1), WithMethod(""))
	wantTexts(t, err, "amqpx: client:", "no broker URL", "queue name of 256 bytes", "a quorum queue must be durable",
		"max message size 0", "heartbeat 1ms", "dial timeout 0s", "write timeout -1ns", "first backoff 0s",
		"backoff from 0s to -1s", `reply mode "pigeon"`, "timeout 0s: want more than 0", "max in flight 0",
		"max in flight -1 bytes: want at least the max message size 0", "retry ratio NaN", "retry burst -1", "method name of 0 bytes")
}

func TestServerFaultsAreNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := NewServer("", WithQueue(Queue{Type: "stream"}), WithWorkers(-1), WithPrefetch(1<<16), WithDrainTimeout(0))
	wantTexts(t, err, "amqpx: server:", "no broker URL", "queue name of 0 bytes", `queue type "stream"`,
		"workers -1", "prefetch 65536", "drain timeout 0s")
}

func wantTexts(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range texts {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err.Error())
		}
	}
}

func TestDefaultsAreValid(t *testing.T) {
	t.Parallel()
	c, err := newClientConfig("amqp://localhost", nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "queue", c.queue, Queue{Name: "rpc_queue", Type: QueueClassic})
	wantSame(t, "timeout", c.timeout, 30*time.Second)
	if _, ok := c.dialer.(transport.NetDialer); !ok {
		t.Errorf("dialer %T", c.dialer)
	}
	s, err := newServerConfig("amqp://localhost", nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "prefetch", s.prefetch, 2*DefaultWorkers)
}

func TestPrefetchFitsTheProtocol(t *testing.T) {
	t.Parallel()
	s, err := newServerConfig(testURL, []ServerOption{WithWorkers(60000)})
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "prefetch", s.prefetch, 65535)
}

func TestURLListIsSplit(t *testing.T) {
	t.Parallel()
	c, err := newClientConfig(" amqps://a ,amqps://b/v,, ", nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "URLs", fmt.Sprint(c.urls), "[amqps://guest@a:5671 amqps://guest@b:5671]")
}

func TestOptionsOfOneClientDoNotReachAnother(t *testing.T) {
	t.Parallel()
	var order []string
	shared := []ClientOption{WithMiddleware(tag(&order, "a"), tag(&order, "b"), tag(&order, "c"))}
	first, _ := newClientConfig(testURL, append(shared, WithMiddleware(tag(&order, "d"))))
	second, _ := newClientConfig(testURL, append(shared, WithMiddleware(tag(&order, "e"))))
	_, _ = Chain(echo, first.middleware...)(t.Context(), &Request{})
	_, _ = Chain(echo, second.middleware...)(t.Context(), &Request{})
	wantSame(t, "order", strings.Join(order, ""), "abcdabce")
}

func TestNilLoggerLogsNothing(t *testing.T) {
	t.Parallel()
	if _, err := NewServer(testURL, WithLogger(nil)); err != nil {
		t.Error(err)
	}
}

func TestPortOutOfRangeIsRefused(t *testing.T) {
	t.Parallel()
	for _, port := range []string{"0", "65536"} {
		if _, err := NewServer("amqp://host:" + port); err == nil {
			t.Errorf("port %s is taken", port)
		}
	}
}

func TestOptionsThatAreMistakesAreNamed(t *testing.T) {
	t.Parallel()
	noMiddleware := func(Handler) Handler { return nil }
	named := func(name string) Option { return WithQueue(Queue{Name: name}) }
	for name, c := range map[string]struct {
		opt  any
		want string
	}{
		"nil option":               {Option(nil), "option 2 is nil"},
		"nil middleware":           {WithMiddleware(Timeout(time.Second), nil), "WithMiddleware: middleware 2 is nil"},
		"name too long":            {WithName(strings.Repeat("x", 256)), "WithName: name of 256 bytes"},
		"name that is no UTF-8":    {WithName("\xff"), "WithName"},
		"queue of the broker":      {named("amq.foo"), `WithQueue: queue name "amq.foo": names that begin with "amq."`},
		"queue that is no UTF-8":   {named("\xff"), "WithQueue: queue name \"\\xff\": want valid UTF-8"},
		"another queue's batches":  {named("q.batch"), `names that end with ".batch"`},
		"another queue's retries":  {named("q.retry"), `names that end with ".retry"`},
		"another queue's dead":     {named("q.dead"), `names that end with ".dead"`},
		"another queue's exchange": {named("q.control"), `names that end with ".control"`},
		"key of every call":        {WithCallOptions(WithIdempotencyKey("fixed")), `WithCallOptions: WithIdempotencyKey("fixed")`},
		"key of every call of one": {WithMethod("m", WithIdempotencyKey("fixed")), `WithMethod("m"): WithIdempotencyKey("fixed")`},
		"info of every call":       {WithCallOptions(WithCallInfo(&CallInfo{})), "WithCallOptions: WithCallInfo"},
		"info of every call of m":  {WithMethod("m", WithCallInfo(&CallInfo{})), `WithMethod("m"): WithCallInfo`},
		"nil call option":          {WithCallOptions(Idempotent(), nil), "WithCallOptions: option 2 is nil"},
		"nil call option of m":     {WithMethod("m", nil), `WithMethod("m"): option 1 is nil`},
		"time below zero":          {WithMaxHandlerTime(-1), "max handler time -1ns"},
		"middleware without next":  {clientOption(func(c *clientConfig) { c.middleware = []Middleware{noMiddleware} }), "WithMiddleware: middleware 1 returned a nil handler"},
	} {
		check := func(side string, err error) {
			t.Helper()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, %s: error %v, want %q in it", name, side, err, c.want)
			}
		}
		if o, ok := c.opt.(ClientOption); ok || c.opt == nil {
			client, err := NewClient(testURL, WithName("x"), o)
			check("client", err)
			if err == nil {
				_ = client.Close(t.Context())
			}
		}
		if o, ok := c.opt.(ServerOption); ok || c.opt == nil {
			_, err := NewServer(testURL, WithName("x"), o)
			check("server", err)
		}
	}
}

func TestHandlersThatAreMistakesAreNamed(t *testing.T) {
	t.Parallel()
	s, err := NewServer(testURL)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Handle("m", echo, AtMostOnce(), nil); err == nil || !strings.Contains(err.Error(), `method "m": option 2 is nil`) {
		t.Errorf("nil option: %v", err)
	}
	if err := s.Handle("m", nil); err == nil || !strings.Contains(err.Error(), `method "m": no handler`) {
		t.Errorf("nil handler: %v", err)
	}
	s, err = NewServer(testURL, WithMiddleware(func(Handler) Handler { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Handle("m", echo); err == nil || !strings.Contains(err.Error(), "middleware 1 returned a nil handler") {
		t.Errorf("middleware that returns none: %v", err)
	}
	for want, h := range map[string]Handler{
		"internal: amqpx.Chain: the handler is nil (did not run)":  Chain(nil),
		"internal: amqpx.Chain: middleware 2 is nil (did not run)": Chain(echo, Timeout(time.Second), nil),
	} {
		_, err := h(t.Context(), &Request{})
		wantSame(t, "error", err.Error(), want)
	}
}

func TestWhatWasNeverMadeSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		for _, c := range []*Client{nil, new(Client)} {
			_, called := c.Call(ctx, "m", nil)
			_, went := c.Go(ctx, "m", nil).Wait()
			_, listed := c.Servers(ctx)
			_, pinged := c.Ping(ctx)
			_, counted := c.Consumers(ctx)
			for what, err := range map[string]error{
				"Call": called, "Go": went, "Servers": listed, "Ping": pinged, "Consumers": counted,
				"WaitReady": c.WaitReady(ctx), "Close": c.Close(ctx), "Status": misused(c.Status().Err),
			} {
				wantMistake(t, "Client."+what, err, errNoClient)
			}
			wantSame(t, "watched", (<-c.Watch(ctx)).State, StateClosed)
			wantSame(t, "stats", c.Stats(), ClientStats{})
		}
		for _, s := range []*Server{nil, new(Server)} {
			_, pinged := s.Ping(ctx)
			for what, err := range map[string]error{
				"Handle": s.Handle("m", echo), "Serve": s.Serve(ctx), "Ping": pinged, "WaitReady": s.WaitReady(ctx), "Status": misused(s.Status().Err),
			} {
				wantMistake(t, "Server."+what, err, errNoServer)
			}
			s.Close()
			wantSame(t, "watched", (<-s.Watch(ctx)).State, StateClosed)
			wantSame(t, "stats", s.Stats(), ServerStats{})
		}
		f := new(Future)
		<-f.Done()
		_, err := f.Wait()
		wantMistake(t, "Future.Wait", err, errNoFuture)
	})
}

// wantMistake checks err for the given mistake, CodeInvalidArgument and DidNotRun.
func wantMistake(t *testing.T, what string, err, mistake error) {
	t.Helper()
	if !errors.Is(err, mistake) || CodeOf(err) != CodeInvalidArgument || OutcomeOf(err) != DidNotRun {
		t.Errorf("%s: %v, want %v", what, err, mistake)
	}
}

func TestNilContextsAndOptionsOfCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		var none context.Context
		c, s := r.client, r.server
		_, called := c.Call(none, "m", nil)
		_, went := c.Go(none, "m", nil).Wait()
		_, listed := c.Servers(none)
		_, pinged := c.Ping(none)
		_, counted := c.Consumers(none)
		_, served := s.Ping(none)
		for what, err := range map[string]error{
			"Call": called, "Go": went, "Servers": listed, "Ping": pinged, "Consumers": counted, "WaitReady": c.WaitReady(none),
			"Close": c.Close(none), "Server.Ping": served, "Server.WaitReady": s.WaitReady(none), "Serve": s.Serve(none),
		} {
			wantMistake(t, what, err, errNilContext)
		}
		_, called = c.Call(t.Context(), "m", nil, Idempotent(), nil)
		_, went = c.Go(t.Context(), "m", nil, nil).Wait()
		wantMistake(t, "Call", called, errNilOption)
		wantMistake(t, "Go", went, errNilOption)
		wantResponse(t, <-goCall(c, within(t, time.Minute), "m", []byte("x")), "x")
	})
}

func TestServerThatHasEndedSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, s := serve(t, handlers{"m": echo})
		s.stop()
		drained(t, s, nil, 0)
		err := s.WaitReady(t.Context())
		wantIs(t, err, ErrClosed)
		wantSame(t, "text", err.Error(), "server closed")
	})
}

func TestServerWithoutMethodsWarns(t *testing.T) {
	t.Parallel()
	for _, methods := range []handlers{{}, {"m": echo}} {
		synctest.Test(t, func(t *testing.T) {
			log, logs := observed(zap.WarnLevel)
			serve(t, methods, WithLogger(log))
			wantSame(t, "warned", logs.FilterMessage("server has no methods: it refuses every request").Len(), 1-len(methods))
		})
	}
}
