package amqpx

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

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
		"another queue's lane":     {named("q.batch"), `names that end with ".batch"`},
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
			_, listed := c.Fleet(ctx)
			_, pinged := c.Ping(ctx)
			_, counted := c.Consumers(ctx)
			for what, err := range map[string]error{
				"Call": called, "Go": went, "Fleet": listed, "Ping": pinged, "Consumers": counted,
				"WaitReady": c.WaitReady(ctx), "Close": c.Close(ctx), "Status": misused(c.Status().Err),
			} {
				wantMistake(t, "Client."+what, err, errNoClient)
			}
			updates, stop := c.Watch()
			wantSame(t, "watched", (<-updates).State, StateClosed)
			stop()
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
			updates, stop := s.Watch()
			wantSame(t, "watched", (<-updates).State, StateClosed)
			stop()
			wantSame(t, "stats", s.Stats(), ServerStats{})
		}
		f := new(Future)
		<-f.Done()
		_, err := f.Wait()
		wantMistake(t, "Future.Wait", err, errNoFuture)
	})
}

// wantMistake checks the error of a mistake.
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
		_, listed := c.Fleet(none)
		_, pinged := c.Ping(none)
		_, counted := c.Consumers(none)
		_, served := s.Ping(none)
		for what, err := range map[string]error{
			"Call": called, "Go": went, "Fleet": listed, "Ping": pinged, "Consumers": counted, "WaitReady": c.WaitReady(none),
			"Close": c.Close(none), "Server.Ping": served, "Server.WaitReady": s.WaitReady(none), "Serve": s.Serve(none),
		} {
			wantMistake(t, what, err, errNilContext)
		}
		_, called = c.Call(t.Context(), "m", nil, Idempotent(), nil)
		_, went = c.Go(t.Context(), "m", nil, nil).Wait()
		wantMistake(t, "Call", called, errNilOption)
		wantMistake(t, "Go", went, errNilOption)
		wantAnswer(t, <-goCall(c, within(t, time.Minute), "m", []byte("x")), "x")
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
