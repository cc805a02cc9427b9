package health

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConnections is the maximum number of connections to the HTTP server. A scraper and an
// orchestrator's probes need a handful.
const maxConnections = 100

// connections limits the connections of an HTTP server. A connection beyond the limit replaces
// the connection that has waited longest for a request; if every connection has a request in
// progress, the new connection is closed. Therefore idle connections cannot lock out probes.
// connections is safe for concurrent use.
type connections struct {
	most int

	mu   sync.Mutex
	open map[net.Conn]time.Time // start of the wait for a request; zero: a request is in progress
}

func newConnections(most int) *connections {
	return &connections{most: most, open: make(map[net.Conn]time.Time)}
}

// note is a hook for [http.Server.ConnState].
func (c *connections) note(conn net.Conn, state http.ConnState) {
	if tooMany := c.change(conn, state); tooMany != nil {
		_ = tooMany.Close() // this changes its state, which calls note again
	}
}

// change records the state of a connection and returns a connection to close, or nil.
func (c *connections) change(conn net.Conn, state http.ConnState) (tooMany net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(c.open) >= c.most {
			tooMany = c.longestWaiting(conn)
			delete(c.open, tooMany)
		}
		if tooMany != conn {
			c.open[conn] = time.Now()
		}
		return tooMany
	case http.StateIdle:
		if _, ok := c.open[conn]; ok {
			c.open[conn] = time.Now()
		}
	case http.StateActive:
		if _, ok := c.open[conn]; ok {
			c.open[conn] = time.Time{}
		}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
	return nil
}

// longestWaiting returns the connection that has waited longest for a request, or other if
// every connection has a request in progress.
func (c *connections) longestWaiting(other net.Conn) net.Conn {
	longest, since := other, time.Time{}
	for conn, waits := range c.open {
		if !waits.IsZero() && (since.IsZero() || waits.Before(since)) {
			longest, since = conn, waits
		}
	}
	return longest
}
