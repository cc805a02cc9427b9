package transport

import (
	"context"
	"errors"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Link is one pair of connections for the sessions of several clients and servers, or one
// connection if its configuration says so. Its supervisor dials, watches the connections and
// refreshes credentials; the sessions on the link have channels of their own, and end and begin
// again without the link (docs/adr/0028). Safe for concurrent use.
type Link struct {
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

// follower is a supervisor that waits for a session of the link.
type follower struct{ Observer }

// NewLink returns a link; Run starts it. The configuration's Observer receives what becomes of
// the connections; Setup is not used.
func NewLink(cfg Config) *Link {
	l := &Link{needed: make(chan struct{}), followers: make(map[*follower]struct{}), changed: make(chan struct{})}
	cfg.Setup = func(context.Context, *Session) error { return nil }
	cfg.Observer = &linkObserver{cfg.Observer, l}
	l.sup = NewSupervisor(cfg)
	return l
}

// Run keeps the connections alive until ctx ends.
func (l *Link) Run(ctx context.Context) { l.sup.Run(ctx) }

// RunWhenNeeded is Run, from the moment a session first needs the link.
func (l *Link) RunWhenNeeded(ctx context.Context) {
	select {
	case <-l.needed:
		l.Run(ctx)
	case <-ctx.Done():
	}
}

// await waits for connections that are ready. Meanwhile the observer receives the faults of the
// link and its attempts to connect. The error is that of ctx.
func (l *Link) await(ctx context.Context, o Observer) (*Session, []Target, error) {
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

// follow returns the session of the link if it is ready. Otherwise the follower receives the last
// report and those that follow, and the channel is closed at the next session.
func (l *Link) follow(f *follower) (*Session, []Target, <-chan struct{}) {
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

func (l *Link) unfollow(f *follower) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.followers, f)
}

// publish passes a report to every follower and keeps the report for later followers.
func (l *Link) publish(report func(Observer)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report = report
	for f := range l.followers {
		report(f.Observer)
	}
}

// ready makes the supervisor's session the current session.
func (l *Link) ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current, l.brokers = l.sup.Current(), l.sup.Brokers
	close(l.changed)
	l.changed = make(chan struct{})
}

// linkObserver is the Observer of a link's supervisor.
type linkObserver struct {
	Observer

	link *Link
}

func (o *linkObserver) OnConnecting(address string) {
	o.Observer.OnConnecting(address)
	o.link.publish(func(f Observer) { f.OnConnecting(address) })
}

func (o *linkObserver) OnReady(generation uint64, blocked func() bool) {
	o.Observer.OnReady(generation, blocked)
	o.link.ready()
}

func (o *linkObserver) OnFault(err error, kind FaultKind) {
	o.Observer.OnFault(err, kind)
	o.link.publish(func(f Observer) { f.OnFault(err, kind) })
}

// errLinkEnded is the end of a session with its link. The link reports the fault.
var errLinkEnded = errors.New("the link has ended")

// join waits for the link and sets a session up on its connections.
func (v *Supervisor) join(ctx context.Context) (*Session, error) {
	link, brokers, err := v.Link.await(ctx, v.Observer)
	if err != nil {
		return nil, err
	}
	v.Brokers = brokers
	v.Observer.OnConnecting(link.Target.Address)
	if !v.awaitFlow(ctx, link) {
		return nil, errLinkEnded
	}
	ctx, cancel := context.WithTimeout(ctx, v.DialTimeout)
	defer cancel()
	s, err := v.openOn(ctx, link)
	if err == nil {
		err = v.prepare(ctx, s)
	}
	if err != nil && s.linkEnded() {
		return nil, errLinkEnded
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// awaitFlow waits until the broker reads from the publishing connection, because no channel can
// be opened before. It returns false if the link or ctx has ended.
func (v *Supervisor) awaitFlow(ctx context.Context, link *Session) bool {
	for {
		b, changed := link.Flow.state()
		if !b.Active {
			return !link.Ended()
		}
		v.Observer.OnBlocked(b)
		select {
		case <-changed:
		case <-link.Done:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// openOn opens a session on the connections of a link. The session is not nil; after an error it
// is closed.
func (v *Supervisor) openOn(ctx context.Context, link *Session) (*Session, error) {
	s := newSession(link.Target)
	s.Home, s.link, s.Flow = link.Target, link, link.Flow
	s.Pub = link.share(link.Pub, v.Limits)
	s.Sub = s.Pub
	shared := v.Shared || link.Sub == link.Pub
	if !shared {
		s.Sub = link.share(link.Sub, v.Limits)
	}
	if err := s.openWithin(ctx, shared); err != nil {
		s.Fail(err)
		s.Close()
		return s, Classify(s.Target, err)
	}
	return s, nil
}

// linkEnded reports whether the session is on a link that has ended. A connection that has ended
// ends the session of the link, which knows the reason.
func (s *Session) linkEnded() bool {
	switch {
	case s.link == nil:
		return false
	case s.link.Ended():
		return true
	case s.link.Pub.IsClosed() || s.link.Sub.IsClosed():
		<-s.link.Done
		return true
	}
	if !s.Ended() {
		return false
	}
	if elsewhere, ok := errors.AsType[*ServedElsewhereError](s.Cause); ok {
		s.link.Fail(elsewhere) // the link connects to that node
		return true
	}
	return false
}

// watchLink ends the session with its link.
func (s *Session) watchLink() {
	select {
	case <-s.link.Done:
		s.Fail(s.link.Cause)
	case <-s.Done:
	}
}

// watchFlow passes on whether the broker blocks the publishing connection of the link.
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
