package xsync

import (
	"sync"
	"sync/atomic"
)

// Gate counts the visits under way, and can be shut for further visits. Entering and leaving cost
// one atomic operation each. The zero value is open. Safe for concurrent use.
type Gate struct {
	state atomic.Int64 // the number of visits, plus gateShut after Shut
	mu    sync.Mutex
	empty chan struct{} // made by Shut, closed when nobody is inside
}

// gateShut is larger than any number of visits.
const gateShut = 1 << 62

// Enter begins a visit, which ends with Leave. It returns false if the gate is shut.
func (g *Gate) Enter() bool {
	if g.state.Add(1) < gateShut {
		return true
	}
	g.Leave()
	return false
}

// Leave ends a visit.
func (g *Gate) Leave() {
	if g.state.Add(-1) == gateShut {
		g.signal()
	}
}

// Shut refuses further visits. The returned channel is closed when nobody is inside. Shut may be
// called several times.
func (g *Gate) Shut() <-chan struct{} {
	g.mu.Lock()
	if g.empty == nil {
		g.empty = make(chan struct{})
		g.state.Add(gateShut)
	}
	g.mu.Unlock()
	if g.state.Load() == gateShut {
		g.signal()
	}
	return g.empty
}

// signal closes empty, once.
func (g *Gate) signal() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.empty:
	default:
		close(g.empty)
	}
}
