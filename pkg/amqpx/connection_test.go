package amqpx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// shop is a connection with a server and a client for each of several queues, in a synctest
// bubble.
type shop struct {
	t       *testing.T
	broker  *brokertest.Broker
	conn    *Connection
	servers []*running
	clients []*Client
	logs    *observer.ObservedLogs
}

// queueOf returns the name of a queue of a shop.
func queueOf(i int) string { return fmt.Sprintf("queue-%d", i) }

// connectTo returns a connection to a broker in memory, which is closed when the test ends.
func connectTo(t *testing.T, b *brokertest.Broker, opts ...ConnectionOption) *Connection {
	t.Helper()
	dialer := linkOption(func(c *linkConfig) { c.dialer = b })
	c, err := Connect(testURL, append([]ConnectionOption{dialer}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

// openShop starts a shop with n queues and waits until everything is ready.
func openShop(t *testing.T, n int, methods handlers, opts ...ConnectionOption) *shop {
	t.Helper()
	s := makeShop(t, n, methods, opts...)
	s.wait()
	return s
}

// makeShop starts a shop with n queues.
func makeShop(t *testing.T, n int, methods handlers, opts ...ConnectionOption) *shop {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	s := &shop{t: t, broker: brokertest.New(), logs: logs}
	s.conn = connectTo(t, s.broker, append([]ConnectionOption{WithLogger(zap.New(core))}, opts...)...)
	for i := range n {
		s.servers = append(s.servers, serveOn(t, s.conn, methods, WithQueue(Queue{Name: queueOf(i)})))
		s.clients = append(s.clients, s.client(i))
	}
	return s
}

// serveOn serves on a connection until the test ends.
func serveOn(t *testing.T, c *Connection, methods handlers, opts ...ServerOption) *running {
	t.Helper()
	server, err := c.NewServer(opts...)
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range methods {
		if err := server.Handle(name, h); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Server: server, stop: stop, result: make(chan error, 1)}
	go func() { r.result <- server.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		_ = r.wait(t)
	})
	return r
}

// client returns a client of a queue.
func (s *shop) client(i int, opts ...ClientOption) *Client {
	s.t.Helper()
	c, err := s.conn.NewClient(append([]ClientOption{WithQueue(Queue{Name: queueOf(i)})}, opts...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// wait waits until everything is ready.
func (s *shop) wait() {
	s.t.Helper()
	ready(s.t, s.conn.WaitReady)
	for i := range s.servers {
		ready(s.t, s.servers[i].WaitReady)
		ready(s.t, s.clients[i].WaitReady)
	}
}

// callAll calls "echo" at every queue except some.
func (s *shop) callAll(except ...int) {
	s.t.Helper()
	for i, c := range s.clients {
		if slices.Contains(except, i) {
			continue
		}
		body := []byte(fmt.Sprint("call of ", queueOf(i)))
		if response, err := c.Call(within(s.t, time.Minute), "echo", body); err != nil || !bytes.Equal(response, body) {
			s.t.Errorf("%s: response %q, %v", queueOf(i), response, err)
		}
	}
}

// becomesReady waits until the status is ready, also after faults that need an operator.
func becomesReady(t *testing.T, watch func(context.Context) <-chan Status) {
	t.Helper()
	for st := range watch(within(t, time.Hour)) {
		if st.Ready() {
			settle()
			return
		}
	}
	t.Fatal("not ready")
}

// links returns the names of the open connections, sorted.
func (s *shop) links() []string {
	var names []string
	s.broker.With(func(b *brokertest.Broker) {
		for _, l := range b.Links {
			names = append(names, l.Name)
		}
	})
	slices.Sort(names)
	return names
}

// wantReconnects fails the test unless every client and server has reconnected n times.
func (s *shop) wantReconnects(n uint64, except ...int) {
	s.t.Helper()
	for i := range s.clients {
		if !slices.Contains(except, i) {
			wantSame(s.t, queueOf(i)+": reconnects of the client", s.clients[i].Stats().Reconnects, n)
			wantSame(s.t, queueOf(i)+": reconnects of the server", s.servers[i].Stats().Reconnects, n)
		}
	}
}

// dials returns the number of attempts to open a connection.
func (s *shop) dials() (n int) {
	s.broker.With(func(b *brokertest.Broker) { n = len(b.Dials) })
	return n
}

// warnings returns the messages in the log above level info.
func (s *shop) warnings() []string {
	var all []string
	for _, e := range s.logs.All() {
		if e.Level > zap.InfoLevel {
			all = append(all, e.Message)
		}
	}
	return all
}

func TestFiveServersAndFiveClientsUseTwoConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 5, handlers{"echo": echo}, WithName("shop"))
		s.callAll()
		wantSame(t, "connections", strings.Join(s.links(), ", "), "shop connection consume, shop connection publish")
		wantSame(t, "warnings", len(s.warnings()), 0)
		if err := s.clients[0].Close(within(t, time.Second)); err != nil {
			t.Error(err)
		}
		s.callAll(0)
		wantSame(t, "connections", len(s.links()), 2)
	})
}

// A query of the control plane, and a caller with direct reply-to, need a third connection.
func TestServersShareTheConnectionForDirectResponses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 3, handlers{"echo": echo})
		for _, c := range s.clients {
			if _, err := c.Ping(within(t, time.Minute)); err != nil {
				t.Error(err)
			}
		}
		direct := s.client(0, WithReplyMode(ReplyDirect))
		if response, err := direct.Call(within(t, time.Minute), "echo", []byte("direct")); err != nil || string(response) != "direct" {
			t.Errorf("response %q, %v", response, err)
		}
		wantSame(t, "connections", strings.Join(s.links(), ", "), "amqpx connection consume, amqpx connection direct, amqpx connection publish")
	})
}

func TestLostConnectionReconnectsOnceForAll(t *testing.T) {
	t.Parallel()
	for name, reason := range map[string]*amqp.Error{
		"without a reason":     nil,
		"closed by the broker": {Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED - broker forced connection closure"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openShop(t, 5, handlers{"echo": echo})
				wantSame(t, "dials", s.dials(), 2)
				s.broker.Kick(reason)
				settle()
				for i := range s.clients {
					wantSame(t, "state of the client", s.clients[i].Status().State, StateReconnecting)
					wantSame(t, "fault of the client", s.clients[i].Status().Fault, s.conn.Status().Fault)
					wantSame(t, "state of the server", s.servers[i].Status().State, StateReconnecting)
				}
				s.wait()
				s.callAll()
				wantSame(t, "dials", s.dials(), 4)
				s.wantReconnects(1)
				wantSame(t, "warnings", strings.Join(s.warnings(), "; "), "connection lost, reconnecting")
			})
		})
	}
}

// While no connection can be made there is one attempt at a time, and everybody shows its fault.
func TestNobodyDialsForItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 5, handlers{"echo": echo})
		s.broker.With(func(b *brokertest.Broker) { b.OnDial = refusing(1<<30, amqp.ErrCredentials) })
		s.broker.Kick(nil)
		pass(time.Minute)
		if n := s.dials() - 2; n < 5 || n > 8 {
			t.Errorf("%d attempts in a minute of a wrong password, want one every 10 s", n)
		}
		late := s.client(0)
		settle()
		for _, st := range []Status{s.conn.Status(), s.clients[0].Status(), s.servers[4].Status(), late.Status()} {
			wantSame(t, "fault", st.Fault, FaultCredentials)
			wantSame(t, "state", st.State, StateReconnecting)
		}
		s.broker.With(func(b *brokertest.Broker) { b.OnDial = nil })
		becomesReady(t, late.Watch)
		s.wait()
		s.callAll()
	})
}

// A channel exception that is not about one message ends the sessions of one client only.
func TestExceptionOfOneClientDoesNotDisturbTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 3, handlers{"echo": echo, "slow": untilDone})
		slow := goCall(s.clients[1], within(t, time.Minute), "slow", nil)
		settle()
		refused := false
		s.broker.With(func(b *brokertest.Broker) {
			b.OnPublish = func(key string, _ amqp.Publishing) *amqp.Error {
				if key != queueOf(0) || refused {
					return nil
				}
				refused = true
				return &amqp.Error{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'app'"}
			}
		})
		_, err := s.clients[0].Call(within(t, time.Minute), "echo", nil)
		wantSame(t, "code", CodeOf(err), CodeUnavailable)
		s.wait()
		s.callAll()
		wantSame(t, "reconnects of the client", s.clients[0].Stats().Reconnects, 1)
		wantSame(t, "reconnects of its server", s.servers[0].Stats().Reconnects, 0)
		s.wantReconnects(0, 0)
		wantSame(t, "dials", s.dials(), 2)
		wantSame(t, "calls under way", len(slow), 0)
		var channels int
		s.broker.With(func(b *brokertest.Broker) {
			for _, l := range b.Links {
				channels += l.OpenChannels()
			}
		})
		before := channels
		for range 20 {
			refused = false
			_, _ = s.clients[0].Call(within(t, time.Minute), "echo", nil)
			s.wait()
		}
		channels = 0
		s.broker.With(func(b *brokertest.Broker) {
			for _, l := range b.Links {
				channels += l.OpenChannels()
			}
		})
		wantSame(t, "open channels", channels, before)
	})
}

// The broker deletes the queue of one server: its consumer ends, and it declares the queue again.
func TestEndOfOneConsumerDoesNotDisturbTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 3, handlers{"echo": echo})
		s.broker.With(func(b *brokertest.Broker) { b.Remove(b.Queues[queueOf(2)]) })
		s.wait()
		s.callAll()
		wantSame(t, "reconnects of its server", s.servers[2].Stats().Reconnects, 1)
		s.wantReconnects(0, 2)
		wantSame(t, "dials", s.dials(), 2)
	})
}

// The user may not consume one of the queues, so one server is not ready and says why.
func TestMissingPermissionOfOneServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		conn := connectTo(t, b)
		b.With(func(b *brokertest.Broker) {
			b.OnCall = func(op, name string) error {
				if op == "consume" && name == queueOf(1) {
					return &amqp.Error{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED - read access to queue 'queue-1' in vhost '/' refused for user 'app'"}
				}
				return nil
			}
		})
		good := serveOn(t, conn, handlers{"echo": echo}, WithQueue(Queue{Name: queueOf(0)}))
		bad := serveOn(t, conn, handlers{"echo": echo}, WithQueue(Queue{Name: queueOf(1)}))
		ready(t, good.WaitReady)
		pass(time.Minute)
		wantSame(t, "fault of the server", bad.Status().Fault, FaultPermission)
		wantSame(t, "fault of the connection", conn.Status().Fault, FaultKind(""))
		wantSame(t, "reconnects of the other", good.Stats().Reconnects, 0)
		b.With(func(b *brokertest.Broker) { b.OnCall = nil })
		becomesReady(t, bad.Watch)
	})
}

// The broker never answers a declaration of one client, as for a queue on a node that is down.
func TestSilenceForOneClientDoesNotDisturbTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 2, handlers{"echo": echo})
		var mute sync.Mutex
		s.broker.With(func(b *brokertest.Broker) {
			b.OnCall = func(_, name string) error {
				mute.Lock()
				defer mute.Unlock()
				if strings.HasPrefix(name, "away.reply.") {
					return brokertest.ErrHang
				}
				return nil
			}
		})
		client, err := s.conn.NewClient(WithQueue(Queue{Name: "away"}))
		if err != nil {
			t.Fatal(err)
		}
		pass(30 * time.Second)
		wantSame(t, "fault", client.Status().Fault, FaultQueueSilent)
		s.callAll()
		s.wantReconnects(0)
		if err := client.Close(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
		s.callAll()
		s.wantReconnects(0)
	})
}

// Channels that the broker does not close are given up; a link with too many of them ends.
func TestLinkWithManyChannelsThatDoNotCloseEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 2, handlers{"echo": echo})
		s.broker.With(func(b *brokertest.Broker) {
			b.OnCall = func(_, name string) error {
				if strings.HasPrefix(name, "away.reply.") {
					return brokertest.ErrHang
				}
				return nil
			}
		})
		client, err := s.conn.NewClient(WithQueue(Queue{Name: "away"}))
		if err != nil {
			t.Fatal(err)
		}
		for s.dials() == 2 {
			pass(10 * time.Second)
		}
		s.broker.With(func(b *brokertest.Broker) { b.OnCall = nil })
		s.wait()
		ready(t, client.WaitReady)
		s.callAll()
		s.wantReconnects(1)
	})
}

func TestBlockedBrokerBlocksAllAndOnlyWhileItBlocks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 3, handlers{"echo": echo})
		s.callAll()
		s.broker.SetAlarm("low on memory")
		settle()
		for i := range s.clients {
			wantSame(t, "client", s.clients[i].Status().State, StateBlocked)
			wantSame(t, "reason", s.clients[i].Status().Reason, "low on memory")
			wantSame(t, "server", s.servers[i].Status().State, StateBlocked)
		}
		late := s.client(0)
		calls := []<-chan result{
			goCall(s.clients[0], within(t, time.Hour), "echo", []byte("waits")),
			goCall(late, within(t, time.Hour), "echo", []byte("waits")),
		}
		pass(time.Minute)
		wantSame(t, "a client that is made meanwhile", late.Status().Reason, "low on memory")
		wantSame(t, "calls that returned", len(calls[0])+len(calls[1]), 0)
		s.broker.SetAlarm("")
		for _, call := range calls {
			wantResponse(t, <-call, "waits")
		}
		s.wait()
		s.wantReconnects(0)
		wantSame(t, "warnings", strings.Join(s.warnings(), ", "), "broker blocks publishing")
	})
}

// Each client and server has its own limit of the size of a message.
func TestLimitsOfEachUserOfAConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 1, handlers{"echo": echo, "much": func(context.Context, *Request) ([]byte, error) {
			return make([]byte, 1000), nil
		}})
		small := s.client(0, WithMaxMessageSize(100))
		_, err := small.Call(within(t, time.Minute), "much", nil)
		wantSame(t, "code with the smaller limit", CodeOf(err), CodeResourceExhausted)
		wantIs(t, err, ErrTooLarge)
		if response, err := s.clients[0].Call(within(t, time.Minute), "much", nil); err != nil || len(response) != 1000 {
			t.Errorf("without the smaller limit: %d bytes, %v", len(response), err)
		}
	})
}

// A server counts the bodies of its requests, also over several sessions of a link.
func TestBytesInHandOfAServerOnAConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		s := openShop(t, 1, handlers{"hold": func(context.Context, *Request) ([]byte, error) {
			<-hold
			return nil, nil
		}})
		calls := s.clients[0].Go(within(t, time.Hour), "hold", make([]byte, 500))
		settle()
		held := func() int64 { return s.servers[0].cfg.inHand.Held.Load() }
		wantSame(t, "held while the request runs", held(), 500)
		s.broker.With(func(b *brokertest.Broker) {
			q := b.Queues[queueOf(0)]
			q.Consumers[0].Except(&amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out"})
		})
		s.wait()
		close(hold)
		<-calls.Done()
		pass(time.Second)
		wantSame(t, "held after the request", held(), 0)
	})
}

func TestOptionsOfAConnection(t *testing.T) {
	t.Parallel()
	_, err := Connect("amqp://", WithHeartbeat(time.Millisecond), nil, WithName(strings.Repeat("n", 300)))
	wantTexts(t, err, "amqpx: connection: ", "option 2 is nil", "broker URLs", "heartbeat 1ms", "WithName")
	conn := connectTo(t, brokertest.New())
	_, err = conn.NewClient(WithTimeout(time.Second), WithTLS(nil), WithLogger(nil))
	wantTexts(t, err, "option 2 belongs to the connection: pass it to Connect")
	_, err = conn.NewServer(WithBackoff(time.Second, time.Second), WithQueue(Queue{Name: "amq.q"}))
	wantTexts(t, err, "option 1 belongs to the connection", `queue name "amq.q"`)
	for name, call := range map[string]func(*Connection) error{
		"NewClient": func(c *Connection) error { _, err := c.NewClient(); return err },
		"NewServer": func(c *Connection) error { _, err := c.NewServer(); return err },
		"WaitReady": func(c *Connection) error { return c.WaitReady(t.Context()) },
		"Shutdown":  func(c *Connection) error { return c.Shutdown(t.Context()) },
		"Close":     func(c *Connection) error { return c.Close(t.Context()) },
	} {
		for _, c := range []*Connection{nil, {}} {
			if err := call(c); !errors.Is(err, errNoConnection) || CodeOf(err) != CodeInvalidArgument {
				t.Errorf("%s of a Connection not made by Connect: %v", name, err)
			}
		}
	}
	wantSame(t, "state of a Connection not made by Connect", (*Connection)(nil).Status().State, StateClosed)
	if err := conn.Shutdown(nil); !errors.Is(err, errNilContext) { //nolint:staticcheck // the test is about it.
		t.Errorf("Shutdown(nil): %v", err)
	}
}

// The function of WithDialer opens every network connection, and its error is the fault.
func TestDialerOfTheProgram(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		dialer := WithDialer(func(ctx context.Context, network, address string) (net.Conn, error) {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("the context has no deadline")
			}
			asked = append(asked, network+" "+address)
			return nil, errors.New("the proxy refuses")
		})
		conn, err := Connect("amqp://app:secret@broker.test", dialer, WithBackoff(time.Second, time.Second))
		if err != nil {
			t.Fatal(err)
		}
		client, err := conn.NewClient()
		if err != nil {
			t.Fatal(err)
		}
		err = client.WaitReady(within(t, time.Minute))
		wantTexts(t, err, "the proxy refuses", "connect: no connection")
		wantSame(t, "fault", FaultOf(err), FaultUnreachable)
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if len(asked) < 2 {
			t.Errorf("asked %d times in a minute", len(asked))
		}
		for _, what := range asked {
			wantSame(t, "asked for", what, "tcp broker.test:5672")
		}
	})
}

// Many clients that close at once have more channels than a mux may give up.
func TestManyClientsCloseAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openShop(t, 1, handlers{"echo": echo})
		var all []*Client
		for range 40 {
			all = append(all, s.client(0))
		}
		for _, c := range all {
			ready(t, c.WaitReady)
		}
		if err := forEach(all, func(c *Client) error { return c.Close(t.Context()) }); err != nil {
			t.Error(err)
		}
		s.callAll()
		s.wantReconnects(0)
		wantSame(t, "dials", s.dials(), 2)
	})
}
