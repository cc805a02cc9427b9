package transport_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// connect opens a session, which is closed at the end of the test and has no successor.
func (w *watched) connect(t *testing.T) (*transport.Session, error) {
	t.Helper()
	s, err := transport.NewSupervisor(w.cfg).Connect(t.Context())
	if err == nil {
		t.Cleanup(s.Close)
	}
	return s, err
}

// open opens a session on a new broker, with a connection for each direction or a shared one.
func open(t *testing.T, shared bool) (*brokertest.Broker, *transport.Session) {
	t.Helper()
	w := newWatched(t, testURL)
	w.cfg.Shared = shared
	s, err := w.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	return w.broker, s
}

// startAlarm makes the broker block the first connection, which is a session's for publishing.
func startAlarm(b *brokertest.Broker) {
	b.With(func(b *brokertest.Broker) { b.Links[0].Published = true })
	b.SetAlarm("low on disk")
}

func TestSessionHasAConnectionForEachDirection(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		shared bool
		want   string
	}{
		{"own", false, "amqpx test publish, amqpx test consume"},
		{"shared", true, "amqpx test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := open(t, c.shared)
				var names []string
				for _, l := range b.Links {
					names = append(names, l.Name)
				}
				wantSame(t, "connections", strings.Join(names, ", "), c.want)
				wantSame(t, "one channel for both", s.PubCh == s.SubCh, c.shared)
				s.Close()
				wantSame(t, "connections after close", b.OpenLinks(), 0)
			})
		})
	}
}

func TestSessionThatFailsToOpenLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"dial 1", "dial 2", "channel", "confirm"} {
		for _, shared := range []bool{false, true} {
			t.Run(op, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					if op == "dial 2" && shared {
						return // there is only the first connection
					}
					w := newWatched(t, testURL)
					w.cfg.Shared = shared
					b := w.broker
					b.OnDial = func(context.Context, string, string) error {
						if op == "dial "+string(rune('0'+len(b.Dials))) {
							return brokertest.ErrCut
						}
						return nil
					}
					b.OnCall = func(called, _ string) error {
						if called == op {
							return brokertest.ErrCut
						}
						return nil
					}
					_, err := w.connect(t)
					transport.WantIs(t, err, brokertest.ErrCut)
					settle()
					wantSame(t, "open connections", b.OpenLinks(), 0)
				})
			})
		}
	}
}

func TestSessionEndsWhenAnyPartOfItEnds(t *testing.T) {
	t.Parallel()
	exception := &amqp.Error{Code: amqp.AccessRefused, Reason: "exception"}
	refused := func(t *testing.T, cause error) {
		t.Helper()
		transport.WantIs(t, cause, exception)
	}
	lost := func(t *testing.T, cause error) {
		t.Helper()
		wantKind(t, cause, transport.FaultConnectionLost)
	}
	canceled := func(t *testing.T, cause error) {
		t.Helper()
		wantKind(t, cause, transport.FaultConsumerCanceled)
	}
	for _, c := range []struct {
		name string
		end  func(*brokertest.Broker, *transport.Session)
		want func(t *testing.T, cause error)
	}{
		{"publishing connection", func(_ *brokertest.Broker, s *transport.Session) { fakeOf(s.Pub).End(exception) }, refused},
		{"consuming connection", func(_ *brokertest.Broker, s *transport.Session) { fakeOf(s.Sub).End(exception) }, refused},
		{"publishing connection without a reason", func(_ *brokertest.Broker, s *transport.Session) { fakeOf(s.Pub).End(nil) }, lost},
		{"consuming connection without a reason", func(_ *brokertest.Broker, s *transport.Session) { fakeOf(s.Sub).End(nil) }, lost},
		{"exception on the publishing channel", func(_ *brokertest.Broker, s *transport.Session) { channelOf(s.PubCh).Except(exception) }, refused},
		{"exception on the consuming channel", func(_ *brokertest.Broker, s *transport.Session) { channelOf(s.SubCh).Except(exception) }, refused},
		{"queue of the consumer deleted", func(b *brokertest.Broker, _ *transport.Session) { b.Remove(b.Queues["q"]) }, canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := open(t, false)
				b.With(func(b *brokertest.Broker) { _ = b.Declare("q", true, nil) })
				if _, err := s.SubCh.Consume("q", "tag", false, false, false, false, nil); err != nil {
					t.Fatal(err)
				}
				settle()
				if s.Ended() {
					t.Fatalf("ended early: %v", s.Cause)
				}
				b.With(func(b *brokertest.Broker) { c.end(b, s) })
				<-s.Done
				c.want(t, s.Cause)
				s.Close()
				wantSame(t, "open connections", b.OpenLinks(), 0)
				if fakeOf(s.Pub).Reason == nil && fakeOf(s.Sub).Reason == nil {
					t.Error("a failed session was closed politely, which waits for a dead peer")
				}
			})
		})
	}
}

// RabbitMQ 3 fails to drain a node when a connection on the node's list ends before its turn,
// so the session gives the node a moment to close the second connection.
func TestSessionLeavesItToANodeUnderMaintenanceToCloseBoth(t *testing.T) {
	t.Parallel()
	const maintenanceWait = time.Second
	drained := &amqp.Error{Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED - Node was put into maintenance mode"}
	stopped := &amqp.Error{Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"}
	for name, c := range map[string]struct {
		reason *amqp.Error
		second time.Duration // the time until the node closes the second connection
		took   time.Duration // the time until the session is closed
	}{
		"soon":          {drained, maintenanceWait / 2, maintenanceWait / 2},
		"late":          {drained, time.Hour, maintenanceWait},
		"not a drain":   {stopped, time.Hour, 0},
		"no connection": {nil, time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := open(t, false)
				second := time.AfterFunc(c.second, func() { b.With(func(*brokertest.Broker) { fakeOf(s.Sub).End(c.reason) }) })
				defer second.Stop()
				b.With(func(*brokertest.Broker) { fakeOf(s.Pub).End(c.reason) })
				<-s.Done
				begun := time.Now()
				s.Close()
				wantSame(t, "time until the session was closed", time.Since(begun), c.took)
				wantSame(t, "open connections", b.OpenLinks(), 0)
			})
		})
	}
}

// wantKind checks the kind of fault that ended a session.
func wantKind(t *testing.T, cause error, want transport.FaultKind) {
	t.Helper()
	wantSame(t, "kind of fault", transport.FaultOf(transport.Target{}, cause), want)
}

// fakeOf and channelOf return the fake behind the interface.
func fakeOf(l transport.Conn) *brokertest.Conn {
	f, _ := l.(*brokertest.Conn)
	return f
}

func channelOf(c transport.Channel) *brokertest.Channel {
	f, _ := c.(*brokertest.Channel)
	return f
}

func TestSessionThatWeEndHasNoCause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, s := open(t, false)
		s.Close()
		s.Close()
		if fakeOf(s.Pub).Reason != nil || fakeOf(s.Sub).Reason != nil {
			t.Error("a healthy session was cut")
		}
		if s.Cause != nil {
			t.Errorf("cause %v", s.Cause)
		}
		s.Fail(brokertest.ErrCut) // too late for the cause
		if s.Cause != nil {
			t.Errorf("cause %v", s.Cause)
		}
	})
}

func TestSessionAwaitsItsGoroutines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, s := open(t, false)
		finished := false
		s.Run(func() {
			<-s.Done
			timer := time.NewTimer(time.Second)
			<-timer.C
			finished = true
		})
		s.Fail(brokertest.ErrCut)
		s.Close()
		if !finished {
			t.Error("close returned before a goroutine of the session ended")
		}
	})
}

func TestSessionFollowsTheAlarm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		s, err := w.connect(t)
		if err != nil {
			t.Fatal(err)
		}
		startAlarm(w.broker)
		wantSame(t, "alarm", <-w.blockings, amqp.Blocking{Active: true, Reason: "low on disk"})
		opening := s.Flow.Unblocked()
		if opening == nil {
			t.Fatal("the gate is open during an alarm")
		}
		w.broker.SetAlarm("")
		wantSame(t, "end of the alarm", <-w.blockings, amqp.Blocking{})
		<-opening
		if s.Flow.Unblocked() != nil {
			t.Error("the gate is shut after the alarm")
		}
	})
}

func TestSessionOpenedTooLateIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, testURL)
		w.broker.OnCall = func(op, _ string) error {
			if op == "confirm" {
				return brokertest.ErrHang
			}
			return nil
		}
		_, err := w.connect(t)
		transport.WantTexts(t, err, "open channel: no answer in time")
		wantSame(t, "open connections", w.broker.OpenLinks(), 0)
	})
}

// deafen makes the fake broker stop answering on all channels.
func deafen(b *brokertest.Broker) {
	b.With(func(b *brokertest.Broker) {
		b.OnCall = func(op, _ string) error {
			if op == "sync" {
				return brokertest.ErrHang
			}
			return nil
		}
	})
}

func TestDeafBrokerIsGivenUp(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b, s := open(t, shared)
			pass(10 * heartbeat)
			if s.Ended() {
				t.Fatalf("ended while the broker answers: %v", s.Cause)
			}
			deafen(b)
			begun := time.Now()
			<-s.Done
			if took := time.Since(begun); took < heartbeat || took > 2*heartbeat {
				t.Errorf("given up after %v", took)
			}
			wantKind(t, s.Cause, transport.FaultUnresponsive)
		})
	}
}

// RabbitMQ does not read from a connection while a queue without a majority takes no message:
// the connection for publishing then counts as slow, not as dead, as its heartbeats show. A
// connection without any data counts as dead, and so does a connection that never answers.
func TestPublishingConnectionThatIsSlow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mute  bool          // no heartbeats arrive
		after time.Duration // the time until the broker answers again; 0: never
		lasts time.Duration // the longest life of the session; 0: it does not end
	}{
		"and a response later": {after: 80 * time.Second},
		"and mute":             {mute: true, lasts: 2 * heartbeat},
		"for ever":             {lasts: 95 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := open(t, false)
				reads := make(chan struct{})
				b.With(func(b *brokertest.Broker) {
					b.OnCall = func(op, link string) error {
						if op == "sync" && strings.HasSuffix(link, "publish") {
							select {
							case <-reads:
							case <-s.Done:
								return brokertest.ErrCut
							}
						}
						return nil
					}
				})
				b.Mute.Store(c.mute)
				begun := time.Now()
				if c.after > 0 {
					pass(c.after)
					close(reads)
					pass(time.Hour)
					if s.Ended() {
						t.Fatalf("ended: %v", s.Cause)
					}
					return
				}
				<-s.Done
				wantKind(t, s.Cause, transport.FaultUnresponsive)
				if took := time.Since(begun); took < heartbeat || took > c.lasts {
					t.Errorf("given up after %v, want at most %v", took, c.lasts)
				}
			})
		})
	}
}

// A broker that blocks publishing does not read, so no response is required, whether the alarm
// came before or after the probe.
func TestBrokerThatBlocksPublishingNeedNotAnswer(t *testing.T) {
	t.Parallel()
	for _, before := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWatched(t, testURL)
			w.onSetup = func(*transport.Session) error {
				if before {
					startAlarm(w.broker)
				}
				return nil
			}
			deafen(w.broker)
			s, err := w.connect(t)
			if err != nil {
				t.Fatal(err)
			}
			pass(heartbeat)
			startAlarm(w.broker)
			pass(time.Hour)
			if s.Ended() {
				t.Errorf("ended: %v", s.Cause)
			}
		})
	}
}

// A channel of its own is closed, whether its user succeeds or not.
func TestTempChannelIsClosed(t *testing.T) {
	t.Parallel()
	for _, want := range []error{nil, brokertest.ErrCut} {
		_, s := open(t, true)
		var used transport.Channel
		err := transport.WithTempChannel(s.Sub, func(ch transport.Channel) error {
			used = ch
			return want
		})
		wantSame(t, "error", err, want)
		wantSame(t, "closed", used.IsClosed(), true)
	}
}
