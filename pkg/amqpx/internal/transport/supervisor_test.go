package transport_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

func TestSupervisorDialsUntilItIsReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.broker.OnDial = refusing(100, brokertest.ErrCut)
		w.run(t)
		w.await(t, true)
		wantSame(t, "dials", len(w.dialed), 101)
		bound := 100 * time.Millisecond
		for i := range 100 {
			if gap := w.dialed[i+1] - w.dialed[i]; gap > bound {
				t.Errorf("wait %d was %v, more than %v", i, gap, bound)
			}
			bound = min(2*bound, time.Second)
		}
		if took := w.dialed[100]; took < 30*time.Second {
			t.Errorf("100 waits took only %v", took)
		}
	})
}

func TestSupervisorTriesEveryURLInAShuffledOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, "amqp://a,amqp://b,amqp://c")
		w.broker.OnDial = refusing(3*60, brokertest.ErrCut)
		w.run(t)
		w.await(t, true)
		orders := map[string]int{}
		for round := range slices.Chunk(w.broker.Dials[:3*60], 3) {
			orders[strings.Join(round, " ")]++
			slices.Sort(round)
			wantSame(t, "URLs of one round", strings.Join(round, " "), "amqp://a amqp://b amqp://c")
		}
		wantSame(t, "different orders", len(orders), 6)
		if first := w.dialed[2] - w.dialed[0]; first != 0 {
			t.Errorf("waited %v between the nodes of one round", first)
		}
	})
}

func TestSupervisorNamesEveryNodesFault(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, "amqp://app:secret@a,amqp://app:secret@b")
		w.broker.OnDial = func(_ context.Context, url, _ string) error {
			if strings.HasSuffix(url, "a") {
				return amqp.ErrCredentials
			}
			return brokertest.ErrCut
		}
		w.run(t)
		pass(time.Second)
		transport.WantTexts(t, w.err, "broker a:5672: wrong user name or password", "broker b:5672: no connection")
		if strings.Contains(w.err.Error(), "secret") {
			t.Errorf("the password is in %q", w.err)
		}
	})
}

func TestSupervisorStartsTheBackoffAnewOnlyAfterASettledConnection(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		stays  time.Duration
		resets bool
	}{
		{"link that dies at once", time.Second, false},
		{"link that stayed", transport.SettledAfter, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWatched(t, testURL)
				w.run(t)
				var longest time.Duration
				for range 40 {
					w.await(t, true)
					pass(c.stays)
					lost := time.Now()
					w.broker.Kick(nil)
					w.await(t, false)
					w.await(t, true)
					longest = max(longest, time.Since(lost))
				}
				wantSame(t, "short waits only", longest <= w.cfg.BackoffMin, c.resets)
			})
		})
	}
}

// A lasting fault is logged at once, and again every 30 s.
func TestSupervisorRetriesAnOperatorsFaultSlowlyAndSaysItNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.broker.OnDial = refusing(1<<30, amqp.ErrCredentials)
		w.run(t)
		pass(time.Minute + time.Second)
		wantSame(t, "dials", len(w.dialed), 7)
		wantSame(t, "errors logged", len(w.logged("error")), 3)
		wantSame(t, "warnings logged", len(w.logged("warn")), 0)
		line := w.logs.FilterLevelExact(zap.ErrorLevel).All()[2].ContextMap()
		wantSame(t, "attempts in the third line", line["attempts"], any(int64(7)))
		wantSame(t, "fault in the third line", line["fault"], any("credentials"))
		wantSame(t, "fault", w.kind, transport.FaultCredentials)
		transport.WantTexts(t, w.err, `wrong user name or password for user "app"`)
	})
}

func TestSupervisorRetriesQuicklyWhileAnyNodeMayComeBack(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"amqp://wrong,amqp://down", "amqp://down,amqp://wrong"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWatched(t, order)
				w.cfg.BackoffMax = time.Second
				w.broker.OnDial = func(_ context.Context, url, _ string) error {
					if strings.Contains(url, "wrong") {
						return amqp.ErrCredentials
					}
					return brokertest.ErrCut
				}
				w.run(t)
				pass(time.Minute)
				if n := len(w.dialed) / 2; n < 80 {
					t.Errorf("%d rounds in a minute: want about 120", n)
				}
				wantSame(t, "errors logged", len(w.logged("error")), 2)
			})
		})
	}
}

func TestSupervisorWarnsOnceOfTheSameFault(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, "amqp://a,amqp://b")
		w.broker.OnDial = refusing(40, brokertest.ErrCut)
		w.run(t)
		w.await(t, true)
		wantSame(t, "warnings", len(w.logged("warn")), 1)
		wantSame(t, "at debug level", len(w.logged("debug")), 19)
		w.broker.Kick(nil)
		settle()
		wantSame(t, "warnings after a new fault", len(w.logged("warn")), 2)
	})
}

func TestSupervisorSetUpIsPartOfTheAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.onSetup = func(s *transport.Session) error {
			if w.setups < 4 {
				return transport.WithTempChannel(s.Sub, func(ch transport.Channel) error {
					_, err := ch.QueueDeclarePassive("missing", true, false, false, false, nil)
					return err
				})
			}
			wantSame(t, "open connections during the set-up", w.broker.OpenLinks(), 1)
			return nil
		}
		w.run(t)
		w.await(t, true)
		wantSame(t, "dials", len(w.dialed), 4)
		wantSame(t, "generation", w.generation, 1)
		wantSame(t, "open connections", w.broker.OpenLinks(), 1)
	})
}

func TestSupervisorCutsASetUpThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.onSetup = func(s *transport.Session) error {
			if w.setups > 1 {
				return nil
			}
			w.broker.With(func(b *brokertest.Broker) { b.OnCall = func(string, string) error { return brokertest.ErrHang } })
			defer w.broker.With(func(b *brokertest.Broker) { b.OnCall = nil })
			return s.SubCh.Qos(1, 0, false)
		}
		w.run(t)
		w.await(t, true)
		if got := w.dialed[1]; got < dialTimeout || got > dialTimeout+backoffMin {
			t.Errorf("second dial after %v", got)
		}
		warning := w.logs.FilterMessage("connection lost, reconnecting").All()[0]
		if text, _ := warning.ContextMap()["error"].(string); !strings.Contains(text, "no answer in time") {
			t.Errorf("logged %q", text)
		}
	})
}

func TestSupervisorBoundsADialThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.broker.OnDial = func(ctx context.Context, _, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		}
		w.run(t)
		pass(21 * time.Second)
		transport.WantTexts(t, w.err, "no answer in time")
		if n := len(w.dialed); n < 4 || n > 5 {
			t.Errorf("%d dials in 21 s", n)
		}
	})
}

func TestSupervisorStops(t *testing.T) {
	t.Parallel()
	hang := func(ctx context.Context, _, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for _, c := range []struct {
		name   string
		onDial func(context.Context, string, string) error
		after  time.Duration
	}{
		{"while ready", nil, time.Second},
		{"during the backoff", refusing(1<<30, amqp.ErrCredentials), time.Second},
		{"during a dial", hang, time.Second},
		{"at once", nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWatched(t, testURL)
				w.broker.OnDial = c.onDial
				w.run(t)
				if c.after > 0 {
					pass(c.after)
				}
				stopped := time.Now()
				w.stop()
				<-w.ended
				wantSame(t, "took", time.Since(stopped), 0)
				wantSame(t, "closed", w.closed, true)
				wantSame(t, "open connections", w.broker.OpenLinks(), 0)
			})
		})
	}
}

func TestSupervisorStopsDuringASetUpThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.onSetup = func(s *transport.Session) error {
			w.broker.With(func(b *brokertest.Broker) { b.OnCall = func(string, string) error { return brokertest.ErrHang } })
			return s.SubCh.Qos(1, 0, false)
		}
		w.run(t)
		pass(time.Second)
		stopped := time.Now()
		w.stop()
		<-w.ended
		wantSame(t, "took", time.Since(stopped), 0)
		wantSame(t, "open connections", w.broker.OpenLinks(), 0)
	})
}

// After the end of a ready connection the supervisor dials at once: only a fault of the set-up
// waits for an operator.
func TestSupervisorDialsAtOnceAfterTheEndOfAReadyConnection(t *testing.T) {
	t.Parallel()
	for _, reason := range []*amqp.Error{
		{Code: amqp.PreconditionFailed, Server: true, Reason: "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out"},
		{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED - write access to exchange 'amq.default' refused"},
		{Code: amqp.NotImplemented, Server: true, Reason: "NOT_IMPLEMENTED"},
	} {
		t.Run(reason.Reason, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWatched(t, testURL)
				w.run(t)
				w.await(t, true)
				pass(transport.SettledAfter)
				lost := time.Now()
				w.broker.Kick(reason)
				w.await(t, false)
				w.await(t, true)
				if took := time.Since(lost); took > backoffMin {
					t.Errorf("the connection was back after %v", took)
				}
				wantSame(t, "errors in the log", len(w.logged("error")), 0)
				wantSame(t, "warnings in the log", len(w.logged("warn")), 1)
			})
		})
	}
}

// Two alternating faults are each logged as often as a single fault, and a connection that is
// ready only for moments does not make them new.
func TestSupervisorSaysFaultsInTurnOnceInAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		var dials atomic.Int64
		w.broker.OnDial = func(context.Context, string, string) error {
			switch dials.Add(1) % 3 {
			case 0:
				return brokertest.ErrCut
			case 1:
				return &transport.KindError{Kind: transport.FaultClosedEarly}
			}
			time.AfterFunc(100*time.Millisecond, func() { w.broker.Kick(&amqp.Error{Code: amqp.ConnectionForced, Server: true}) })
			return nil
		}
		w.run(t)
		pass(29 * time.Second)
		wantSame(t, "warnings", len(w.logged("warn")), 3)
		pass(30 * time.Second)
		wantSame(t, "warnings after a while", len(w.logged("warn")), 6)
	})
}

// An exception of the broker during the set-up does not count as a lost connection: if the
// exception recurs, the next attempts wait as for a fault for an operator.
func TestSupervisorTakesAStubbornExceptionForAnOperatorsFault(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.onSetup = func(*transport.Session) error {
			return transport.AtStep(transport.StepDeclare, "q", &amqp.Error{Code: amqp.InternalError, Server: true, Reason: "INTERNAL_ERROR"})
		}
		w.run(t)
		pass(5 * time.Second)
		attempts := func() int { return w.logs.FilterMessage("connection lost, reconnecting").Len() }
		quick := attempts()
		pass(time.Minute)
		if slow := attempts() - quick; quick < 5 || quick > 12 || slow > 7 {
			t.Errorf("%d attempts in 5 s, and %d in the minute after", quick, slow)
		}
	})
}
