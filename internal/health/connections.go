package health

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConnections bounds the connections to the HTTP server. A scraper and the probes of an
// orchestrator need a handful.
const maxConnections = 100

// connections bounds the connections of an HTTP server: one too many takes the place of the
// one that has waited longest for a request, and is closed itself if all of them are being
// answered. So connections that are only held open keep no probe out. Safe for concurrent use.
type connections struct {
	most int

	mu   sync.Mutex
	open map[net.Conn]time.Time // since when it waits for a request; zero: it is being answered
}

func newConnections(most int) *connections {
	return &connections{most: most, open: make(map[net.Conn]time.Time)}
}

// note is a hook for [http.Server.ConnState].
func (c *connections) note(conn net.Conn, state http.ConnState) {
	if tooMany := c.change(conn, state); tooMany != nil {
		_ = tooMany.Close() // its state changes then, which comes back here
	}
}

// change keeps the state of a connection and returns one that must be closed, or nil.
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

// longestWaiting returns the connection that has waited longest for a request, or the other
// one if none waits.
func (c *connections) longestWaiting(other net.Conn) net.Conn {
	longest, since := other, time.Time{}
	for conn, waits := range c.open {
		if !waits.IsZero() && (since.IsZero() || waits.Before(since)) {
			longest, since = conn, waits
		}
	}
	return longest
}
