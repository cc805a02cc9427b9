package amqpx

import (
	"context"
	"crypto/tls"
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

// supervisor keeps one session alive. Only the supervisor dials and writes the status.
// amqp091-go's own recovery stays off; docs/adr/0001 has the reasons.
type supervisor struct {
	cfg    *config
	role   string // names the connections
	shared bool   // one connection for publishing and consuming
	// setup declares topology and starts consumers on a new session. It is part of the attempt
	// to connect: after an error the session is closed, and another attempt follows.
	setup func(ctx context.Context, s *session) error
	// targets are the brokers of the last attempt to connect. Only connect changes the field,
	// while there is no session.
	targets []brokerTarget

	// sizeLimits are brokers' limits on the size of a message, by address, from the exception
	// that ended the last session. Any other end may be a restart with another limit, and
	// deletes the entry. Only run uses the map.
	sizeLimits map[string]int64
	preferred  string // the address of the node to try first next time; "" for any
	board      statusBoard
	faults     faultLog

	mu      sync.Mutex
	session *session
}

func newSupervisor(cfg *config, role string, shared bool, setup func(context.Context, *session) error) *supervisor {
	return &supervisor{
		sizeLimits: make(map[string]int64), cfg: cfg, role: role, shared: shared, setup: setup, targets: targetsOf(cfg.urls),
	}
}

// run keeps a session alive until ctx ends.
func (v *supervisor) run(ctx context.Context) {
	defer v.board.update(func(s *Status) { s.State = StateClosed })
	wait := xsync.NewBackoff(v.cfg.backoffMin, max(v.cfg.backoffMin, min(v.cfg.backoffMax, passingFaultMax)))
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
			pause = v.cfg.backoffMax // any other fault may pass by itself
		}
		xsync.Sleep(ctx, pause)
	}
}

// connect tries every URL once, in an order shuffled for each call.
func (v *supervisor) connect(ctx context.Context) (*session, error) {
	if v.cfg.source != nil {
		v.targets = targetsOf(v.cfg.source.refresh())
	}
	faults := make([]error, len(v.targets)) // in the order of the URLs, so equal faults have equal texts
	for _, i := range v.order() {
		s, err := v.attempt(ctx, v.targets[i])
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
	order := rand.Perm(len(v.targets)) //nolint:gosec // spreads load, guards nothing.
	slices.SortStableFunc(order, func(a, b int) int {
		return v.rank(a) - v.rank(b)
	})
	v.preferred = ""
	return order
}

// rank is 0 for the preferred target and 1 for every other.
func (v *supervisor) rank(i int) int {
	if v.targets[i].address == v.preferred {
		return 0
	}
	return 1
}

// attempt dials one broker and sets the session up; the dial timeout bounds both together.
func (v *supervisor) attempt(ctx context.Context, target brokerTarget) (*session, error) {
	v.board.update(func(s *Status) { s.State, s.Broker, s.Reason = StateConnecting, target.address, "" })
	ctx, cancel := context.WithTimeout(ctx, v.cfg.dialTimeout)
	defer cancel()
	s, err := openSession(ctx, v.cfg, target, v.role, v.shared)
	if err != nil {
		return nil, classify(target, err)
	}
	s.generation = v.board.get().Generation + 1
	s.sizeLimit.Store(v.sizeLimits[target.address])
	stop := context.AfterFunc(ctx, s.cut)
	s.watch(func(b amqp.Blocking) { v.noteBlocked(b) })
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
	s.probe(v.cfg.heartbeat)
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
	v.cfg.logger.Info("ready", zap.String("broker", s.target.address), zap.String("role", v.role),
		zap.Uint64("generation", s.generation))
	v.board.update(func(st *Status) {
		st.State, st.Err, st.Fault, st.Generation = StateReady, nil, "", s.generation
		if s.flow.unblocked() != nil {
			st.State = StateBlocked
		}
	})
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
		v.showFault(classifyEnd(s.target, s.cause))
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

// reportFault shows a fault in the status and logs the fault if it is new or was last logged
// faultAgain ago: at error level if it needs an operator, else as a warning. Other occurrences
// are logged at debug level.
func (v *supervisor) reportFault(err error) {
	v.showFault(err)
	log := v.cfg.logger.Warn
	if some, _ := needsOperator(err); some || v.faults.isStubborn(err) {
		log = v.cfg.logger.Error
	}
	if !v.faults.note(faultKey(err)) {
		log = v.cfg.logger.Debug
	}
	log("link down, reconnecting", zap.String("role", v.role), zap.String("fault", string(kindOf(err))),
		zap.Int("attempts", v.faults.attempts), zap.Error(err))
}

// showFault shows a fault in the status.
func (v *supervisor) showFault(err error) {
	v.board.update(func(s *Status) { s.State, s.Err, s.Fault, s.Reason = StateReconnecting, err, kindOf(err), "" })
}

// noteBlocked shows in the status whether the broker blocks publishing.
func (v *supervisor) noteBlocked(b amqp.Blocking) {
	if b.Active {
		v.cfg.logger.Warn("broker blocks publishing", zap.String("reason", b.Reason))
	} else {
		v.cfg.logger.Info("broker accepts publishing again")
	}
	v.board.update(func(s *Status) {
		s.Reason = b.Reason // also for a session in set-up
		switch {
		case b.Active && s.State == StateReady:
			s.State = StateBlocked
		case !b.Active && s.State == StateBlocked:
			s.State = StateReady
		}
	})
}

// waitReady waits until the session is ready. If ctx ends first, it returns the error of ctx
// joined with the last fault. It returns ErrClosed if the supervisor is closed or draining.
func (v *supervisor) waitReady(ctx context.Context) error {
	updates, stop := v.board.watch()
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
			return errors.Join(ctx.Err(), v.board.get().Err)
		}
	}
}

// Brokers has the addresses of the brokers and the TLS configuration at one moment. An empty
// field leaves the earlier value in force.
type Brokers struct {
	// URLs is a list of broker URLs in the format of [NewClient].
	URLs string
	// TLS is the configuration for amqps URLs, as for [WithTLS]. It must not be changed
	// afterwards.
	TLS *tls.Config
}

// WithBrokers sets a source of broker URLs and TLS configuration, which is called before each
// attempt to connect. A rotated password or certificate is therefore in use from the next
// attempt; open connections stay. By default the arguments of the constructor are used for
// ever. They must be valid in any case.
//
// The source must return soon and be safe for concurrent use, and its error must contain no
// secret. A result beside an error still counts. An empty field leaves the earlier value in
// force, and so does a list that [ParseURLs] refuses. Such a list, and an error of the source,
// are logged once until the fault changes.
func WithBrokers(source func() (Brokers, error)) Option {
	return option(func(c *config) {
		c.source = nil
		if source != nil {
			c.source = &brokerSource{ask: source}
		}
	})
}

// brokerSource holds the last valid results of the source of WithBrokers. Safe for concurrent
// use.
type brokerSource struct {
	ask func() (Brokers, error)
	log *zap.Logger

	mu     sync.Mutex
	list   string
	urls   []BrokerURL // parsed from list
	config *tls.Config // nil: the configuration of WithTLS
	told   string      // the last fault in the log
}

// start sets the initial values, from the arguments of the constructor.
func (b *brokerSource) start(list string, urls []BrokerURL, log *zap.Logger) {
	b.list, b.urls, b.log = list, urls, log
}

// refresh calls the source and returns the URLs in force.
func (b *brokerSource) refresh() []BrokerURL {
	now, fault := b.ask()
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.TLS != nil {
		b.config = now.TLS
	}
	if now.URLs != "" && now.URLs != b.list {
		urls, err := ParseURLs(now.URLs)
		if err == nil {
			b.list, b.urls = now.URLs, urls
			b.log.Info("broker URLs changed", zap.Stringers("brokers", urls))
		} else if fault == nil {
			fault = err
		}
	}
	text := ""
	if fault != nil {
		text = fault.Error()
	}
	if text != "" && text != b.told {
		b.log.Warn("how to reach the broker could not be read again, so it stays as it was", zap.Error(fault))
	}
	b.told = text
	return b.urls
}

// tls returns the configuration in force; nil means the configuration of WithTLS.
func (b *brokerSource) tls() *tls.Config {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.config
}
