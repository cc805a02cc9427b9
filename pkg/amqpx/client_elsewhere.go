package amqpx

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Servers of one queue may have different methods, as while a deployment rolls on. A call
// that a server refused as unimplemented, and that did not run, is sent again, alone, until
// it comes to a server that has the method, or all of them have refused it. Servers name
// themselves in such a refusal (rpc-server), so that the client can count them. This costs
// no retry budget, and is bounded.

const (
	// elsewhereMax bounds the tries of a call at servers that name themselves, of which a
	// call under load meets the same ones again.
	elsewhereMax = 64
	// elsewhereNameless bounds the tries at servers that do not name themselves: twice for
	// each, and at most so often.
	elsewhereNameless = 8
	// elsewhereWaitMax bounds the wait before a try, which doubles from 1 ms.
	elsewhereWaitMax = 64 * time.Millisecond
	// nowhereFor is how long a method that no server has is known as that.
	nowhereFor = time.Second
	// nowhereMost bounds how many of these are remembered.
	nowhereMost = 1024
)

// nowhere remembers the methods that no server had a moment ago. Safe for concurrent use.
type nowhere struct {
	mu     sync.Mutex
	until  map[string]time.Time
	warned loggedNames
}

// has reports whether no server had the method a moment ago.
func (n *nowhere) has(method string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Before(n.until[method])
}

// add notes that no server has the method, and reports whether that is news.
func (n *nowhere) add(method string) (first bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.until == nil || len(n.until) >= nowhereMost {
		n.until = make(map[string]time.Time)
	}
	n.until[method] = time.Now().Add(nowhereFor)
	return n.warned.add(method)
}

// loggedNames are the names that a log line was written for, of a bounded number, since
// they come from outside. Its zero value is ready.
type loggedNames struct{ names map[string]bool }

// loggedNamesMax bounds the names that get a log line.
const loggedNamesMax = 100

// add notes a name and reports whether it is to be logged.
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

// mayTryElsewhere decides whether a call that a server refused as unimplemented is tried at
// another one, after a wait.
func (c *Client) mayTryElsewhere(k *call, gone <-chan struct{}) (wait time.Duration, ok bool) {
	if id := k.refusal.server; id != "" && !slices.Contains(k.refusers, id) {
		k.refusers = append(k.refusers, id)
	}
	k.elsewhere++
	if c.nowhere.has(k.req.Method) {
		return 0, false
	}
	if last := c.watch.last(); last.consumers < 2 && time.Since(last.at) > lookSoonest { // a second one may have come
		_, _ = k.awaitLook(gone) // an event that ends the call is told to its next round too
	}
	servers := c.watch.last().consumers
	tries := min(2*servers, elsewhereNameless)
	if len(k.refusers) > 0 {
		tries = elsewhereMax
	}
	if servers < 2 || len(k.refusers) >= servers || k.elsewhere >= tries {
		if c.nowhere.add(k.req.Method) {
			c.cfg.logger.Warn("no server has the method", zap.String("method", truncate(k.req.Method, maxShortString)),
				zap.String("queue", k.route.queue), zap.Int("servers", servers))
		}
		return 0, false
	}
	most := min(time.Millisecond<<min(k.elsewhere-1, 16), elsewhereWaitMax)
	wait = 1 + rand.N(most) //nolint:gosec // spreads load, guards nothing.
	return wait, time.Until(k.deadline) > wait
}
