package transport

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// SettledAfter is how long a session must stay ready before the backoff starts anew: a broker
// may accept a connection and drop it at once, and must not be dialed in a tight loop.
const SettledAfter = 5 * time.Second

// passingFaultMax bounds the wait after a fault that may pass by itself, such as the restart
// of a broker: calls wait for the connection meanwhile, and their deadlines run.
const passingFaultMax = time.Second

// Observer receives the changes of a connection's state, one at a time.
type Observer interface {
	// OnConnecting reports an attempt to connect to the broker at an address.
	OnConnecting(address string)
	// OnCertificates reports the ends of the certificates of a new connection (see Conn).
	OnCertificates(broker, own time.Time)
	// OnNode reports the name of the node of a new connection; "" if it is not known.
	OnNode(name string)
	// OnReady reports a session that is ready. blocked tells whether the broker blocks publishing.
	OnReady(generation uint64, blocked func() bool)
	// OnBlocked reports that the broker blocks publishing, with the reason, or accepts
	// publishing again. It is also called during the set-up of a session.
	OnBlocked(b amqp.Blocking)
	// OnFault reports a failed attempt to connect, or the end of a session.
	OnFault(err error, kind FaultKind)
	// OnClosed reports the end of the supervisor.
	OnClosed()
}

// Config has the settings of a supervisor and its connections.
type Config struct {
	Name, Role string          // the name of the connections in the broker's list
	Shared     bool            // one connection for publishing and consuming
	Targets    func() []Target // the brokers for the next attempt to connect
	// Credentials is asked before each attempt to connect, and before earlier credentials end.
	// Nil: the URLs have the credentials.
	Credentials func(ctx context.Context) (Credentials, error)
	Dialer      Dialer
	Heartbeat   time.Duration
	DialTimeout time.Duration
	BackoffMin  time.Duration
	BackoffMax  time.Duration
	Logger      *zap.Logger
	Observer    Observer
	// Setup declares topology and starts consumers on a new session. It is part of the attempt
	// to connect: after an error the session is closed, and another attempt follows.
	Setup func(ctx context.Context, s *Session) error
	// Mux has the connections for the sessions; nil: each session has connections of its own.
	// With a mux the settings for dialing have no effect, except the dial timeout, which bounds
	// the set-up of a session.
	Mux *Mux
	// Limits are the limits of the sessions on a mux.
	Limits ContentLimits
}

// NewBackoff returns the waits between attempts to connect, while faults may pass by
// themselves.
func (c *Config) NewBackoff() *xsync.Backoff {
	return xsync.NewBackoff(c.BackoffMin, max(c.BackoffMin, min(c.BackoffMax, passingFaultMax)))
}

// Supervisor keeps one session alive. Only the supervisor dials and reports to the observer.
// amqp091-go's own recovery stays off; docs/adr/0001 has the reasons.
type Supervisor struct {
	Config

	// Brokers are the targets of the last attempt to connect. Only connect changes the field,
	// while there is no session.
	Brokers []Target

	// sizeLimits are brokers' limits on the size of a message, by address, from the exception
	// that ended the last session. Any other end may be a restart with another limit, and
	// deletes the entry. Only run uses the map.
	sizeLimits map[string]int64
	preferred  string // the address of the node to try first next time; "" for any
	home       string // the address of the home node: the first that was tried
	generation uint64 // of the last session that became ready
	faults     faultLog

	mu      sync.Mutex
	session *Session
}

// NewSupervisor returns a supervisor; Run starts it.
func NewSupervisor(cfg Config) *Supervisor {
	return &Supervisor{Config: cfg, sizeLimits: make(map[string]int64)}
}

// Run keeps a session alive until ctx ends.
func (v *Supervisor) Run(ctx context.Context) {
	defer v.Observer.OnClosed()
	wait := v.NewBackoff()
	for ctx.Err() == nil {
		s, err := v.Connect(ctx)
		if err == nil {
			err = v.runSession(ctx, s, wait)
		}
		if ctx.Err() != nil {
			return
		}
		if err == ErrReturnHome { //nolint:errorlint // it is this very value.
			wait.Reset()
			continue
		}
		if err == errMuxEnded { //nolint:errorlint // it is this very value.
			continue // the next attempt waits for the mux
		}
		v.reportFault(err)
		pause := wait.NextBackOff()
		if _, every := needsOperator(err); every || v.faults.isStubborn(err) {
			pause = v.BackoffMax // any other fault may pass by itself
		}
		xsync.Sleep(ctx, pause)
	}
}

// Connect tries every URL once, in an order shuffled for each call. On a mux it waits for the
// mux and sets a session up once.
func (v *Supervisor) Connect(ctx context.Context) (*Session, error) {
	if v.Mux != nil {
		return v.join(ctx)
	}
	v.Brokers = v.Targets()
	faults := make([]error, len(v.Brokers)) // in the order of the URLs, so equal faults have equal texts
	order := v.order()
	v.chooseHome(order)
	for _, i := range order {
		s, err := v.attempt(ctx, v.Brokers[i])
		if err == nil {
			return s, nil
		}
		faults[i] = err
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(faults...)
}

// order returns the indexes of the targets in the order of the attempts: the preferred target
// first, the rest shuffled.
func (v *Supervisor) order() []int {
	order := rand.Perm(len(v.Brokers)) //nolint:gosec // spreads load, guards nothing.
	slices.SortStableFunc(order, func(a, b int) int {
		return v.rank(a) - v.rank(b)
	})
	v.preferred = ""
	return order
}

// rank is 0 for the preferred target and 1 for every other.
func (v *Supervisor) rank(i int) int {
	if v.Brokers[i].Address == v.preferred {
		return 0
	}
	return 1
}

// chooseHome makes the first node of an order the home node, unless the list still has the home
// node. The order is random, so the homes of many processes are spread over the nodes.
func (v *Supervisor) chooseHome(order []int) {
	if _, ok := v.homeTarget(); !ok && len(order) > 0 {
		v.home = v.Brokers[order[0]].Address
	}
}

// homeTarget returns the home node, if the list has it.
func (v *Supervisor) homeTarget() (Target, bool) {
	for _, t := range v.Brokers {
		if t.Address == v.home {
			return t, true
		}
	}
	return Target{}, false
}

// attempt dials one broker and sets the session up; the dial timeout bounds both together.
func (v *Supervisor) attempt(ctx context.Context, target Target) (*Session, error) {
	v.Observer.OnConnecting(target.Address)
	ctx, cancel := context.WithTimeout(ctx, v.DialTimeout)
	defer cancel()
	target, credentials, err := v.Authorize(ctx, target)
	if err != nil {
		return nil, Classify(target, err)
	}
	s, err := openSession(ctx, &v.Config, target)
	if err != nil {
		return nil, Classify(target, err)
	}
	s.Home, _ = v.homeTarget()
	if err := v.prepare(ctx, s); err != nil {
		return nil, err
	}
	s.probe(v.Heartbeat)
	if credentials != nil {
		s.Run(func() { v.keepCredentials(ctx, s, *credentials) })
	}
	return s, nil
}

// prepare sets an open session up. After an error the session is closed.
func (v *Supervisor) prepare(ctx context.Context, s *Session) error {
	target := s.Target
	v.Observer.OnCertificates(s.Pub.Certificates())
	v.Observer.OnNode(s.Pub.Node())
	s.Generation = v.generation + 1
	s.SizeLimit.Store(v.sizeLimits[target.Address])
	stop := context.AfterFunc(ctx, s.Cut)
	s.watch(v.noteBlocked)
	if err := v.Setup(ctx, s); err != nil {
		stop()
		s.Fail(err)
		s.Close()
		return Classify(target, errors.Join(ctx.Err(), err))
	}
	if !stop() {
		s.Close()
		return Classify(target, ctx.Err())
	}
	return nil
}

// openSession dials and opens the channels. After an error nothing stays open.
func openSession(ctx context.Context, cfg *Config, target Target) (_ *Session, err error) {
	s := newSession(target)
	s.Flow = newFlow()
	defer func() {
		if err != nil {
			s.Fail(err)
			s.Close()
		}
	}()
	name := cfg.Name + " " + cfg.Role
	if cfg.Shared {
		s.Pub, err = cfg.Dialer.Dial(ctx, target.URL, name)
		s.Sub = s.Pub
	} else {
		if s.Pub, err = cfg.Dialer.Dial(ctx, target.URL, name+" publish"); err == nil {
			s.Sub, err = cfg.Dialer.Dial(ctx, target.URL, name+" consume")
		}
	}
	if err != nil {
		return nil, err
	}
	return s, s.openWithin(ctx, cfg.Shared)
}

func newSession(target Target) *Session {
	return &Session{Start: time.Now(), Target: target, Leave: make(chan struct{}, 1), Done: make(chan struct{})}
}

// openWithin opens the channels until ctx ends.
func (s *Session) openWithin(ctx context.Context, shared bool) error {
	stop := context.AfterFunc(ctx, s.Cut)
	defer stop()
	if err := s.openChannels(shared); err != nil {
		return AtStep(stepChannel, "", errors.Join(ctx.Err(), err))
	}
	return nil
}

// Current returns the session, or nil when there is none.
func (v *Supervisor) Current() *Session {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.session
}

func (v *Supervisor) setCurrent(s *Session) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.session = s
}

// runSession waits for the end of a ready session, closes the session, and returns the cause.
func (v *Supervisor) runSession(ctx context.Context, s *Session, wait *xsync.Backoff) error {
	v.setCurrent(s)
	v.Logger.Info("ready", zap.String("broker", s.Target.Address), zap.String("role", v.Role),
		zap.Uint64("generation", s.Generation))
	v.generation = s.Generation
	v.Observer.OnReady(s.Generation, func() bool { return s.Flow.Unblocked() != nil })
	if s.OnReady != nil {
		s.OnReady()
	}
	readySince := time.Now()
	select {
	case <-s.Done:
	case <-ctx.Done():
	}
	v.setCurrent(nil)
	if s.muxEnded() {
		if end := s.mux.Cause; end != nil && end != ErrReturnHome { //nolint:errorlint // it is this very value.
			fault := classifyEnd(s.Target, end)
			v.Observer.OnFault(fault, kindOf(fault))
		}
		s.Close()
		if time.Since(readySince) >= SettledAfter {
			wait.Reset()
		}
		return errMuxEnded
	}
	if s.Ended() && s.Cause == ErrReturnHome { //nolint:errorlint // it is this very value.
		v.Logger.Info("returning to the home node", zap.String("broker", s.Home.Address), zap.String("from", s.Target.Address), zap.String("role", v.Role))
		v.preferred = s.Home.Address
		s.Close()
		return ErrReturnHome
	}
	if s.Ended() { // shown before close, which may take a while
		end := classifyEnd(s.Target, s.Cause)
		v.Observer.OnFault(end, kindOf(end))
	}
	s.Close()
	if time.Since(readySince) >= SettledAfter {
		wait.Reset()
		v.faults = faultLog{}
	}
	if s.Cause == nil {
		return ctx.Err()
	}
	if elsewhere, ok := errors.AsType[*ServedElsewhereError](s.Cause); ok {
		v.preferred = elsewhere.Address
	}
	delete(v.sizeLimits, s.Target.Address)
	if refused, ok := errors.AsType[*amqp.Error](s.Cause); ok {
		if limit, ok := SizeLimitIn(refused); ok {
			v.sizeLimits[s.Target.Address] = int64(limit)
		}
	}
	return classifyEnd(s.Target, s.Cause)
}

// reportFault passes a fault to the observer and logs the fault if it is new or was last logged
// faultAgain ago: at error level if it needs an operator, else as a warning. Other occurrences
// are logged at debug level.
func (v *Supervisor) reportFault(err error) {
	v.Observer.OnFault(err, kindOf(err))
	log := v.Logger.Warn
	if some, _ := needsOperator(err); some || v.faults.isStubborn(err) {
		log = v.Logger.Error
	}
	if !v.faults.note(faultKey(err)) {
		log = v.Logger.Debug
	}
	log("connection lost, reconnecting", zap.String("role", v.Role), zap.String("fault", string(kindOf(err))),
		zap.Int("attempts", v.faults.attempts), zap.Error(err))
}

// noteBlocked logs and reports whether the broker blocks publishing. For the sessions on a mux
// the mux has logged it.
func (v *Supervisor) noteBlocked(b amqp.Blocking) {
	switch {
	case v.Mux != nil:
	case b.Active:
		v.Logger.Warn("broker blocks publishing", zap.String("reason", b.Reason))
	default:
		v.Logger.Info("broker accepts publishing again")
	}
	v.Observer.OnBlocked(b)
}
