package amqpx

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

// settledAfter is how long a session must stay ready before the backoff starts anew: a broker
// may accept a connection and drop it at once, and must not be dialed in a tight loop.
const settledAfter = 5 * time.Second

// passingFaultMax bounds the wait after a fault that may pass by itself, such as the restart
// of a broker: calls wait for the connection meanwhile, and their deadlines run.
const passingFaultMax = time.Second

// statusObserver receives the changes of a connection's state, one at a time.
type statusObserver interface {
	// onConnecting reports an attempt to connect to the broker at an address.
	onConnecting(address string)
	// onReady reports a session that is ready. blocked tells whether the broker blocks publishing.
	onReady(generation uint64, blocked func() bool)
	// onBlocked reports that the broker blocks publishing, with the reason, or accepts
	// publishing again. It is also called during the set-up of a session.
	onBlocked(b amqp.Blocking)
	// onFault reports a failed attempt to connect, or the end of a session.
	onFault(err error, kind FaultKind)
	// onClosed reports the end of the supervisor.
	onClosed()
}

// connectionConfig has the settings of a supervisor and its connections.
type connectionConfig struct {
	name, role  string                // the name of the connections in the broker's list
	shared      bool                  // one connection for publishing and consuming
	targets     func() []brokerTarget // the brokers for the next attempt to connect
	dialer      dialer
	heartbeat   time.Duration
	dialTimeout time.Duration
	backoffMin  time.Duration
	backoffMax  time.Duration
	logger      *zap.Logger
	observer    statusObserver
	// setup declares topology and starts consumers on a new session. It is part of the attempt
	// to connect: after an error the session is closed, and another attempt follows.
	setup func(ctx context.Context, s *session) error
}

// newBackoff returns the waits between attempts to connect, while faults may pass by
// themselves.
func (c *connectionConfig) newBackoff() *xsync.Backoff {
	return xsync.NewBackoff(c.backoffMin, max(c.backoffMin, min(c.backoffMax, passingFaultMax)))
}

// supervisor keeps one session alive. Only the supervisor dials and reports to the observer.
// amqp091-go's own recovery stays off; docs/adr/0001 has the reasons.
type supervisor struct {
	connectionConfig

	// brokers are the targets of the last attempt to connect. Only connect changes the field,
	// while there is no session.
	brokers []brokerTarget

	// sizeLimits are brokers' limits on the size of a message, by address, from the exception
	// that ended the last session. Any other end may be a restart with another limit, and
	// deletes the entry. Only run uses the map.
	sizeLimits map[string]int64
	preferred  string // the address of the node to try first next time; "" for any
	generation uint64 // of the last session that became ready
	faults     faultLog

	mu      sync.Mutex
	session *session
}

func newSupervisor(cfg connectionConfig) *supervisor {
	return &supervisor{connectionConfig: cfg, sizeLimits: make(map[string]int64)}
}

// run keeps a session alive until ctx ends.
func (v *supervisor) run(ctx context.Context) {
	defer v.observer.onClosed()
	wait := v.newBackoff()
	for ctx.Err() == nil {
		s, err := v.connect(ctx)
		if err == nil {
			err = v.runSession(ctx, s, wait)
		}
		if ctx.Err() != nil {
			return
		}
		v.reportFault(err)
		pause := wait.NextBackOff()
		if _, every := needsOperator(err); every || v.faults.isStubborn(err) {
			pause = v.backoffMax // any other fault may pass by itself
		}
		xsync.Sleep(ctx, pause)
	}
}

// connect tries every URL once, in an order shuffled for each call.
func (v *supervisor) connect(ctx context.Context) (*session, error) {
	v.brokers = v.targets()
	faults := make([]error, len(v.brokers)) // in the order of the URLs, so equal faults have equal texts
	for _, i := range v.order() {
		s, err := v.attempt(ctx, v.brokers[i])
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
func (v *supervisor) order() []int {
	order := rand.Perm(len(v.brokers)) //nolint:gosec // spreads load, guards nothing.
	slices.SortStableFunc(order, func(a, b int) int {
		return v.rank(a) - v.rank(b)
	})
	v.preferred = ""
	return order
}

// rank is 0 for the preferred target and 1 for every other.
func (v *supervisor) rank(i int) int {
	if v.brokers[i].address == v.preferred {
		return 0
	}
	return 1
}

// attempt dials one broker and sets the session up; the dial timeout bounds both together.
func (v *supervisor) attempt(ctx context.Context, target brokerTarget) (*session, error) {
	v.observer.onConnecting(target.address)
	ctx, cancel := context.WithTimeout(ctx, v.dialTimeout)
	defer cancel()
	s, err := openSession(ctx, &v.connectionConfig, target)
	if err != nil {
		return nil, classify(target, err)
	}
	s.generation = v.generation + 1
	s.sizeLimit.Store(v.sizeLimits[target.address])
	stop := context.AfterFunc(ctx, s.cut)
	s.watch(v.noteBlocked)
	if err := v.setup(ctx, s); err != nil {
		stop()
		s.fail(err)
		s.close()
		return nil, classify(target, errors.Join(ctx.Err(), err))
	}
	if !stop() {
		s.close()
		return nil, classify(target, ctx.Err())
	}
	s.probe(v.heartbeat)
	return s, nil
}

// current returns the session, or nil when there is none.
func (v *supervisor) current() *session {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.session
}

func (v *supervisor) setCurrent(s *session) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.session = s
}

// runSession waits for the end of a ready session, closes the session, and returns the cause.
func (v *supervisor) runSession(ctx context.Context, s *session, wait *xsync.Backoff) error {
	v.setCurrent(s)
	v.logger.Info("ready", zap.String("broker", s.target.address), zap.String("role", v.role),
		zap.Uint64("generation", s.generation))
	v.generation = s.generation
	v.observer.onReady(s.generation, func() bool { return s.flow.unblocked() != nil })
	if s.onReady != nil {
		s.onReady()
	}
	readySince := time.Now()
	select {
	case <-s.done:
	case <-ctx.Done():
	}
	v.setCurrent(nil)
	if s.ended() { // shown before close, which may take a while
		end := classifyEnd(s.target, s.cause)
		v.observer.onFault(end, kindOf(end))
	}
	s.close()
	if time.Since(readySince) >= settledAfter {
		wait.Reset()
		v.faults = faultLog{}
	}
	if s.cause == nil {
		return ctx.Err()
	}
	if elsewhere, ok := errors.AsType[*servedElsewhereError](s.cause); ok {
		v.preferred = elsewhere.address
	}
	delete(v.sizeLimits, s.target.address)
	if refused, ok := errors.AsType[*amqp.Error](s.cause); ok {
		if limit, ok := sizeLimitIn(refused); ok {
			v.sizeLimits[s.target.address] = int64(limit)
		}
	}
	return classifyEnd(s.target, s.cause)
}

// reportFault passes a fault to the observer and logs the fault if it is new or was last logged
// faultAgain ago: at error level if it needs an operator, else as a warning. Other occurrences
// are logged at debug level.
func (v *supervisor) reportFault(err error) {
	v.observer.onFault(err, kindOf(err))
	log := v.logger.Warn
	if some, _ := needsOperator(err); some || v.faults.isStubborn(err) {
		log = v.logger.Error
	}
	if !v.faults.note(faultKey(err)) {
		log = v.logger.Debug
	}
	log("link down, reconnecting", zap.String("role", v.role), zap.String("fault", string(kindOf(err))),
		zap.Int("attempts", v.faults.attempts), zap.Error(err))
}

// noteBlocked logs and reports whether the broker blocks publishing.
func (v *supervisor) noteBlocked(b amqp.Blocking) {
	if b.Active {
		v.logger.Warn("broker blocks publishing", zap.String("reason", b.Reason))
	} else {
		v.logger.Info("broker accepts publishing again")
	}
	v.observer.onBlocked(b)
}
