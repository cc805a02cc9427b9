package publish

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// letter is an outbound message. It writes its publish result into a diary.
type letter struct {
	id    string
	key   string
	gone  bool // canceled
	diary *diary
}

// diary records events in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines, ", ")
}

func (l *letter) BeginSend(uint64) bool { return !l.gone }
func (l *letter) Canceled() bool        { return l.gone }

func (l *letter) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	return l.key, true, amqp.Publishing{CorrelationId: l.id}
}

func (l *letter) OnResult(f Result) {
	l.diary.note("%s %s", l.id, []string{"confirmed", "refused", "unroutable", "unsent", "lost"}[f])
}

// office is a publisher with its own session and a queue "q".
type office struct {
	*diary
	broker *brokertest.Broker
	sess   *transport.Session
	outbox *Outbox
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{diary: &diary{}, broker: brokertest.New(), outbox: NewOutbox()}
	o.broker.With(func(b *brokertest.Broker) { _ = b.Declare("q", true, nil) })
	o.sess = open(t, o.broker)
	return o
}

// open opens a session without a supervisor that keeps it alive, and closes the session at the
// end of the test.
func open(t *testing.T, b *brokertest.Broker) *transport.Session {
	t.Helper()
	s, err := transport.NewSupervisor(transport.Config{
		Name: "amqpx", Role: "test", Dialer: b, Heartbeat: time.Hour, DialTimeout: time.Second, Logger: zap.NewNop(), Observer: noStatus{},
		Targets: func() []transport.Target {
			return []transport.Target{{URL: "amqp://app@broker.test", Address: "broker.test:5672"}}
		},
		Setup: func(context.Context, *transport.Session) error { return nil },
	}).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// noStatus is an observer without effect.
type noStatus struct{}

func (noStatus) OnConnecting(string)                {}
func (noStatus) OnCertificates(_, _ time.Time)      {}
func (noStatus) OnReady(uint64, func() bool)        {}
func (noStatus) OnBlocked(amqp.Blocking)            {}
func (noStatus) OnFault(error, transport.FaultKind) {}
func (noStatus) OnClosed()                          {}

// block starts an alarm of the broker, and reports what is written nevertheless.
func (o *office) block(t *testing.T) {
	t.Helper()
	o.broker.With(func(b *brokertest.Broker) {
		o.pub().Published = true // the broker informs connections that have published
		b.OnPublish = func(key string, _ amqp.Publishing) *amqp.Error {
			t.Errorf("a message to %q while the broker blocks publishing", key)
			return nil
		}
	})
	o.broker.SetAlarm("low on disk")
	synctest.Wait()
}

// pub returns the connection for publishing.
func (o *office) pub() *brokertest.Conn {
	conn, _ := o.sess.Pub.(*brokertest.Conn)
	return conn
}

func (o *office) start() {
	Start(o.sess, o.outbox, 0, func(r amqp.Return) { o.note("%s returned", r.CorrelationId) })
}

func (o *office) post(key string, ids ...string) {
	for _, id := range ids {
		o.outbox.Put(&letter{id: id, key: key, diary: o.diary})
	}
}

func (o *office) want(t *testing.T, want string) {
	t.Helper()
	synctest.Wait()
	wantSame(t, "diary", o.String(), want)
}

func TestPublisherTellsTheFate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		fault brokertest.Fault
		want  string
		ends  bool // the session
	}{
		{"taken", brokertest.FaultNone, "a confirmed", false},
		{"nack", brokertest.FaultNack, "a refused", false},
		{"closed before the write", brokertest.FaultUnsent, "a unsent", true},
		{"write failed", brokertest.FaultCutBefore, "a lost", true},
		{"write failed late", brokertest.FaultCutWritten, "a lost", true},
		{"link lost before the confirm", brokertest.FaultCutUnconfirmed, "a lost", true},
		{"link lost after the confirm", brokertest.FaultCutConfirmed, "a confirmed", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := newOffice(t)
				o.start()
				o.broker.Fail("q", c.fault)
				o.post("q", "a")
				o.want(t, c.want)
				wantSame(t, "session ended", o.sess.Ended(), c.ends)
			})
		})
	}
}

func TestPublisherHandlesTheReturnBeforeTheConfirm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		for range 50 {
			o.post("nowhere", "a")
			o.post("q", "b")
		}
		synctest.Wait()
		lines := strings.Split(o.String(), ", ")
		wantSame(t, "events", len(lines), 150)
		returns, confirms := 0, 0
		for _, line := range lines {
			switch line {
			case "a returned":
				returns++
			case "a confirmed":
				confirms++
			}
			if confirms > returns {
				t.Fatal("a message counted as taken before its return was handled")
			}
		}
	})
}

func TestPublisherHandlesReturnsWhileAnEarlierConfirmIsOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		o.broker.HoldConfirms()
		o.post("q", "a")
		o.post("nowhere", "b")
		o.want(t, "b returned")
		o.broker.ReleaseConfirms()
		o.want(t, "b returned, a confirmed, b confirmed")
	})
}

func TestPublisherSettlesInTheOrderOfWriting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		o.broker.HoldConfirms()
		o.broker.Fail("q", brokertest.FaultNone, brokertest.FaultNack)
		o.post("q", "a", "b", "c")
		o.want(t, "")
		o.broker.With(func(b *brokertest.Broker) { slices.Reverse(b.Held) })
		o.broker.ReleaseConfirms()
		o.want(t, "a confirmed, b refused, c confirmed")
	})
}

func TestPublisherSettlesEverythingWhenTheConnectionIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		o.broker.HoldConfirms()
		o.post("q", "a", "b")
		synctest.Wait()
		o.broker.Kick(nil)
		o.want(t, "a lost, b lost")
		o.post("q", "c") // waits for the next session
		o.want(t, "a lost, b lost")
		wantSame(t, "waiting", o.outbox.Len(), 1)
	})
}

func TestPublisherSkipsWhatWasWithdrawn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		o.outbox.Put(&letter{id: "a", key: "q", diary: o.diary, gone: true})
		o.post("q", "b")
		o.want(t, "b confirmed")
		wantSame(t, "sent", len(o.broker.MessagesTo("q")), 1)
	})
}

func TestPublisherGathersWhatWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		for i := range maxBurst + 10 {
			o.post("q", fmt.Sprint(i))
		}
		o.start()
		synctest.Wait()
		wantSame(t, "gathered writes", o.pub().Holds, 2)
		wantSame(t, "confirmed", strings.Count(o.String(), "confirmed"), maxBurst+10)
		o.post("q", "lone")
		synctest.Wait()
		wantSame(t, "gathered writes", o.pub().Holds, 2)
	})
}

func TestPublisherWritesNothingWhileBlocked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		synctest.Wait() // the publisher waits for a message; the flow is open
		o.block(t)
		o.post("q", "a", "b")
		o.want(t, "")
		wantSame(t, "waiting", o.outbox.Len(), 2)
		o.broker.With(func(b *brokertest.Broker) { b.OnPublish = nil })
		o.broker.SetAlarm("")
		o.want(t, "a confirmed, b confirmed")
	})
}

func TestPublisherLeavesWhatItMayNotWriteForTheNextSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		synctest.Wait()
		o.block(t)
		o.post("q", "a")
		synctest.Wait()
		o.broker.Kick(nil)
		o.want(t, "")
		wantSame(t, "waiting", o.outbox.Len(), 1)
	})
}

func TestPublisherEndsWithItsSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		o.broker.HoldConfirms()
		o.post("q", "a")
		synctest.Wait()
		o.sess.Close() // returns only when both goroutines have ended
		wantSame(t, "diary", o.String(), "a lost")
	})
}

func wantSame[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}
