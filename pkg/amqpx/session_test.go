package amqpx

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// openOn opens a session on a broker, without a supervisor.
func openOn(t *testing.T, b *fakeBroker, shared bool) (*session, error) {
	t.Helper()
	return openSession(t.Context(), &connectionConfig{name: "amqpx", role: "test", shared: shared, dialer: b}, testTarget(testURL))
}

// mustOpen opens a session and closes the session at the end of the test.
func mustOpen(t *testing.T, b *fakeBroker) *session {
	t.Helper()
	s, err := openOn(t, b, false)
	if err != nil {
		t.Fatal(err)
	}
	s.generation = 1
	t.Cleanup(s.close)
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
				b := newFakeBroker()
				s, err := openOn(t, b, c.shared)
				if err != nil {
					t.Fatal(err)
				}
				var names []string
				for _, l := range b.links {
					names = append(names, l.name)
				}
				wantSame(t, "connections", strings.Join(names, ", "), c.want)
				wantSame(t, "one channel for both", s.pubCh == s.subCh, c.shared)
				s.close()
				wantSame(t, "connections after close", b.openLinks(), 0)
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
					b := newFakeBroker()
					b.onDial = func(context.Context, string, string) error {
						if op == "dial "+string(rune('0'+len(b.dials))) {
							return errCut
						}
						return nil
					}
					b.onCall = func(called, _ string) error {
						if called == op {
							return errCut
						}
						return nil
					}
					_, err := openOn(t, b, shared)
					wantIs(t, err, errCut)
					settle()
					wantSame(t, "open connections", b.openLinks(), 0)
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
		end  func(*fakeBroker, *session)
		want error
	}{
		{"publishing connection", func(_ *fakeBroker, s *session) { fakeOf(s.pub).end(exception) }, exception},
		{"consuming connection", func(_ *fakeBroker, s *session) { fakeOf(s.sub).end(exception) }, exception},
		{"publishing connection without a reason", func(_ *fakeBroker, s *session) { fakeOf(s.pub).end(nil) }, errConnectionEnded},
		{"consuming connection without a reason", func(_ *fakeBroker, s *session) { fakeOf(s.sub).end(nil) }, errConnectionEnded},
		{"exception on the publishing channel", func(_ *fakeBroker, s *session) { channelOf(s.pubCh).except(exception) }, exception},
		{"exception on the consuming channel", func(_ *fakeBroker, s *session) { channelOf(s.subCh).except(exception) }, exception},
		{"queue of the consumer deleted", func(b *fakeBroker, _ *session) { b.remove(b.queues["q"]) }, errConsumerCanceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newFakeBroker()
				s := mustOpen(t, b)
				b.with(func(b *fakeBroker) { _ = b.declare("q", true, nil) })
				s.watch(func(amqp.Blocking) {})
				if _, err := s.subCh.Consume("q", "tag", false, false, false, false, nil); err != nil {
					t.Fatal(err)
				}
				settle()
				if s.ended() {
					t.Fatalf("ended early: %v", s.cause)
				}
				b.with(func(b *fakeBroker) { c.end(b, s) })
				<-s.done
				wantIs(t, s.cause, c.want)
				s.close()
				wantSame(t, "open connections", b.openLinks(), 0)
				if fakeOf(s.pub).reason == nil && fakeOf(s.sub).reason == nil {
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
		"soon":          {drained, maintenanceWait / 2, maintenanceWait / 2},
		"late":          {drained, time.Hour, maintenanceWait},
		"not a drain":   {stopped, time.Hour, 0},
		"no connection": {nil, time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newFakeBroker()
				s := mustOpen(t, b)
				s.watch(func(amqp.Blocking) {})
				second := time.AfterFunc(c.second, func() { b.with(func(*fakeBroker) { fakeOf(s.sub).end(c.reason) }) })
				defer second.Stop()
				b.with(func(*fakeBroker) { fakeOf(s.pub).end(c.reason) })
				<-s.done
				begun := time.Now()
				s.close()
				wantSame(t, "time until the session was closed", time.Since(begun), c.took)
				wantSame(t, "open connections", b.openLinks(), 0)
			})
		})
	}
}

// fakeOf and channelOf return the fake behind the interface.
func fakeOf(l brokerConn) *fakeLink {
	f, _ := l.(*fakeLink)
	return f
}

func channelOf(c channel) *fakeChannel {
	f, _ := c.(*fakeChannel)
	return f
}

func TestSessionThatWeEndHasNoCause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, newFakeBroker())
		s.watch(func(amqp.Blocking) {})
		s.close()
		s.close()
		if fakeOf(s.pub).reason != nil || fakeOf(s.sub).reason != nil {
			t.Error("a healthy session was cut")
		}
		if s.cause != nil {
			t.Errorf("cause %v", s.cause)
		}
		s.fail(errCut) // too late for the cause
		if s.cause != nil {
			t.Errorf("cause %v", s.cause)
		}
	})
}

func TestSessionAwaitsItsGoroutines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, newFakeBroker())
		s.watch(func(amqp.Blocking) {})
		finished := false
		s.run(func() {
			<-s.done
			timer := time.NewTimer(time.Second)
			<-timer.C
			finished = true
		})
		s.fail(errCut)
		s.close()
		if !finished {
			t.Error("close returned before a goroutine of the session ended")
		}
	})
}

func TestSessionFollowsTheAlarm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBroker()
		s := mustOpen(t, b)
		told := make(chan amqp.Blocking, 4)
		s.watch(func(a amqp.Blocking) { told <- a })
		fakeOf(s.pub).published = true
		b.setAlarm("low on disk")
		wantSame(t, "alarm", <-told, amqp.Blocking{Active: true, Reason: "low on disk"})
		opening := s.flow.unblocked()
		if opening == nil {
			t.Fatal("the gate is open during an alarm")
		}
		b.setAlarm("")
		wantSame(t, "end of the alarm", <-told, amqp.Blocking{})
		<-opening
		if s.flow.unblocked() != nil {
			t.Error("the gate is shut after the alarm")
		}
	})
}

func TestGateSetTwice(t *testing.T) {
	t.Parallel()
	var g flow
	g.set(false)
	g.set(true)
	first := g.unblocked()
	g.set(true)
	if g.unblocked() != first {
		t.Error("who waits would miss the opening")
	}
	g.set(false)
	g.set(false)
	<-first
}

func TestSessionOpenedTooLateIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBroker()
		b.onCall = func(op, _ string) error {
			if op == "confirm" {
				return errHang
			}
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := openSession(ctx, &connectionConfig{role: "test", dialer: b}, testTarget(testURL))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		wantSame(t, "open connections", b.openLinks(), 0)
	})
}


// deafen makes the fake broker stop answering on all channels.
func (b *fakeBroker) deafen() {
	b.with(func(b *fakeBroker) {
		b.onCall = func(op, _ string) error {
			if op == "sync" {
				return errHang
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
			b := newFakeBroker()
			s, err := openOn(t, b, shared)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			s.watch(func(amqp.Blocking) {})
			s.probe(heartbeat)
			pass(10 * heartbeat)
			if s.ended() {
				t.Fatalf("ended while the broker answers: %v", s.cause)
			}
			b.deafen()
			begun := time.Now()
			<-s.done
			if took := time.Since(begun); took < heartbeat || took > 2*heartbeat {
				t.Errorf("given up after %v", took)
			}
			wantIs(t, s.cause, errUnresponsive)
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
				b := newFakeBroker()
				s := mustOpen(t, b)
				s.watch(func(amqp.Blocking) {})
				reads := make(chan struct{})
				b.onCall = func(op, link string) error {
					if op == "sync" && strings.HasSuffix(link, "publish") {
						select {
						case <-reads:
						case <-s.done:
							return errCut
						}
					}
					return nil
				}
				b.mute.Store(c.mute)
				s.probe(heartbeat)
				begun := time.Now()
				if c.after > 0 {
					pass(c.after)
					close(reads)
					pass(time.Hour)
					if s.ended() {
						t.Fatalf("ended: %v", s.cause)
					}
					return
				}
				<-s.done
				wantIs(t, s.cause, errUnresponsive)
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
			b := newFakeBroker()
			s, err := openOn(t, b, true)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			s.watch(func(amqp.Blocking) {})
			b.deafen()
			s.flow.set(before)
			s.probe(heartbeat)
			pass(heartbeat)
			s.flow.set(true)
			pass(time.Hour)
			if s.ended() {
				t.Errorf("ended: %v", s.cause)
			}
		})
	}
}
