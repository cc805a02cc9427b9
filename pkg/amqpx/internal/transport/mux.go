package transport

import (
	"context"
	"errors"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Mux is one pair of connections for the sessions of several clients and servers, or one
// connection if its configuration says so. Its supervisor dials, watches the connections and
// refreshes credentials; the sessions on the mux have channels of their own, and end and begin
// again without the mux (docs/adr/0028). Safe for concurrent use.
type Mux struct {
	sup    *Supervisor
	needed chan struct{} // closed at the first call of await
	once   sync.Once

	mu        sync.Mutex
	current   *Session // the last session that was ready
	brokers   []Target // the targets of the attempt that made current
	report    func(Observer)
	followers map[*follower]struct{}
	changed   chan struct{} // closed at the next session
}

// follower is a supervisor that waits for a session of the mux.
type follower struct{ Observer }

// NewMux returns a mux; Run starts it. The configuration's Observer receives what becomes of
// the connections; Setup is not used.
func NewMux(cfg Config) *Mux {
	l := &Mux{needed: make(chan struct{}), followers: make(map[*follower]struct{}), changed: make(chan struct{})}
	cfg.Setup = func(context.Context, *Session) error { return nil }
	cfg.Observer = &muxObserver{cfg.Observer, l}
	l.sup = NewSupervisor(cfg)
	return l
}

// Run keeps the connections alive until ctx ends.
func (l *Mux) Run(ctx context.Context) { l.sup.Run(ctx) }

// RunWhenNeeded is Run, from the moment a session first needs the mux.
func (l *Mux) RunWhenNeeded(ctx context.Context) {
	select {
	case <-l.needed:
		l.Run(ctx)
	case <-ctx.Done():
	}
}

// await waits for connections that are ready. Meanwhile the observer receives the faults of the
// mux and its attempts to connect. The error is that of ctx.
func (l *Mux) await(ctx context.Context, o Observer) (*Session, []Target, error) {
	l.once.Do(func() { close(l.needed) })
	f := &follower{o}
	defer l.unfollow(f)
	for {
		s, brokers, changed := l.follow(f)
		if s != nil {
			return s, brokers, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// follow returns the session of the mux if it is ready. Otherwise the follower receives the last
// report and those that follow, and the channel is closed at the next session.
func (l *Mux) follow(f *follower) (*Session, []Target, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.current; s != nil && !s.Ended() {
		return s, l.brokers, nil
	}
	if _, follows := l.followers[f]; !follows && l.report != nil {
		l.report(f.Observer)
	}
	l.followers[f] = struct{}{}
	return nil, nil, l.changed
}

func (l *Mux) unfollow(f *follower) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.followers, f)
}

// publish passes a report to every follower and keeps the report for later followers.
func (l *Mux) publish(report func(Observer)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report = report
	for f := range l.followers {
		report(f.Observer)
	}
}

// ready makes the supervisor's session the current session.
func (l *Mux) ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current, l.brokers = l.sup.Current(), l.sup.Brokers
	close(l.changed)
	l.changed = make(chan struct{})
}

// muxObserver is the Observer of a mux's supervisor.
type muxObserver struct {
	Observer

	mux *Mux
}

func (o *muxObserver) OnConnecting(address string) {
	o.Observer.OnConnecting(address)
	o.mux.publish(func(f Observer) { f.OnConnecting(address) })
}

func (o *muxObserver) OnReady(generation uint64, blocked func() bool) {
	o.Observer.OnReady(generation, blocked)
	o.mux.ready()
}

func (o *muxObserver) OnFault(err error, kind FaultKind) {
	o.Observer.OnFault(err, kind)
	o.mux.publish(func(f Observer) { f.OnFault(err, kind) })
}

// errMuxEnded is the end of a session with its mux. The mux reports the fault.
var errMuxEnded = errors.New("the mux has ended")

// join waits for the mux and sets a session up on its connections.
func (v *Supervisor) join(ctx context.Context) (*Session, error) {
	mux, brokers, err := v.Mux.await(ctx, v.Observer)
	if err != nil {
		return nil, err
	}
	v.Brokers = brokers
	v.Observer.OnConnecting(mux.Target.Address)
	if !v.awaitFlow(ctx, mux) {
		return nil, errMuxEnded
	}
	ctx, cancel := context.WithTimeout(ctx, v.DialTimeout)
	defer cancel()
	s, err := v.openOn(ctx, mux)
	if err == nil {
		err = v.prepare(ctx, s)
	}
	if err != nil && s.muxEnded() {
		return nil, errMuxEnded
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// awaitFlow waits until the broker reads from the publishing connection, because no channel can
// be opened before. It returns false if the mux or ctx has ended.
func (v *Supervisor) awaitFlow(ctx context.Context, mux *Session) bool {
	for {
		b, changed := mux.Flow.state()
		if !b.Active {
			return !mux.Ended()
		}
		v.Observer.OnBlocked(b)
		select {
		case <-changed:
		case <-mux.Done:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// openOn opens a session on the connections of a mux. The session is not nil; after an error it
// is closed.
func (v *Supervisor) openOn(ctx context.Context, mux *Session) (*Session, error) {
	s := newSession(mux.Target)
	s.Home, s.mux, s.Flow = mux.Target, mux, mux.Flow
	s.Pub = mux.share(mux.Pub, v.Limits)
	s.Sub = s.Pub
	shared := v.Shared || mux.Sub == mux.Pub
	if !shared {
		s.Sub = mux.share(mux.Sub, v.Limits)
	}
	if err := s.openWithin(ctx, shared); err != nil {
		s.Fail(err)
		s.Close()
		return s, Classify(s.Target, err)
	}
	return s, nil
}

// muxEnded reports whether the session is on a mux that has ended. A connection that has ended
// ends the session of the mux, which knows the reason.
func (s *Session) muxEnded() bool {
	switch {
	case s.mux == nil:
		return false
	case s.mux.Ended():
		return true
	case s.mux.Pub.IsClosed() || s.mux.Sub.IsClosed():
		<-s.mux.Done
		return true
	}
	if !s.Ended() {
		return false
	}
	if elsewhere, ok := errors.AsType[*ServedElsewhereError](s.Cause); ok {
		s.mux.Fail(elsewhere) // the mux connects to that node
		return true
	}
	return false
}

// watchMux ends the session with its mux.
func (s *Session) watchMux() {
	select {
	case <-s.mux.Done:
		s.Fail(s.mux.Cause)
	case <-s.Done:
	}
}

// watchFlow passes on whether the broker blocks the publishing connection of the mux.
func (s *Session) watchFlow(onBlocked func(amqp.Blocking)) {
	var last amqp.Blocking
	for {
		b, changed := s.Flow.state()
		if b != last {
			onBlocked(b)
			last = b
		}
		select {
		case <-changed:
		case <-s.Done:
			return
		}
	}
}
