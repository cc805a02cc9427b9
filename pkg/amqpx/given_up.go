package amqpx

import (
	"slices"
	"time"
)

const (
	// mostGivenUp and givenUpAge bound how many calls that were given up are kept in
	// mind, and for how long: their requests may still be on their way here.
	mostGivenUp = 4096
	givenUpAge  = 5 * time.Minute
)

// givenUp remembers the calls whose callers gave up and that do not run here. Its zero
// value is empty. The lock of executions guards it.
type givenUp struct {
	ids   map[string]bool
	ring  []string // the same in the order they are forgotten
	next  int
	since time.Time // the last one
}

// remember keeps a call in mind.
func (g *givenUp) remember(id string, now time.Time) {
	if g.ids[id] {
		return
	}
	if g.ids == nil {
		g.ids = make(map[string]bool)
	}
	g.ids[id], g.since = true, now
	if len(g.ring) < mostGivenUp {
		g.ring = append(g.ring, id)
		return
	}
	delete(g.ids, g.ring[g.next])
	g.ring[g.next] = id
	g.next = (g.next + 1) % mostGivenUp
}

// forgive reports whether a call was given up, and has it forgotten.
func (g *givenUp) forgive(id string, now time.Time) bool {
	if len(g.ids) == 0 {
		return false
	}
	if now.Sub(g.since) > givenUpAge {
		*g = givenUp{}
		return false
	}
	gone := g.ids[id]
	delete(g.ids, id)
	return gone
}

// cancel gives up a call of a method. If it runs, and nobody else waits for it, it
// returns the execution, whose context is to end then.
func (e *executions) cancel(m *serverMethod, key, id string) *execution {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := m.known[key]
	if x != nil && x.stored {
		return nil
	}
	if x == nil || !x.lose(id) { // its request may still come
		e.remember(id, time.Now())
		return nil
	}
	if x.canceled || x.isWanted() {
		return nil
	}
	x.canceled = true
	return x
}

// lose marks the jobs of a call that was given up, and reports whether there are any.
func (x *execution) lose(id string) (found bool) {
	for _, j := range append([]*job{x.job}, x.others...) {
		if j.in.CorrelationID == id {
			found, j.canceled = true, true
		}
	}
	return found
}

// isWanted reports whether anybody waits for the execution.
func (x *execution) isWanted() bool {
	return !x.job.canceled || slices.ContainsFunc(x.others, func(j *job) bool { return !j.canceled })
}
