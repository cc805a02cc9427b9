package amqpx

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// A node on the wrong side of a cluster's partition, such as a node that was suspended for a
// while, keeps its connections open and answers everything it can answer alone. A client of
// this node is ready, and none of its calls gets a response, while the other nodes serve.
// Therefore a client that knows several nodes and receives no response asks whether servers
// answer, first on its own node, then on the others, and moves to a node where servers answer.

const (
	// unansweredFirst, unansweredGrowth and maxUnansweredPause bound the time without a
	// response before the client asks. The time grows with each question until a response
	// arrives: a client without any servers asks less and less often, and a client that has
	// left a node in vain stays longer.
	unansweredFirst    = 10 * time.Second
	unansweredGrowth   = 3
	maxUnansweredPause = 5 * time.Minute
	// unansweredCalls is the number of calls that must have failed without a response
	// meanwhile.
	unansweredCalls = 3
	// unansweredCheck is the pause between two checks of these bounds.
	unansweredCheck = time.Second
	// servedLimit is the time limit for the answers of servers, and of a node.
	servedLimit = 3 * time.Second
)

// unanswered has the state of a client's check for calls without a response.
type unanswered struct {
	failed atomic.Int64  // calls since the last response
	wait   time.Duration // until the next question; used only by checkAnswered
}

// noteUnanswered counts a call that failed without a response, judged by its code.
func (c *Client) noteUnanswered(err error) {
	switch c.codeOf(err) {
	case CodeDeadlineExceeded, CodeUnavailable:
		c.unanswered.failed.Add(1)
	default:
	}
}

// otherNodes returns the nodes of the client's list other than the session's node, in random
// order.
func (c *Client) otherNodes(s *transport.Session) []transport.Target {
	var others []transport.Target
	for _, i := range rand.Perm(len(c.sup.Brokers)) { //nolint:gosec // spreads load, guards nothing.
		if t := c.sup.Brokers[i]; t.Address != s.Target.Address {
			others = append(others, t)
		}
	}
	return others
}

// checkAnswered ends the session when its calls get no response for a while although servers
// answer by way of another node.
func (c *Client) checkAnswered(s *transport.Session) {
	tick := time.NewTicker(unansweredCheck)
	defer tick.Stop()
	u := &c.unanswered
	since, confirmed := time.Now(), time.Time{}
	u.failed.Store(0)
	for {
		select {
		case <-tick.C:
		case <-s.Done:
			return
		}
		if s.Confirmed.Swap(false) {
			confirmed = time.Now()
		}
		if s.Answered.Swap(false) {
			since, u.wait = time.Now(), unansweredFirst
			u.failed.Store(0)
			continue
		}
		if time.Since(since) < u.wait || u.failed.Load() < unansweredCalls || s.Flow.Unblocked() != nil {
			continue
		}
		if !c.isServed(s, confirmed.After(since.Add(unansweredFirst/2))) {
			u.wait = min(unansweredGrowth*u.wait, maxUnansweredPause)
			if address, ok := c.servedElsewhere(s); ok {
				s.Fail(&transport.ServedElsewhereError{Address: address})
				return
			}
		}
		since = time.Now()
		u.failed.Store(0)
	}
}

// isServed reports whether servers receive the client's requests. Either a server answers a
// ping, which slow handlers do not prevent, or, with servers that do not know pings, the
// broker confirms requests and the queue has consumers. A node without a majority may still
// list consumers, and confirms nothing.
func (c *Client) isServed(s *transport.Session, confirmed bool) bool {
	ctx, cancel := withinSession(s, servedLimit)
	defer cancel()
	if c.isPinged(ctx, s.Pub) {
		return true
	}
	n, err := c.Consumers(ctx)
	return err == nil && n > 0 && confirmed
}

// withinSession returns a context that ends with the session, or after a while.
func withinSession(s *transport.Session, most time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), most) //nolint:forbidigo // a session lives beyond any caller's context.
	s.Run(func() {                                                 // ends with the context at the latest
		select {
		case <-s.Done:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, cancel
}

// isPinged reports whether a server answers a ping over a connection.
func (c *Client) isPinged(ctx context.Context, l transport.Conn) (answered bool) {
	if !c.cfg.control {
		return false
	}
	_ = c.askThrough(ctx, l, wire.ControlPing, nil, func(*ServerInfo) (more bool) {
		answered = true
		return false
	})
	return answered
}

// servedElsewhere returns the address of another node where servers answer, or where the
// request queue has consumers.
func (c *Client) servedElsewhere(s *transport.Session) (address string, ok bool) {
	for _, t := range c.otherNodes(s) {
		if c.servesAt(s, t) {
			return t.Address, true
		}
		if s.Ended() {
			break
		}
	}
	return "", false
}

// servesAt asks a node on a new connection.
func (c *Client) servesAt(s *transport.Session, t transport.Target) bool {
	ctx, cancel := withinSession(s, min(c.cfg.dialTimeout, 2*servedLimit))
	defer cancel()
	l, err := c.cfg.dialer.Dial(ctx, t.URL, c.cfg.name+" client look")
	if err != nil {
		return false
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, l.Cut)
	defer stop()
	pinging, over := context.WithTimeout(ctx, servedLimit)
	defer over()
	if c.isPinged(pinging, l) {
		return true
	}
	consumers := 0
	_ = transport.WithTempChannel(l, func(ch transport.Channel) error {
		q, err := ch.QueueDeclarePassive(c.route.queue, true, false, false, false, nil)
		consumers = q.Consumers
		return err
	})
	return consumers > 0
}

// Servers of one queue may have different methods, for example during a rolling deployment. A
// call that was refused as unimplemented and did not run is sent again, alone, until a server
// has the method or all servers have refused the call. Servers name themselves in such a
// refusal (rpc-server), so that the client can count the servers. These attempts use no retry
// budget, and are bounded.

const (
	// elsewhereMax bounds a call's tries at servers that name themselves. Under load a call
	// meets the same servers again.
	elsewhereMax = 64
	// elsewhereNameless bounds the tries at servers that do not name themselves: two tries for
	// each server, and at most elsewhereNameless in total.
	elsewhereNameless = 8
	// elsewhereWaitMax bounds the wait before a try, which doubles from 1 ms.
	elsewhereWaitMax = 64 * time.Millisecond
	// nowhereFor is how long a missing method is remembered.
	nowhereFor = time.Second
	// maxMissingMethods bounds the number of remembered missing methods.
	maxMissingMethods = 1024
)

// nowhere remembers the methods missing on all servers. Safe for concurrent use.
type nowhere struct {
	mu     sync.Mutex
	until  map[string]time.Time
	warned loggedNames
}

// has reports whether the method was recently missing on all servers.
func (n *nowhere) has(method string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Before(n.until[method])
}

// add records a method that no server has, and reports whether the log line is due.
func (n *nowhere) add(method string) (first bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.until == nil || len(n.until) >= maxMissingMethods {
		n.until = make(map[string]time.Time)
	}
	n.until[method] = time.Now().Add(nowhereFor)
	return n.warned.add(method)
}

// loggedNames has the names that were logged. Their number is bounded, because the names come
// from other programs. The zero value is ready to use.
type loggedNames struct{ names map[string]bool }

// loggedNamesMax bounds the logged names.
const loggedNamesMax = 100

// add records a name and reports whether to log the name.
func (l *loggedNames) add(name string) bool {
	if l.names[name] || len(l.names) >= loggedNamesMax {
		return false
	}
	if l.names == nil {
		l.names = make(map[string]bool)
	}
	l.names[name] = true
	return true
}

// mayTryElsewhere decides whether a call refused as unimplemented is sent to another server,
// after a wait.
func (c *Client) mayTryElsewhere(k *call, gone <-chan struct{}) (wait time.Duration, ok bool) {
	if id := k.refusal.server; id != "" && !slices.Contains(k.refusers, id) {
		k.refusers = append(k.refusers, id)
	}
	k.elsewhere++
	if c.nowhere.has(k.req.Method) {
		return 0, false
	}
	if last := c.watch.last(); last.consumers < 2 && time.Since(last.at) > lookSoonest { // a second server may have started
		_, _ = k.awaitLook(gone) // an event that ends the call stays unread, for the next round
	}
	servers := c.watch.last().consumers
	tries := min(2*servers, elsewhereNameless)
	if len(k.refusers) > 0 {
		tries = elsewhereMax
	}
	if servers < 2 || len(k.refusers) >= servers || int(k.elsewhere) >= tries {
		if c.nowhere.add(k.req.Method) {
			c.cfg.logger.Warn("no server has the method", zap.String("method", wire.Truncate(k.req.Method, wire.MaxShortString)),
				zap.String("queue", k.route.queue), zap.Int("servers", servers))
		}
		return 0, false
	}
	most := min(time.Millisecond<<min(k.elsewhere-1, 16), elsewhereWaitMax)
	wait = 1 + rand.N(most) //nolint:gosec // spreads load, guards nothing.
	return wait, time.Until(k.deadline) > wait
}
