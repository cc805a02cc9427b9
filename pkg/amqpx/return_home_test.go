package amqpx

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

const (
	twoNodes    = "amqp://app:secret@a.test:5672/,amqp://app:secret@b.test:5672/"
	returnAfter = 10 * time.Minute
)

// twoNodeCluster is a cluster of the nodes a and b: both are addresses of one broker.
type twoNodeCluster struct {
	*brokertest.Broker

	mu    sync.Mutex
	down  string // the address of a node that accepts no connection
	conns map[string][]*brokertest.Conn
	// meet, if not nil, makes the first two checks by servers end at the same moment.
	meet   chan struct{}
	checks atomic.Int32
	// partitioned, if not nil, is the broker at the address down: a node without the queue.
	partitioned *brokertest.Broker
}

func newTwoNodeCluster() *twoNodeCluster {
	return &twoNodeCluster{Broker: brokertest.New(), conns: make(map[string][]*brokertest.Conn)}
}

// Dial implements transport.Dialer.
func (c *twoNodeCluster) Dial(ctx context.Context, url, name string) (transport.Conn, error) {
	if strings.HasSuffix(name, "server check") && c.meet != nil {
		switch c.checks.Add(1) {
		case 1:
			<-c.meet
		case 2:
			close(c.meet)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	node := "a.test:5672"
	if strings.Contains(url, "b.test") {
		node = "b.test:5672"
	}
	if node == c.down {
		if c.partitioned != nil {
			return c.partitioned.Dial(ctx, url, name)
		}
		return nil, brokertest.ErrCut
	}
	l, err := c.Broker.Dial(ctx, url, name)
	if conn, ok := l.(*brokertest.Conn); ok {
		c.conns[node] = append(c.conns[node], conn)
	}
	return l, err
}

func (c *twoNodeCluster) applyClient(cfg *clientConfig) { cfg.dialer = c }
func (c *twoNodeCluster) applyServer(cfg *serverConfig) { cfg.dialer = c }

// lose ends a node.
func (c *twoNodeCluster) lose(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = node
	c.With(func(*brokertest.Broker) {
		for _, l := range c.conns[node] {
			l.End(nil)
		}
	})
	c.conns[node] = nil
}

// regain starts the node again.
func (c *twoNodeCluster) regain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = ""
}

// client starts a client of both nodes.
func (c *twoNodeCluster) client(t *testing.T, opts ...ClientOption) *Client {
	t.Helper()
	client, err := NewClient(twoNodes, append([]ClientOption{c, WithReturnHome(returnAfter)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(within(t, time.Minute)) })
	ready(t, client.WaitReady)
	return client
}

// server starts a server of both nodes.
func (c *twoNodeCluster) server(t *testing.T, h Handler, opts ...ServerOption) *running {
	t.Helper()
	s, err := NewServer(twoNodes, append([]ServerOption{c}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Handle("m", h); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Server: s, stop: stop, result: make(chan error, 1)}
	go func() { r.result <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		_ = r.wait(t)
	})
	ready(t, r.WaitReady)
	return r
}

// callEvery makes a call that is not idempotent every pause for the duration d, and returns the
// number of calls and of those that failed.
func callEvery(t *testing.T, c *Client, pause, d time.Duration) (calls, failed int64) {
	t.Helper()
	var bad atomic.Int64
	var all sync.WaitGroup
	for begun := time.Now(); time.Since(begun) < d; pass(pause) {
		calls++
		all.Go(func() {
			if _, err := c.Call(t.Context(), "m", []byte("x")); err != nil {
				bad.Add(1)
				t.Log(err)
			}
		})
	}
	all.Wait()
	return calls, bad.Load()
}

// slowEcho is a handler with work in hand at every moment.
func slowEcho(ctx context.Context, req *Request) ([]byte, error) {
	select {
	case <-time.After(2 * time.Second):
		return req.Body, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A client returns to its home node after the node's return, and no call fails by this, also
// without idempotence.
func TestClientReturnsHome(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 2} {
		t.Run(strconv.Itoa(shards)+" shards", func(t *testing.T) {
			t.Parallel()
			clientReturnsHome(t, shards)
		})
	}
}

func clientReturnsHome(t *testing.T, shards int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newTwoNodeCluster()
		c.server(t, slowEcho, WithReturnHome(0), WithShards(shards))
		c.server(t, slowEcho, WithReturnHome(0), WithShards(shards))
		client := c.client(t, WithShards(shards))
		home := client.Status().Broker
		c.lose(home)
		pass(10 * time.Second)
		if away := client.Status().Broker; away == home || !client.Status().Ready() {
			t.Fatalf("after the loss of %s the client is at %s", home, away)
		}
		c.regain()
		calls, failed := callEvery(t, client, 100*time.Millisecond, returnAfter/2-20*time.Second)
		if client.Status().Broker == home {
			t.Error("the client returned before half of the time")
		}
		more, also := callEvery(t, client, 100*time.Millisecond, returnAfter+time.Minute)
		wantSame(t, "the client is at home", client.Status().Broker, home)
		wantSame(t, "failed calls", failed+also, 0)
		wantSame(t, "reconnects", client.Stats().Reconnects, 2)
		t.Logf("%d calls", calls+more)
	})
}

// A server returns without a failed or repeated call, although it always has requests in hand.
func TestServerReturnsHome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTwoNodeCluster()
		var repeated atomic.Int64
		handler := func(ctx context.Context, req *Request) ([]byte, error) {
			if req.Redelivered {
				repeated.Add(1)
			}
			return slowEcho(ctx, req)
		}
		server := c.server(t, handler, WithReturnHome(returnAfter))
		home := server.Status().Broker
		other := c.server(t, handler, WithReturnHome(0))
		client := c.client(t, WithReturnHome(0))
		c.lose(home)
		pass(10 * time.Second)
		c.regain()
		_, failed := callEvery(t, client, 100*time.Millisecond, 3*returnAfter/2+time.Minute)
		wantSame(t, "the server is at home", server.Status().Broker, home)
		wantSame(t, "the server serves", server.Status().Ready() && server.Stats().OK > 0, true)
		wantSame(t, "failed calls", failed, 0)
		wantSame(t, "requests delivered again", repeated.Load(), 0)
		wantSame(t, "the other server stayed", other.Stats().Reconnects <= 1, true)
	})
}

// The only server of a queue does not return while it has requests, because calls would wait.
func TestOnlyServerReturnsHomeWhenIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTwoNodeCluster()
		server := c.server(t, slowEcho, WithReturnHome(returnAfter))
		client := c.client(t, WithReturnHome(0))
		home := server.Status().Broker
		c.lose(home)
		pass(10 * time.Second)
		c.regain()
		_, failed := callEvery(t, client, time.Second, 4*returnAfter)
		wantSame(t, "failed calls", failed, 0)
		if server.Status().Broker == home {
			t.Error("the server returned under load")
		}
		pass(2 * returnAfter)
		wantSame(t, "the server is at home", server.Status().Broker, home)
	})
}

// consumersOf returns the number of consumers of the request queue.
func (c *twoNodeCluster) consumersOf(queue string) (n int) {
	c.With(func(b *brokertest.Broker) { n = len(b.Queues[queue].Consumers) })
	return n
}

// notedEcho returns a handler that takes the duration d, and records whether a request was delivered
// again.
func notedEcho(d time.Duration, again *atomic.Int64) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		if req.Redelivered {
			again.Add(1)
		}
		select {
		case <-time.After(d):
			return req.Body, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// away starts two servers whose home node is down, and whose requests take the duration d, and makes calls
// until both have requests in hand. Then the home node is back.
func (c *twoNodeCluster) away(t *testing.T, d time.Duration, again *atomic.Int64) (servers [2]*running, home string, calls []<-chan result) {
	t.Helper()
	home = "b.test:5672"
	c.lose(home)
	for i := range servers {
		for servers[i] == nil {
			s := c.server(t, notedEcho(d, again), WithReturnHome(returnAfter), WithMaxHandlerTime(0), WithShards(2),
				WithBatch(BatchAuto), WithDialTimeout(2*returnAfter))
			if s.sup.Current().Home.Address == home {
				servers[i] = s
				continue
			}
			s.stop() // its home is the other node, at random
			_ = s.wait(t)
		}
	}
	client := c.client(t, WithReturnHome(0), WithShards(2))
	for servers[0].Stats().InFlight == 0 || servers[1].Stats().InFlight == 0 {
		calls = append(calls, goCall(client, within(t, 24*time.Hour), "m", []byte("x")))
		settle()
	}
	c.regain()
	return servers, home, calls
}

// isConsumed reports whether at least n consumers have the request queue, a shard and a batch queue.
func (c *twoNodeCluster) isConsumed(n int) bool {
	return c.consumersOf(DefaultQueue) >= n && c.consumersOf(shardName(1)) >= n && c.consumersOf(shardName(1)+batchSuffix) >= n
}

// longestPause lets the time d pass, and returns the longest time in which fewer than n servers consumed.
func (c *twoNodeCluster) longestPause(d time.Duration, n int) (longest time.Duration) {
	pause := time.Duration(0)
	for begun := time.Now(); time.Since(begun) < d; pass(time.Second) {
		if pause += time.Second; c.isConsumed(n) {
			pause = 0
		}
		longest = max(longest, pause)
	}
	return longest
}

// A server that cannot leave within the drain timeout, because its handlers take longer, consumes again
// and stays; it returns when it can. No call fails or runs twice.
func TestServerStaysIfItsHandlersTakeLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTwoNodeCluster()
		var again atomic.Int64
		servers, home, calls := c.away(t, 3*time.Hour, &again)
		if pause := c.longestPause(3*returnAfter, 2); pause == 0 || pause > DefaultDrainTimeout+2*time.Second {
			t.Errorf("one of the servers did not consume for %v, want about %v", pause, DefaultDrainTimeout)
		}
		for _, call := range calls {
			wantResponse(t, <-call, "x")
		}
		pass(4 * returnAfter)
		for _, server := range servers {
			wantSame(t, "the server's node", server.Status().Broker, home)
		}
		wantSame(t, "all queues are consumed", c.isConsumed(2), true)
		wantSame(t, "requests delivered again", again.Load(), 0)
	})
}

// Two servers that are about to leave at the same moment do not leave a queue without consumers.
func TestServersDoNotLeaveTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTwoNodeCluster()
		c.meet = make(chan struct{})
		var again atomic.Int64
		_, _, calls := c.away(t, 3*time.Hour, &again)
		if pause := c.longestPause(3*returnAfter, 1); pause > 2*leaveCheck {
			t.Errorf("no server consumed for %v", pause)
		}
		for _, call := range calls {
			wantResponse(t, <-call, "x")
		}
		wantSame(t, "requests delivered again", again.Load(), 0)
	})
}

// Processes that lost a node at the same moment return at different moments.
func TestReturnsAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const processes = 30
		c := newTwoNodeCluster()
		c.server(t, echo, WithReturnHome(0))
		var clients []*Client
		for range processes {
			clients = append(clients, c.client(t))
		}
		const node = "a.test:5672"
		atNode := func() (n int) {
			for _, client := range clients {
				if client.Status().Broker == node {
					n++
				}
			}
			return n
		}
		lost := atNode()
		c.lose(node)
		pass(10 * time.Second)
		c.regain()
		var home []int
		for range 16 {
			pass(returnAfter / 10)
			home = append(home, atNode())
		}
		t.Logf("at the node after each minute: %v", home)
		last := home[len(home)-1]
		if last != lost || home[3] != 0 {
			t.Errorf("at the node after each minute: %v, want none before 5 and all %d after 15", home, lost)
		}
		for i := 1; i < len(home); i++ {
			if step := home[i] - home[i-1]; last >= 8 && step > last*2/3 {
				t.Errorf("%d of %d returned within a minute", step, last)
			}
		}
	})
}

// A home node on the other side of a partition does not serve, and is left alone.
func TestNoReturnToANodeThatDoesNotServe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTwoNodeCluster()
		server := c.server(t, echo, WithReturnHome(returnAfter))
		c.server(t, echo, WithReturnHome(0))
		client := c.client(t)
		for name, status := range map[string]func() Status{"client": client.Status, "server": server.Status} {
			home := status().Broker
			c.lose(home)
			pass(10 * time.Second)
			c.mu.Lock()
			c.partitioned = brokertest.New()
			c.partitioned.With(func(b *brokertest.Broker) { _ = b.Declare(DefaultQueue, true, nil) })
			c.mu.Unlock()
			pass(5 * returnAfter)
			if at := status().Broker; at == home {
				t.Errorf("the %s returned to a node that does not serve", name)
			}
			c.mu.Lock()
			c.partitioned = nil
			c.mu.Unlock()
			c.regain()
			pass(2 * returnAfter)
			wantSame(t, name+" is at home", status().Broker, home)
		}
	})
}

// Responses by direct reply-to would be lost, so the client stays.
func TestClientWithDirectReplyToDoesNotReturn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTwoNodeCluster()
		client := c.client(t, WithReplyMode(ReplyDirect))
		home := client.Status().Broker
		c.lose(home)
		pass(10 * time.Second)
		c.regain()
		pass(4 * returnAfter)
		if client.Status().Broker == home {
			t.Error("the client returned")
		}
	})
}

// The name of the node is in the status, and in what a server tells about itself.
func TestNodeInTheStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.Node = "rabbit@a"
		server := startServer(t, b, handlers{"m": echo}, WithControl(true))
		client := startClient(t, b, WithControl(true))
		ready(t, server.WaitReady)
		ready(t, client.WaitReady)
		wantSame(t, "the client's node", client.Status().Node, "rabbit@a")
		servers, err := client.Servers(within(t, time.Minute))
		if err != nil || len(servers) != 1 {
			t.Fatalf("servers: %v, %v", servers, err)
		}
		wantSame(t, "the server's node", servers[0].Node, "rabbit@a")
		wantSame(t, "the server's broker", servers[0].Broker, "broker.test:5672")
	})
}
