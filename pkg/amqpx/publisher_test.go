package amqpx

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/publish"
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

func (l *letter) OnResult(f publish.Result) {
	l.diary.note("%s %s", l.id, []string{"confirmed", "refused", "unroutable", "unsent", "lost"}[f])
}

// office is a publisher with its own session and a queue "q".
type office struct {
	*diary
	broker *brokertest.Broker
	sess   *transport.Session
	outbox *publish.Outbox
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{diary: &diary{}, broker: brokertest.New(), outbox: publish.NewOutbox()}
	o.broker.With(func(b *brokertest.Broker) { _ = b.Declare("q", true, nil) })
	o.sess = mustOpen(t, o.broker)
	o.sess.Watch(func(amqp.Blocking) {})
	return o
}

func (o *office) start() {
	publish.Start(o.sess, o.outbox, func(r amqp.Return) { o.note("%s returned", r.CorrelationId) })
}

func (o *office) post(key string, ids ...string) {
	for _, id := range ids {
		o.outbox.Put(&letter{id: id, key: key, diary: o.diary})
	}
}

func (o *office) want(t *testing.T, want string) {
	t.Helper()
	settle()
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
		settle()
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

func TestPublisherSettlesEverythingWhenTheLinkIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		o.broker.HoldConfirms()
		o.post("q", "a", "b")
		settle()
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
		for i := range publish.MaxBurst + 10 {
			o.post("q", fmt.Sprint(i))
		}
		o.start()
		settle()
		wantSame(t, "gathered writes", fakeOf(o.sess.Pub).Holds, 2)
		wantSame(t, "confirmed", strings.Count(o.String(), "confirmed"), publish.MaxBurst+10)
		o.post("q", "lone")
		settle()
		wantSame(t, "gathered writes", fakeOf(o.sess.Pub).Holds, 2)
	})
}

func TestPublisherWritesNothingWhileBlocked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		settle() // the publisher waits for a message; the flow is open
		o.sess.Flow.Set(true)
		o.post("q", "a", "b")
		o.want(t, "")
		wantSame(t, "sent", len(o.broker.MessagesTo("q")), 0)
		o.sess.Flow.Set(false)
		o.want(t, "a confirmed, b confirmed")
	})
}

func TestPublisherLeavesWhatItMayNotWriteForTheNextSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		settle()
		o.sess.Flow.Set(true)
		o.post("q", "a")
		settle()
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
		settle()
		o.sess.Close() // returns only when both goroutines have ended
		wantSame(t, "diary", o.String(), "a lost")
	})
}

// maxSize makes a broker refuse messages larger than limit.
func maxSize(limit int) func(string, amqp.Publishing) *amqp.Error {
	return func(_ string, msg amqp.Publishing) *amqp.Error {
		if len(msg.Body) <= limit {
			return nil
		}
		return &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: fmt.Sprintf(
			"PRECONDITION_FAILED - message size %d is larger than configured max size %d", len(msg.Body), limit)}
	}
}

// takesNoPoison makes a broker end the channel for each message with body "poison" to
// DefaultQueue.
func takesNoPoison(count *atomic.Int64) func(string, amqp.Publishing) *amqp.Error {
	return func(key string, msg amqp.Publishing) *amqp.Error {
		if key != DefaultQueue || !bytes.Equal(msg.Body, []byte("poison")) {
			return nil
		}
		count.Add(1)
		return &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: "PRECONDITION_FAILED - poison"}
	}
}

func TestSizeLimitOfTheBrokerIsLearned(t *testing.T) {
	t.Parallel()
	for _, mode := range []ReplyMode{ReplyQueue, ReplyDirect} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				b.OnPublish = maxSize(1000)
				ready(t, startServer(t, b, handlers{"echo": echo}).WaitReady)
				c := startClient(t, b, WithReplyMode(mode))
				ready(t, c.WaitReady)
				for _, opts := range [][]CallOption{nil, {Idempotent()}, nil} {
					got := <-goCall(c, within(t, time.Minute), "echo", make([]byte, 1001), opts...)
					wantIs(t, got.err, ErrTooLarge)
					wantSame(t, "code", CodeOf(got.err), CodeInvalidArgument)
					wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
					if mode == ReplyDirect {
						ready(t, c.WaitReady)
					}
				}
				wantAnswer(t, <-goCall(c, within(t, time.Minute), "echo", []byte("x")), "x")
				want := map[ReplyMode]uint64{ReplyQueue: 0, ReplyDirect: 1}[mode]
				wantSame(t, "reconnects", c.Stats().Reconnects, want)
			})
		})
	}
}

func TestResponseAboveTheSizeLimitOfTheBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startRig(t, handlers{"echo": echo, "large": counted(&runs, func(context.Context, *Request) ([]byte, error) {
			return make([]byte, 2000), nil
		})})
		r.broker.With(func(b *brokertest.Broker) { b.OnPublish = maxSize(1000) })
		for range 2 {
			got := <-goCall(r.client, within(t, time.Minute), "large", nil, Idempotent())
			wantSame(t, "code", CodeOf(got.err), CodeResourceExhausted)
			wantSame(t, "outcome", OutcomeOf(got.err), Ran)
			wantTexts(t, got.err, "2000 bytes", "1000")
			wantAnswer(t, <-goCall(r.client, within(t, time.Minute), "echo", []byte("x")), "x")
		}
		wantSame(t, "runs", runs.Load(), 2)
		wantSame(t, "reconnects of the server", r.server.Stats().Reconnects, 0)
	})
}

func TestBatchesStayBelowTheSizeLimitOfTheBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		startServer(t, b, handlers{"echo": echo, "open the lane": echo}, WithBatch(BatchAuto))
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto))}
		ready(t, r.client.WaitReady)
		r.openLane()
		b.With(func(b *brokertest.Broker) { b.OnPublish = maxSize(4000) })
		calls := r.together(func() (waiting []<-chan result) {
			for range 40 {
				waiting = append(waiting, goCall(r.client, within(t, time.Minute), "echo", make([]byte, 1000)))
			}
			settle()
			return waiting
		})
		for _, call := range calls {
			wantAnswer(t, <-call, string(make([]byte, 1000)))
		}
		wantSame(t, "reconnects", r.client.Stats().Reconnects, 0)
	})
}

// A message refused by the broker fails alone, among many unconfirmed messages.
func TestCulpritOfAChannelException(t *testing.T) {
	t.Parallel()
	for _, mode := range []ReplyMode{ReplyQueue, ReplyDirect} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				ready(t, startServer(t, b, handlers{"echo": echo}).WaitReady)
				c := startClient(t, b, WithReplyMode(mode))
				ready(t, c.WaitReady)
				var kills atomic.Int64
				b.With(func(b *brokertest.Broker) { b.OnPublish = takesNoPoison(&kills) })
				b.HoldConfirms()
				var innocent []<-chan result
				var culprit <-chan result
				for i := range 100 {
					if i == 50 {
						culprit = goCall(c, within(t, time.Minute), "echo", []byte("poison"), Idempotent())
					}
					innocent = append(innocent, goCall(c, within(t, time.Minute), "echo", []byte("x"), Idempotent()))
				}
				settle()
				b.ReleaseConfirms()
				got := <-culprit
				wantSame(t, "code", CodeOf(got.err), CodeInvalidArgument)
				wantIs(t, got.err, ErrRefused)
				wantTexts(t, got.err, "PRECONDITION_FAILED - poison")
				for _, call := range innocent {
					wantAnswer(t, <-call, "x")
				}
				if n := kills.Load(); n < 1 || n > 4 {
					t.Errorf("the culprit ended %d channels", n)
				}
				if mode == ReplyQueue {
					wantSame(t, "reconnects", c.Stats().Reconnects, 0)
				}
				wantAnswer(t, <-goCall(c, within(t, time.Minute), "echo", []byte("x")), "x")
			})
		})
	}
}
