package amqpx

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// sides holds the nodes of a cluster on the two sides of a partition. A client starts on the
// left node, as dials of the right node fail until open is set.
type sides struct {
	left, right *brokertest.Broker
	dials       atomic.Int64 // of the right node, by the client
	open        atomic.Bool
}

const sidesURL = "amqp://app:secret@left.test:5672/,amqp://app:secret@right.test:5672/"

func (s *sides) Dial(ctx context.Context, url, name string) (transport.Conn, error) {
	if !strings.Contains(url, "right") {
		return s.left.Dial(ctx, url, name)
	}
	if !s.open.Load() {
		return nil, brokertest.ErrCut
	}
	s.dials.Add(1)
	return s.right.Dial(ctx, url, name)
}

func (s *sides) applyClient(c *clientConfig) { c.dialer, c.returnHome = s, 0 }

// foreign starts a consumer of the request queue without responses and without a control plane.
func foreign(t *testing.T, b *brokertest.Broker) {
	t.Helper()
	l, err := b.Dial(t.Context(), testURL, "foreign")
	if err != nil {
		t.Fatal(err)
	}
	ch, err := l.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.Consume(DefaultQueue, "tag", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
}

// callsFor makes two calls a second for the duration d and returns the number of successes among
// the calls of the last five seconds.
func callsFor(t *testing.T, c *Client, d time.Duration) (answered int64) {
	t.Helper()
	var n atomic.Int64
	var calls sync.WaitGroup
	for begun := time.Now(); time.Since(begun) < d; pass(500 * time.Millisecond) {
		late := d-time.Since(begun) < 5*time.Second
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if _, err := c.Call(ctx, "m", nil, Idempotent()); err == nil && late {
				n.Add(1)
			}
		})
	}
	calls.Wait()
	return n.Load()
}

// A client moves from a node without responses to another node with answering servers, and
// stays when the node is not the reason for the wait.
func TestClientOnTheWrongSideOfAPartition(t *testing.T) {
	t.Parallel()
	serve := func(h Handler, control bool) func(*testing.T, *brokertest.Broker) {
		return func(t *testing.T, b *brokertest.Broker) {
			t.Helper()
			s := startServer(t, b, handlers{"m": h}, WithControl(control))
			ready(t, s.WaitReady)
		}
	}
	nobody := func(*testing.T, *brokertest.Broker) {}
	for name, c := range map[string]struct {
		left, right func(*testing.T, *brokertest.Broker)
		leaves      bool
		dials       int64 // of the other node, at most; 0: any number
		answered    bool
	}{
		"no server":                         {left: nobody, right: serve(echo, true), leaves: true, answered: true},
		"no server, and others without one": {left: nobody, right: serve(echo, false), leaves: true, answered: true},
		"consumers of the past": {
			left: func(t *testing.T, b *brokertest.Broker) {
				t.Helper()
				foreign(t, b)
				b.With(func(b *brokertest.Broker) { b.Holding = true })
			},
			right: serve(echo, true), leaves: true, answered: true,
		},
		"no queue": {
			left: func(_ *testing.T, b *brokertest.Broker) {
				b.With(func(b *brokertest.Broker) { b.Remove(b.Queues[DefaultQueue]) })
			},
			right: serve(echo, true), leaves: true, answered: true,
		},
		"slow handlers":       {left: serve(untilDone, true), right: serve(echo, true), dials: -1},
		"slow other programs": {left: foreign, right: serve(echo, true), dials: -1},
		"no server anywhere":  {left: nobody, right: nobody, dials: 5},
		"answers":             {left: serve(echo, true), right: serve(echo, true), dials: -1, answered: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &sides{left: brokertest.New(), right: brokertest.New()}
				for _, b := range []*brokertest.Broker{s.left, s.right} {
					b.With(func(b *brokertest.Broker) { _ = b.Declare(DefaultQueue, true, nil) })
				}
				log, logs := observed(zap.WarnLevel)
				client, err := NewClient(sidesURL, onBroker(s.left), s, WithControl(true), WithLogger(log))
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close(within(t, time.Minute)) //nolint:errcheck // not what is tested.
				ready(t, client.WaitReady)
				c.left(t, s.left)
				c.right(t, s.right)
				s.open.Store(true)
				answered := callsFor(t, client, 5*time.Minute)
				wantSame(t, "moved", strings.Contains(client.Status().Broker, "right"), c.leaves)
				wantSame(t, "calls were answered in the end", answered > 0, c.answered)
				moves := logs.FilterMessage("connection lost, reconnecting").All()
				if c.leaves != (len(moves) == 1) {
					t.Errorf("log: %v", moves)
				}
				switch n := s.dials.Load(); {
				case c.dials == -1:
					wantSame(t, "dials of the other node", n, 0)
				case c.dials > 0 && n > c.dials:
					t.Errorf("the other node was dialed %d times, want at most %d times", n, c.dials)
				}
			})
		})
	}
}

// A client does not flap between two nodes when the calls on both are unanswered.
func TestClientDoesNotFlapBetweenNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &sides{left: brokertest.New(), right: brokertest.New()}
		for _, b := range []*brokertest.Broker{s.left, s.right} {
			b.With(func(b *brokertest.Broker) { _ = b.Declare(DefaultQueue, true, nil) })
			foreign(t, b)
		}
		client, err := NewClient(sidesURL, onBroker(s.left), s)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close(within(t, time.Minute)) //nolint:errcheck // not what is tested.
		ready(t, client.WaitReady)
		for _, b := range []*brokertest.Broker{s.left, s.right} {
			b.With(func(b *brokertest.Broker) { b.Holding = true })
		}
		s.open.Store(true)
		_ = callsFor(t, client, 15*time.Minute)
		// Moves come after 10, 30, 90, 270 and then every 300 s.
		if n := client.Stats().Reconnects; n < 3 || n > 6 {
			t.Errorf("%d moves in 15 minutes", n)
		}
	})
}

// A client with only one broker URL stays.
func TestClientOfOneNodeStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.With(func(b *brokertest.Broker) { _ = b.Declare(DefaultQueue, true, nil) })
		client := startClient(t, b, WithControl(true))
		ready(t, client.WaitReady)
		_ = callsFor(t, client, 5*time.Minute)
		wantSame(t, "reconnects", client.Stats().Reconnects, 0)
		wantSame(t, "dials", len(b.Dials), 2)
	})
}

// rolling starts a client and servers. Only the last server has the method "new".
func rolling(t *testing.T, servers int, log *zap.Logger, opts ...Option) *rig {
	t.Helper()
	r := &rig{t: t, broker: brokertest.New()}
	serverOpts := []ServerOption{WithLogger(log)}
	clientOpts := []ClientOption{WithLogger(log), WithRetryBudget(0, 0)}
	for _, o := range opts {
		serverOpts, clientOpts = append(serverOpts, o), append(clientOpts, o)
	}
	for i := range servers {
		methods := handlers{"old": echo, "start batching": echo}
		if i == servers-1 {
			methods["new"] = echo
		}
		ready(t, startServer(t, r.broker, methods, serverOpts...).WaitReady)
	}
	r.client = startClient(t, r.broker, clientOpts...)
	ready(t, r.client.WaitReady)
	return r
}

func TestMethodOfOneServerIsFound(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]CallOption{"": nil, "idempotent": {Idempotent()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zapcore.WarnLevel)
				r := rolling(t, 3, zap.New(core), WithBatch(BatchAuto))
				r.awaitBatching()
				var waiting []<-chan result
				for i := range 500 {
					waiting = append(waiting, goCall(r.client, within(t, time.Minute), "new", fmt.Append(nil, i), opts...))
				}
				waiting = append(waiting, r.batchOf(20, "new", opts...)...)
				for i, done := range waiting {
					wantResponse(t, <-done, fmt.Sprint(i%500))
				}
				wantSame(t, "lines of servers without it", logs.FilterMessage("request for a method that this server does not have").Len(), 2)
				wantSame(t, "lines of the client", logs.FilterMessage("no server has the method").Len(), 0)
			})
		})
	}
}

func TestMethodOfNoServerFailsSoon(t *testing.T) {
	t.Parallel()
	for servers, most := range map[int]int{1: 1, 2: 20, 4: elsewhereMax} {
		t.Run(fmt.Sprint(servers), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zapcore.WarnLevel)
				r := rolling(t, servers, zap.New(core))
				wantResponse(t, <-goCall(r.client, within(t, time.Minute), "old", nil), "")
				for range 10 {
					var info CallInfo
					got := <-goCall(r.client, within(t, time.Minute), "nothing", nil, WithCallInfo(&info))
					wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
					wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
					if info.Attempts < servers && logs.FilterMessage("no server has the method").Len() == 0 || info.Attempts > most {
						t.Errorf("tried %d times", info.Attempts)
					}
					if limit := time.Duration(servers-1) * 200 * time.Millisecond; got.took > limit {
						t.Errorf("took %v, want at most %v", got.took, limit)
					}
					most = 1 // the client remembers the missing method for a while
				}
				wantSame(t, "lines of the client", logs.FilterMessage("no server has the method").Len(), 1)
			})
		})
	}
}

// An unimplemented error from a handler is final, as the handler has run.
func TestHandlersUnimplementedIsFinal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fails := func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeUnimplemented, "no") }
		r := startRig(t, handlers{"m": fails})
		ready(t, startServer(t, r.broker, handlers{"m": fails}).WaitReady)
		var info CallInfo
		got := <-goCall(r.client, within(t, time.Minute), "m", nil, Idempotent(), WithCallInfo(&info))
		wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
		wantSame(t, "outcome", OutcomeOf(got.err), Ran)
		wantSame(t, "attempts", info.Attempts, 1)
	})
}

// Servers in other languages send no identity, so the number of servers bounds the attempts.
func TestNamelessServersAreTriedABoundedNumberOfTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		no := func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
			send(errorTo(d, refusal(CodeUnimplemented, "no")))
		}
		for range 3 {
			startScript(t, b, no)
		}
		c := startClient(t, b)
		ready(t, c.WaitReady)
		var info CallInfo
		got := <-goCall(c, within(t, time.Minute), "m", nil, WithCallInfo(&info))
		wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
		wantSame(t, "attempts", info.Attempts, 2*3)
	})
}
