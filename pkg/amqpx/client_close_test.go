package amqpx

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

func TestCloseSettlesEveryCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"m": slow}).WaitReady)
		c := startClient(t, b)
		var calls []<-chan result
		for range 5 {
			calls = append(calls, goCall(c, within(t, time.Hour), "m", nil))
		}
		settle()
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, done := range calls {
			got := <-done
			wantIs(t, got.err, ErrClosed)
			wantSame(t, "code", CodeOf(got.err), CodeUnavailable)
			wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
		}
		wantSame(t, "pending", c.Stats().InFlight, 0)
		wantSame(t, "state", c.Status().State, StateClosed)
		_, err := c.Call(t.Context(), "m", nil)
		wantIs(t, err, ErrClosed)
		wantIs(t, c.WaitReady(t.Context()), ErrClosed)
	})
}

func TestCloseDeletesTheReplyQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, c.WaitReady)
		wantSame(t, "queues", len(b.QueueNames()), 1)
		for range 2 {
			if err := c.Close(t.Context()); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		wantSame(t, "queues", len(b.QueueNames()), 0)
		wantSame(t, "connections", b.OpenLinks(), 0)
		wantSame(t, "reconnects", c.Stats().Reconnects, 0)
	})
}

func TestCloseAtAnyMoment(t *testing.T) {
	t.Parallel()
	hangDial := func(ctx context.Context, _, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	}
	hangOn := func(op string) func(string, string) error {
		return func(called, _ string) error {
			if called == op {
				return brokertest.ErrHang
			}
			return nil
		}
	}
	for _, c := range []struct {
		name    string
		onDial  func(context.Context, string, string) error
		onCall  func(string, string) error
		takes   time.Duration
		unready bool
	}{
		{name: "ready"},
		{name: "during the backoff", onDial: refusing(1<<30, amqp.ErrCredentials), unready: true},
		{name: "during a dial", onDial: hangDial, unready: true},
		{name: "during the set-up", onCall: hangOn("declare"), unready: true},
		{name: "broker does not answer cancel", onCall: hangOn("cancel"), takes: transport.CloseTimeout},
		{name: "broker does not answer delete", onCall: hangOn("delete"), takes: transport.CloseTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				b.OnDial, b.OnCall = c.onDial, c.onCall
				client := startClient(t, b)
				pass(time.Second)
				wantSame(t, "ready", client.Status().Ready(), !c.unready)
				call := goCall(client, t.Context(), "m", nil, WaitForServer())
				settle()
				begun := time.Now()
				if err := client.Close(t.Context()); err != nil {
					t.Errorf("Close: %v", err)
				}
				wantSame(t, "took", time.Since(begun), c.takes)
				wantIs(t, (<-call).err, ErrClosed)
				wantSame(t, "connections", b.OpenLinks(), 0)
			})
		})
	}
}

func TestCloseEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnCall = func(op, _ string) error {
			if op == "cancel" {
				return brokertest.ErrHang
			}
			return nil
		}
		c := startClient(t, b)
		ready(t, c.WaitReady)
		begun := time.Now()
		err := c.Close(within(t, 100*time.Millisecond))
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v", err)
		}
		wantSame(t, "took", time.Since(begun), 100*time.Millisecond)
		settle()
		wantSame(t, "connections", b.OpenLinks(), 0)
	})
}

func TestCloseFromManyGoroutines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startClient(t, brokertest.New())
		ready(t, c.WaitReady)
		errs := make(chan error)
		for range 5 {
			go func() { errs <- c.Close(t.Context()) }()
		}
		for range 5 {
			if err := <-errs; err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
}

func TestWatchShowsTheLifeOfAClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		updates := c.Watch(t.Context())
		settle()
		wantSame(t, "state", (<-updates).State, StateReady)
		b.With(func(b *brokertest.Broker) { b.OnDial = refusing(1<<30, brokertest.ErrCut) })
		b.Kick(nil)
		settle()
		wantSame(t, "state", (<-updates).State, StateReconnecting)
		_ = c.Close(t.Context())
		wantSame(t, "state", (<-updates).State, StateClosed)
		if st, ok := <-updates; ok {
			t.Errorf("%v after the end", st.State)
		}
	})
}
