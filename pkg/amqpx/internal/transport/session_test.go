package transport_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// openOn opens a session on a broker, without a supervisor.
func openOn(t *testing.T, b *brokertest.Broker, shared bool) (*transport.Session, error) {
	t.Helper()
	return transport.OpenSession(t.Context(), &transport.Config{Name: "amqpx", Role: "test", Shared: shared, Dialer: b}, targetOf(t, testURL))
}

// mustOpen opens a session and closes the session at the end of the test.
func mustOpen(t *testing.T, b *brokertest.Broker) *transport.Session {
	t.Helper()
	s, err := openOn(t, b, false)
	if err != nil {
		t.Fatal(err)
	}
	s.Generation = 1
	t.Cleanup(s.Close)
	return s
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
				b := brokertest.New()
				s, err := openOn(t, b, c.shared)
				if err != nil {
					t.Fatal(err)
				}
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
					b := brokertest.New()
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
					_, err := openOn(t, b, shared)
					wantIs(t, err, brokertest.ErrCut)
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
	for _, c := range []struct {
		name string
		end  func(*brokertest.Broker, *transport.Session)
		want error
	}{
		{"publishing connection", func(_ *brokertest.Broker, s *transport.Session) { fakeOf(s.Pub).End(exception) }, exception},
		{"consuming connection", func(_ *brokertest.Broker, s *transport.Session) { fakeOf(s.Sub).End(exception) }, exception},
		{"publishing connection without a reason", func(_ *brokertest.Broker, s *transport.Session) { fakeOf(s.Pub).End(nil) }, transport.ErrConnectionEnded},
		{"consuming connection without a reason", func(_ *brokertest.Broker, s *transport.Session) { fakeOf(s.Sub).End(nil) }, transport.ErrConnectionEnded},
		{"exception on the publishing channel", func(_ *brokertest.Broker, s *transport.Session) { channelOf(s.PubCh).Except(exception) }, exception},
		{"exception on the consuming channel", func(_ *brokertest.Broker, s *transport.Session) { channelOf(s.SubCh).Except(exception) }, exception},
		{"queue of the consumer deleted", func(b *brokertest.Broker, _ *transport.Session) { b.Remove(b.Queues["q"]) }, transport.ErrConsumerCanceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				s := mustOpen(t, b)
				b.With(func(b *brokertest.Broker) { _ = b.Declare("q", true, nil) })
				s.Watch(func(amqp.Blocking) {})
				if _, err := s.SubCh.Consume("q", "tag", false, false, false, false, nil); err != nil {
					t.Fatal(err)
				}
				settle()
				if s.Ended() {
					t.Fatalf("ended early: %v", s.Cause)
				}
				b.With(func(b *brokertest.Broker) { c.end(b, s) })
				<-s.Done
				wantIs(t, s.Cause, c.want)
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
	drained := &amqp.Error{Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED - Node was put into maintenance mode"}
	stopped := &amqp.Error{Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"}
	for name, c := range map[string]struct {
		reason *amqp.Error
		second time.Duration // the time until the node closes the second connection
		took   time.Duration // the time until the session is closed
	}{
		"soon":          {drained, transport.MaintenanceWait / 2, transport.MaintenanceWait / 2},
		"late":          {drained, time.Hour, transport.MaintenanceWait},
		"not a drain":   {stopped, time.Hour, 0},
		"no connection": {nil, time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				s := mustOpen(t, b)
				s.Watch(func(amqp.Blocking) {})
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
		s := mustOpen(t, brokertest.New())
		s.Watch(func(amqp.Blocking) {})
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
		s := mustOpen(t, brokertest.New())
		s.Watch(func(amqp.Blocking) {})
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
		b := brokertest.New()
		s := mustOpen(t, b)
		told := make(chan amqp.Blocking, 4)
		s.Watch(func(a amqp.Blocking) { told <- a })
		fakeOf(s.Pub).Published = true
		b.SetAlarm("low on disk")
		wantSame(t, "alarm", <-told, amqp.Blocking{Active: true, Reason: "low on disk"})
		opening := s.Flow.Unblocked()
		if opening == nil {
			t.Fatal("the gate is open during an alarm")
		}
		b.SetAlarm("")
		wantSame(t, "end of the alarm", <-told, amqp.Blocking{})
		<-opening
		if s.Flow.Unblocked() != nil {
			t.Error("the gate is shut after the alarm")
		}
	})
}

func TestGateSetTwice(t *testing.T) {
	t.Parallel()
	var g transport.Flow
	g.Set(false)
	g.Set(true)
	first := g.Unblocked()
	g.Set(true)
	if g.Unblocked() != first {
		t.Error("who waits would miss the opening")
	}
	g.Set(false)
	g.Set(false)
	<-first
}

func TestSessionOpenedTooLateIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnCall = func(op, _ string) error {
			if op == "confirm" {
				return brokertest.ErrHang
			}
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := transport.OpenSession(ctx, &transport.Config{Role: "test", Dialer: b}, targetOf(t, testURL))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		wantSame(t, "open connections", b.OpenLinks(), 0)
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
			const heartbeat = 10 * time.Second
			b := brokertest.New()
			s, err := openOn(t, b, shared)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			s.Watch(func(amqp.Blocking) {})
			s.Probe(heartbeat)
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
			wantIs(t, s.Cause, transport.ErrUnresponsive)
		})
	}
}

// RabbitMQ does not read from a connection while a queue without a majority takes no message:
// the connection for publishing then counts as slow, not as dead, as its heartbeats show. A
// connection without any data counts as dead, and so does a connection that never answers.
func TestPublishingConnectionThatIsSlow(t *testing.T) {
	t.Parallel()
	const heartbeat = 10 * time.Second
	for name, c := range map[string]struct {
		mute  bool          // no heartbeats arrive
		after time.Duration // the time until the broker answers again; 0: never
		lasts time.Duration // the longest life of the session; 0: it does not end
	}{
		"and answers later": {after: 80 * time.Second},
		"and mute":          {mute: true, lasts: 2 * heartbeat},
		"for ever":          {lasts: 95 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				s := mustOpen(t, b)
				s.Watch(func(amqp.Blocking) {})
				reads := make(chan struct{})
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
				b.Mute.Store(c.mute)
				s.Probe(heartbeat)
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
				wantIs(t, s.Cause, transport.ErrUnresponsive)
				if took := time.Since(begun); took < heartbeat || took > c.lasts {
					t.Errorf("given up after %v, want at most %v", took, c.lasts)
				}
			})
		})
	}
}

// A broker that blocks publishing does not read, so no answer is required, whether the alarm
// came before or after the probe.
func TestBrokerThatBlocksPublishingNeedNotAnswer(t *testing.T) {
	t.Parallel()
	for _, before := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			const heartbeat = 10 * time.Second
			b := brokertest.New()
			s, err := openOn(t, b, true)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			s.Watch(func(amqp.Blocking) {})
			deafen(b)
			s.Flow.Set(before)
			s.Probe(heartbeat)
			pass(heartbeat)
			s.Flow.Set(true)
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
		s, err := openOn(t, brokertest.New(), true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		var used transport.Channel
		err = transport.WithTempChannel(s.Sub, func(ch transport.Channel) error {
			used = ch
			return want
		})
		wantSame(t, "error", err, want)
		wantSame(t, "closed", used.IsClosed(), true)
	}
}
