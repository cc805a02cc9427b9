package amqpx

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Openings that are delivered again, that wait, or that are lost.

const openingsQueue = DefaultQueue + streamsSuffix

// A server dies before it has acknowledged the opening: another server gets it, and does not run its
// handler, because the client has the stream of the first. A method that runs at most once refuses it.
func TestRedeliveredOpening(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		b := brokertest.New()
		one := startStreamServer(t, b, streamHandlers{"wait": h.handle, onceMethod: h.handle}, WithName("first"))
		ready(t, one.WaitReady)
		client := startClient(t, b)
		ready(t, client.WaitReady)
		b.HoldConfirms() // of the acceptance
		s, _ := client.Open(context.Background(), "wait")
		once, _ := client.Open(context.Background(), onceMethod)
		_, _ = s.Send(nil), once.Send(nil)
		<-h.streams
		<-h.streams
		second := newHandled()
		two := startStreamServer(t, b, streamHandlers{"wait": second.handle, onceMethod: second.handle}, WithName("second"))
		ready(t, two.WaitReady)
		cutLinks(b, "first server consume")
		b.With(func(b *brokertest.Broker) { b.Held = nil }) // those of the dead connection
		b.ReleaseConfirms()
		_, err := s.Recv()
		wantFailed(t, err, CodeUnavailable, MayHaveRun)
		_, err = once.Recv()
		wantFailed(t, err, CodeUnavailable, MayHaveRun)
		settle()
		wantSame(t, "handlers at the second server", len(second.streams), 0)
		wantSame(t, "streams at the second server", two.Stats().Streams.Opened, 1)
		wantSame(t, "open there", two.Stats().Streams.Open, 0)
		wantSame(t, "openings that wait", b.Ready(openingsQueue), 0)
	})
}

// A server dies before it has accepted the stream: another server runs it.
func TestRedeliveredOpeningOfALivingClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		held := make(chan struct{}, 2)
		hold := WithMiddleware(func(Handler) Handler {
			return func(ctx context.Context, _ *Request) ([]byte, error) {
				held <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		first := newHandled()
		one := startStreamServer(t, b, streamHandlers{"wait": first.handle, onceMethod: first.handle}, WithName("first"), hold)
		ready(t, one.WaitReady)
		client := startClient(t, b)
		ready(t, client.WaitReady)
		s, _ := client.Open(context.Background(), "wait")
		once, _ := client.Open(context.Background(), onceMethod)
		_, _ = s.Send([]byte("x")), once.Send(nil)
		<-held
		<-held
		second := newHandled()
		two := startStreamServer(t, b, streamHandlers{"wait": second.handle, onceMethod: second.handle}, WithName("second"))
		ready(t, two.WaitReady)
		cutLinks(b, "first server consume")
		x := <-second.streams
		wantSame(t, "redelivered", x.Request().Redelivered, true)
		item, err := x.Recv()
		wantSame(t, "item", string(item), "x")
		wantSame(t, "error", err, nil)
		_, err = once.Recv() // it may have run
		wantFailed(t, err, CodeUnavailable, MayHaveRun)
		s.Close()
		wantSame(t, "code at the second server", CodeOf(<-second.ends), CodeCanceled)
		wantSame(t, "handlers at the first server", len(first.streams), 0)
	})
}

// The broker dies with an opening that no server has acknowledged, keeps it, and delivers it again
// when the client has gone on: no handler runs for it.
func TestOpeningThatOutlivesItsClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		r := startStreams(t, streamHandlers{"wait": h.handle})
		r.broker.HoldConfirms() // of the acceptance
		s, _ := r.client.Open(context.Background(), "wait")
		_ = s.Send(nil)
		<-h.streams
		cutLinks(r.broker, "")
		r.broker.With(func(b *brokertest.Broker) { b.Held = nil })
		r.broker.ReleaseConfirms()
		_, err := s.Recv()
		wantFailed(t, err, CodeUnavailable, MayHaveRun)
		wantSame(t, "code at the server", CodeOf(<-h.ends), CodeUnavailable)
		pass(time.Minute)
		wantSame(t, "handlers", len(h.streams), 0)
		wantSame(t, "openings that wait", r.broker.Ready(openingsQueue), 0)
		wantSame(t, "open", r.server.Stats().Streams.Open, 0)
	})
}

// A stream is canceled, or expires, while its opening waits in the queue.
func TestOpeningThatWaitsInTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		r := startStreams(t, streamHandlers{"wait": h.handle})
		r.server.stop()
		wantSame(t, "drain", r.server.wait(t), nil)
		canceled, _ := r.client.Open(context.Background(), "wait", WaitForServer())
		expired, _ := r.client.Open(within(t, time.Second), "wait", WaitForServer())
		_, _ = canceled.Send(nil), expired.Send(nil)
		settle()
		begun := time.Now()
		canceled.Close()
		_, err := canceled.Recv()
		wantFailed(t, err, CodeCanceled, MayHaveRun, context.Canceled)
		wantSame(t, "time until canceled", time.Since(begun), 0)
		_, err = expired.Recv()
		wantFailed(t, err, CodeDeadlineExceeded, MayHaveRun, context.DeadlineExceeded)
		again := startStreamServer(t, r.broker, streamHandlers{"wait": h.handle})
		ready(t, again.WaitReady)
		wantSame(t, "code of the canceled one", CodeOf(<-h.ends), CodeCanceled)
		settle()
		wantSame(t, "handlers", len(h.streams), 1) // not that of the expired one
		wantSame(t, "open", [2]int64{again.Stats().Streams.Open, r.client.Stats().Streams.Open}, [2]int64{})
	})
}

// fullStreams starts a server with room for one stream, and a client that has it. The openings of
// further streams wait in the queue.
func fullStreams(t *testing.T, h *handled, opts ...Option) (*rig, *ClientStream) {
	t.Helper()
	r := &rig{t: t, broker: brokertest.New()}
	serverOpts, clientOpts := []ServerOption{WithMaxStreams(1, 1)}, []ClientOption(nil)
	for _, o := range opts {
		serverOpts, clientOpts = append(serverOpts, o), append(clientOpts, o)
	}
	r.server = startStreamServer(t, r.broker, streamHandlers{"wait": h.handle}, serverOpts...)
	r.client = startClient(t, r.broker, clientOpts...)
	ready(t, r.server.WaitReady)
	ready(t, r.client.WaitReady)
	first, _ := r.client.Open(within(t, time.Hour), "wait")
	_ = first.Send(nil)
	<-h.streams
	settle()
	return r, first
}

// A stream is canceled while its opening waits in the queue of a server without room: the server
// does not start its handler when it takes the opening.
func TestCanceledOpeningDoesNotRun(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		giveUp func(s *ClientStream, cancel func())
		opts   []Option
	}{
		"Close":        {giveUp: func(s *ClientStream, _ func()) { s.Close() }},
		"context":      {giveUp: func(_ *ClientStream, cancel func()) { cancel() }},
		"without user": {giveUp: func(s *ClientStream, _ func()) { s.Close() }, opts: []Option{WithUserID(false)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHandled()
				r, first := fullStreams(t, h, append(c.opts, WithControl(true))...)
				ctx, cancel := context.WithCancel(within(t, time.Hour))
				s, _ := r.client.Open(ctx, "wait")
				_ = s.Send(nil)
				settle()
				wantSame(t, "openings that wait", r.broker.Ready(openingsQueue), 1)
				c.giveUp(s, cancel)
				_, err := s.Recv()
				wantFailed(t, err, CodeCanceled, MayHaveRun, context.Canceled)
				s.Close() // a second time
				cancel()
				settle()
				first.Close()
				wantSame(t, "code", CodeOf(<-h.ends), CodeCanceled)
				settle()
				wantSame(t, "openings that wait", r.broker.Ready(openingsQueue)+r.broker.Unacked(openingsQueue), 0)
				wantSame(t, "handlers", len(h.streams), 0)
				wantSame(t, "refused", r.server.Stats().Streams.Refused, 1)
				again, _ := r.client.Open(within(t, time.Hour), "wait")
				_ = again.Send(nil)
				<-h.streams
				again.Close()
				wantSame(t, "code", CodeOf(<-h.ends), CodeCanceled)
			})
		})
	}
}

// The cancellations of others do not prevent the start of a stream.
func TestForgedCancellationOfAnOpening(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHandled()
		r, first := fullStreams(t, h, WithControl(true))
		s, _ := r.client.Open(within(t, time.Hour), "wait")
		_ = s.Send(nil)
		settle()
		var opening amqp.Publishing
		for _, sent := range r.broker.MessagesTo(openingsQueue) {
			opening = sent.Msg
		}
		for _, forged := range []struct{ user, replyTo, id string }{
			{"mallory", opening.ReplyTo, opening.CorrelationId},
			{"", opening.ReplyTo, opening.CorrelationId},
			{opening.UserId, DefaultQueue + ".reply.other", opening.CorrelationId},
			{opening.UserId, opening.ReplyTo, "x"},
			{opening.UserId, opening.ReplyTo, "77"},
		} {
			msg, _ := encodeCancel([]cancellation{{Cancellation: wire.Cancellation{ID: forged.id, Method: "wait"}, replyTo: forged.replyTo}})
			msg.UserId = forged.user
			r.broker.With(func(b *brokertest.Broker) { b.User = forged.user })
			r.toControl(msg)
			r.broker.With(func(b *brokertest.Broker) { b.User = "app" })
		}
		first.Close()
		wantSame(t, "code", CodeOf(<-h.ends), CodeCanceled)
		x := <-h.streams
		wantSame(t, "error of the open stream", x.Send(nil), nil)
		s.Close()
		wantSame(t, "code", CodeOf(<-h.ends), CodeCanceled)
	})
}

// A stream is canceled while middleware of the server decides about it: its handler does not start.
func TestCanceledWhileMiddlewareRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		h, decide := newHandled(), make(chan struct{})
		slow := WithMiddleware(func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				<-decide
				return next(ctx, req)
			}
		})
		server := startStreamServer(t, b, streamHandlers{"wait": h.handle}, slow, WithControl(true))
		client := startClient(t, b, WithControl(true))
		ready(t, server.WaitReady)
		ready(t, client.WaitReady)
		s, _ := client.Open(context.Background(), "wait")
		_ = s.Send(nil)
		settle()
		s.Close()
		settle()
		close(decide)
		settle()
		wantSame(t, "handlers", len(h.streams), 0)
		wantSame(t, "open", server.Stats().Streams.Open, 0)
		wantSame(t, "openings", b.Ready(openingsQueue)+b.Unacked(openingsQueue), 0)
	})
}

// The queue of openings is deleted with an opening in it: a stream that waits for servers ends, too.
func TestQueueOfOpeningsIsDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"count": countStream})
		r.server.stop()
		wantSame(t, "drain", r.server.wait(t), nil)
		s, _ := r.client.Open(context.Background(), "count", WaitForServer())
		_ = s.Send([]byte("1"))
		pass(time.Minute)
		wantSame(t, "open", r.client.Stats().Streams.Open, 1)
		r.broker.With(func(b *brokertest.Broker) { b.Remove(b.Queues[openingsQueue]) })
		begun := time.Now()
		_, err := s.Recv()
		wantFailed(t, err, CodeUnavailable, MayHaveRun, ErrNoServer)
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// queueDown makes the queue of openings behave like a classic queue whose only node is away, at a
// broker that nacks what is published to it and does not answer questions about it, as RabbitMQ 4, or
// answers them with an exception. The returned function brings the node back.
func queueDown(t *testing.T, b *brokertest.Broker, refused error) (back func()) {
	t.Helper()
	up := make(chan struct{})
	b.With(func(b *brokertest.Broker) {
		b.Nacks = func(_, key string) bool { return key == openingsQueue }
		b.OnCall = func(op, name string) error {
			if op == "declare passive" && name == openingsQueue {
				if refused != nil {
					return refused
				}
				<-up
			}
			return nil
		}
	})
	back = sync.OnceFunc(func() {
		b.With(func(b *brokertest.Broker) { b.Nacks, b.OnCall = nil, nil })
		close(up)
	})
	t.Cleanup(back)
	return back
}

// The only node of the queue of openings is away: streams that wait for servers wait for it, without
// a message to the broker, once it has nacked one. The others fail at once.
func TestStreamsWaitForTheQueueOfOpenings(t *testing.T) {
	t.Parallel()
	for name, refused := range map[string]error{"not answered": nil, "404": homeNodeDown()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startStreams(t, streamHandlers{"count": countStream})
				back := queueDown(t, r.broker, refused)
				open := func(ctx context.Context, opts ...CallOption) *ClientStream {
					s, _ := r.client.Open(ctx, "count", opts...)
					_ = s.Send([]byte("2"))
					settle()
					return s
				}
				_, err := open(context.Background(), WaitForServer()).Recv() // nobody knows yet
				wantFailed(t, err, CodeUnavailable, MayHaveRun, ErrQueueUnavailable)
				patient := make([]*ClientStream, 3)
				for i := range patient {
					patient[i] = open(context.Background(), WaitForServer())
				}
				pass(time.Minute)
				wantSame(t, "messages", len(r.broker.MessagesTo(openingsQueue)), 1)
				_, err = open(context.Background()).Recv()
				wantFailed(t, err, CodeUnavailable, MayHaveRun, ErrQueueUnavailable)
				_, err = open(within(t, time.Second), WaitForServer()).Recv()
				wantFailed(t, err, CodeDeadlineExceeded, DidNotRun, context.DeadlineExceeded)
				begun := time.Now()
				back()
				for _, s := range patient {
					for range 2 {
						_, err := s.Recv()
						wantSame(t, "error of an item", err, nil)
					}
					_, err := s.Recv()
					wantSame(t, "error", err, io.EOF)
				}
				if took := time.Since(begun); took > 2*checkEvery {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// A nack of a quorum queue proves that no server has the opening.
func TestStreamsWaitForAQuorumQueueOfOpenings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"count": countStream}, WithQueue(Queue{Name: DefaultQueue, Type: QueueQuorum}))
		back := queueDown(t, r.broker, nil)
		s, _ := r.client.Open(context.Background(), "count", WaitForServer())
		_ = s.Send([]byte("0"))
		_, err := collect(t, r.client, context.Background(), "count", "0")
		wantFailed(t, err, CodeUnavailable, DidNotRun, ErrQueueUnavailable)
		pass(time.Minute)
		wantSame(t, "open", r.client.Stats().Streams.Open, 1)
		back()
		_, err = s.Recv()
		wantSame(t, "error", err, io.EOF)
	})
}

// The node of the queue of openings goes away with an opening in the queue, and comes back with it, or
// without.
func TestQueueOfOpeningsComesBack(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"with the opening": false, "without": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHandled()
				r, first := fullStreams(t, h)
				s, _ := r.client.Open(context.Background(), "wait", WaitForServer())
				_ = s.Send(nil)
				settle()
				back := queueDown(t, r.broker, homeNodeDown())
				pass(time.Minute)
				wantSame(t, "open", r.client.Stats().Streams.Open, 2)
				if lost {
					r.broker.With(func(b *brokertest.Broker) { b.Queues[openingsQueue].Messages = nil })
				}
				back()
				pass(2 * emptyFor)
				if lost {
					_, err := s.Recv()
					wantFailed(t, err, CodeUnavailable, MayHaveRun, ErrQueueUnavailable)
					return
				}
				first.Close()
				wantSame(t, "code", CodeOf(<-h.ends), CodeCanceled)
				<-h.streams
				s.Close()
				wantSame(t, "code", CodeOf(<-h.ends), CodeCanceled)
			})
		})
	}
}
