package amqpx

import (
	"sync"
	"time"
)

// State is where a client's or server's link to the broker stands.
type State uint8

const (
	// StateConnecting: an attempt to dial and set up is under way.
	StateConnecting State = iota
	// StateReady: dialed, topology declared, consumers active.
	StateReady
	// StateBlocked: ready, but the broker blocks publishing because of an alarm.
	StateBlocked
	// StateReconnecting: the last attempt failed or the link was lost; the next
	// attempt follows after a backoff.
	StateReconnecting
	// StateDraining: a server stopped consuming and finishes what it began.
	StateDraining
	// StateClosed: closed for good.
	StateClosed
)

// String returns the state's name in lower case.
func (s State) String() string {
	switch s {
	case StateConnecting:
		return "connecting"
	case StateReady:
		return "ready"
	case StateBlocked:
		return "blocked"
	case StateReconnecting:
		return "reconnecting"
	case StateDraining:
		return "draining"
	case StateClosed:
		return "closed"
	default:
		return "unknown"
	}
}

// Status is a snapshot of a link. It never holds a password.
type Status struct {
	// State is where the link stands.
	State State
	// Err is the last failure; nil while ready. It stays while reconnecting.
	Err error
	// Fault is the kind of Err, for programs; "" while ready. Where several nodes were tried,
	// it is the first one that needs an operator, or else the one of the node that came furthest.
	Fault FaultKind
	// Reason is the broker's text while blocked, such as "low on memory". While a client is
	// ready it says what is wrong with the request queue, as far as its calls noticed.
	Reason string
	// Broker is the address (host:port) of the current or last broker.
	Broker string
	// Generation counts the links that became ready; the first is 1.
	Generation uint64
	// Since is when the state was entered.
	Since time.Time
}

// Ready reports whether calls can flow: ready and not blocked.
func (s Status) Ready() bool { return s.State == StateReady }

// statusBoard holds the current Status and tells watchers of changes. Its zero
// value is ready to use.
type statusBoard struct {
	mu       sync.Mutex
	current  Status
	blocked  time.Duration // all times before the current state
	watchers map[chan Status]struct{}
}

// get returns the current status.
func (b *statusBoard) get() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current
}

// update changes the status and offers it to every watcher. Closed is final, and
// after draining only closed follows: a link that comes back to deliver the last
// answers does not make the server ready again.
func (b *statusBoard) update(change func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current.State == StateClosed {
		return
	}
	before := b.current.State
	change(&b.current)
	if before == StateDraining && b.current.State != StateClosed {
		b.current.State = StateDraining
	}
	if b.current.State != before || b.current.Since.IsZero() {
		now := time.Now()
		if before == StateBlocked {
			b.blocked += now.Sub(b.current.Since)
		}
		b.current.Since = now
	}
	for w := range b.watchers {
		offer(w, b.current)
	}
}

// blockedFor returns how long the broker has blocked publishing.
func (b *statusBoard) blockedFor() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current.State == StateBlocked {
		return b.blocked + time.Since(b.current.Since)
	}
	return b.blocked
}

// watch registers a watcher, which at once receives the current status.
func (b *statusBoard) watch() (<-chan Status, func()) {
	w := make(chan Status, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watchers == nil {
		b.watchers = make(map[chan Status]struct{})
	}
	b.watchers[w] = struct{}{}
	w <- b.current
	return w, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watchers, w)
	}
}

// offer puts the newest value into a single-slot channel without ever blocking:
// a value that was not taken yet is replaced. Only one goroutine at a time offers
// (the board's lock), so the second send always finds the slot free.
func offer(w chan Status, s Status) {
	select {
	case <-w:
	default:
	}
	select {
	case w <- s:
	default:
	}
}
