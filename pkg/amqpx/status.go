package amqpx

import (
	"context"
	"errors"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// State is the state of a client's or server's connection to the broker.
type State uint8

const (
	// StateConnecting: an attempt to dial and set up is under way.
	StateConnecting State = iota
	// StateReady: dialed, topology declared, consumers active.
	StateReady
	// StateBlocked: ready, but the broker blocks publishing because of an alarm.
	StateBlocked
	// StateReconnecting: the last attempt failed or the connection was lost; the next attempt
	// follows after a backoff.
	StateReconnecting
	// StateDraining: a server has stopped consuming and finishes the requests it has started.
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

// Status is a snapshot of a connection. It never holds a password.
type Status struct {
	// State is the state of the connection.
	State State
	// Err is the last failure; nil while ready. It is kept while reconnecting.
	Err error
	// Fault is the kind of Err, for programs; "" while ready. After attempts at several nodes
	// it is the first fault that needs an operator, or else the fault of the node where the
	// attempt got furthest.
	Fault FaultKind
	// Reason is the broker's text while blocked, such as "low on memory". While a client is
	// ready, Reason describes the fault of the request queue, as far as the client's calls
	// noticed a fault.
	Reason string
	// Broker is the address (host:port) of the current or last broker.
	Broker string
	// Generation counts the sessions that became ready; the first is 1.
	Generation uint64
	// Since is when the state was entered.
	Since time.Time
}

// Ready reports whether calls can flow: the connection is ready and not blocked.
func (s Status) Ready() bool { return s.State == StateReady }

// statusBoard holds the current Status and notifies watchers of changes. Its zero value is
// ready to use.
type statusBoard struct {
	mu       sync.Mutex
	current  Status
	blocked  time.Duration // in total, without the current state
	watchers map[chan Status]struct{}
}

// get returns the current status.
func (b *statusBoard) get() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current
}

// update changes the status and offers the new status to every watcher. Closed is final, and
// after draining only closed follows: a new connection for the delivery of the last responses
// does not make the server ready again.
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

// OnConnecting implements transport.Observer.
func (b *statusBoard) OnConnecting(address string) {
	b.update(func(s *Status) { s.State, s.Broker, s.Reason = StateConnecting, address, "" })
}

// OnReady implements transport.Observer.
func (b *statusBoard) OnReady(generation uint64, blocked func() bool) {
	b.update(func(s *Status) {
		s.State, s.Err, s.Fault, s.Generation = StateReady, nil, "", generation
		if blocked() {
			s.State = StateBlocked
		}
	})
}

// OnBlocked implements transport.Observer.
func (b *statusBoard) OnBlocked(blocking amqp.Blocking) {
	b.update(func(s *Status) {
		s.Reason = blocking.Reason // also for a session in set-up
		switch {
		case blocking.Active && s.State == StateReady:
			s.State = StateBlocked
		case !blocking.Active && s.State == StateBlocked:
			s.State = StateReady
		}
	})
}

// OnFault implements transport.Observer.
func (b *statusBoard) OnFault(err error, kind FaultKind) {
	b.update(func(s *Status) { s.State, s.Err, s.Fault, s.Reason = StateReconnecting, err, kind, "" })
}

// OnClosed implements transport.Observer.
func (b *statusBoard) OnClosed() { b.update(func(s *Status) { s.State = StateClosed }) }

// waitReady waits until the state is StateReady. If ctx ends first, it returns the error of
// ctx joined with the last fault. It returns ErrClosed when the state is closed or draining.
func (b *statusBoard) waitReady(ctx context.Context) error {
	updates, stop := b.watch()
	defer stop()
	for {
		select {
		case st := <-updates:
			switch {
			case st.Ready():
				return nil
			case st.State == StateClosed || st.State == StateDraining:
				return ErrClosed
			}
		case <-ctx.Done():
			return errors.Join(ctx.Err(), b.get().Err)
		}
	}
}

// noStatus is a transport.Observer without effect.
type noStatus struct{}

func (noStatus) OnConnecting(string)         {}
func (noStatus) OnReady(uint64, func() bool) {}
func (noStatus) OnBlocked(amqp.Blocking)     {}
func (noStatus) OnFault(error, FaultKind)    {}
func (noStatus) OnClosed()                   {}

// blockedFor returns how long the broker has blocked publishing, in total.
func (b *statusBoard) blockedFor() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current.State == StateBlocked {
		return b.blocked + time.Since(b.current.Since)
	}
	return b.blocked
}

// watch registers a watcher, which receives the current status at once.
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

// offer puts the newest value into a single-slot channel and never blocks: an unread value is
// replaced. Only one goroutine at a time offers (it holds the board's lock), so the second
// send always finds the slot free.
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
