package amqpx

import (
	"sync"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// queueGate holds calls back while the request queue does not take messages. A broker in
// trouble then gets a single request at a time from a client instead of a request from every
// waiting call. While the gate is shut, one parked call at a time has the turn: its request is
// published as the probe. A confirm opens the gate for all calls. Safe for concurrent use.
type queueGate struct {
	isShut atomic.Bool
	turn   chan struct{} // has a token when the next parked call may publish

	mu          sync.Mutex
	opened      chan struct{} // closed when the gate opens; nil while the gate is open
	epoch       uint64        // number of times the gate was shut
	refusedFrom time.Time     // start of the broker's nacks; zero: requests were returned, or nothing is known
	fullUntil   time.Time     // until then a nack means a queue at its bound
	renewals    int           // connections replaced since the gate was open
	wait        *xsync.Backoff
	timer       *time.Timer // grants the next turn; nil while no turn is due
}

const (
	// probeMin and probeMax bound the wait before the next probe of a shut gate.
	probeMin = 20 * time.Millisecond
	probeMax = 500 * time.Millisecond
	// fullFor is how long a queue counts as full after a nack proved the queue to be full.
	fullFor = 5 * time.Second
)

func newQueueGate() *queueGate {
	return &queueGate{turn: make(chan struct{}, 1), wait: xsync.NewBackoff(probeMin, probeMax)}
}

// shut shuts the gate because a request was nacked or returned, and reports whether the gate
// was open. The first probe is due after a wait.
func (g *queueGate) shut(nacked bool) (was bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if nacked && g.refusedFrom.IsZero() {
		g.refusedFrom = time.Now()
	} else if !nacked {
		g.refusedFrom = time.Time{}
	}
	if g.opened != nil {
		return false
	}
	g.opened = make(chan struct{})
	g.epoch++
	g.isShut.Store(true)
	g.wait.Reset()
	g.schedule()
	return true
}

// schedule grants the turn to a parked call after a wait. The caller holds mu.
func (g *queueGate) schedule() {
	if g.timer == nil {
		g.timer = time.AfterFunc(max(g.wait.NextBackOff(), time.Millisecond), g.grant)
	}
}

// grant gives the turn to a parked call.
func (g *queueGate) grant() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer = nil
	if g.opened == nil {
		return
	}
	offerToken(g.turn)
}

// pass ends the turn of the call that had it in an epoch: the probe failed, or the call ended.
// Another parked call gets the turn after a wait.
func (g *queueGate) pass(epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil && g.epoch == epoch {
		g.schedule()
	}
}

// open opens the gate because the broker has confirmed a request.
func (g *queueGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refusedFrom, g.renewals = time.Time{}, 0
	g.release()
}

// full opens the gate because a probe was nacked by a queue at its bound.
func (g *queueGate) full() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fullUntil = time.Now().Add(fullFor)
	g.release()
}

// release opens the gate. The caller holds mu.
func (g *queueGate) release() {
	if g.opened == nil {
		return
	}
	close(g.opened)
	g.opened = nil
	g.isShut.Store(false)
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	select {
	case <-g.turn: // the probe is not needed any more
	default:
	}
}

// isFull reports whether the queue was at its bound a moment ago.
func (g *queueGate) isFull() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Now().Before(g.fullUntil)
}

// refusing returns how long the broker has nacked every request of the client.
func (g *queueGate) refusing() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refusedFrom.IsZero() {
		return 0
	}
	return time.Since(g.refusedFrom)
}

// mayRenew reports whether a connection of the given age is to be replaced, because the broker
// has nacked every request for a while. The required age grows with each replaced connection.
func (g *queueGate) mayRenew(age time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refusedFrom.IsZero() || time.Since(g.refusedFrom) < nackedConnectionAfter || age < nackedConnectionAfter<<min(g.renewals, 4) {
		return false
	}
	g.renewals++
	return true
}

// passage returns the channel that is closed when the gate opens, and the gate's epoch; the
// channel is nil while the gate is open.
func (g *queueGate) passage() (opened <-chan struct{}, epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened, g.epoch
}

// park holds a call back until the gate opens or the call gets the turn to probe.
func (k *call) park(gone <-chan struct{}) event {
	g := k.route.queueGate
	opened, _ := g.passage()
	if opened == nil {
		return event{kind: eventAttempt}
	}
	for {
		if ev, ok := k.next(); ok {
			return ev
		}
		select {
		case <-k.wake:
		case <-gone:
			return event{kind: eventCanceled}
		case <-opened:
			if k.lastResult == publish.Nacked && g.isFull() {
				return event{kind: eventFull}
			}
			return event{kind: eventAttempt}
		case <-g.turn:
			_, k.probes = g.passage()
			return event{kind: eventAttempt}
		}
	}
}

// endProbe ends the call's turn, if any.
func (k *call) endProbe() {
	if k.probes != 0 {
		k.route.queueGate.pass(k.probes)
		k.probes = 0
	}
}

// mayPark reports whether the call waits while the request queue does not take messages. A
// call waits if it was made with WaitForServer, if it is idempotent and an earlier attempt may
// have arrived, or if it was nacked and certainly did not run.
func (k *call) mayPark() bool {
	return k.waitForServer || k.uncertain && k.req.Idempotent || !k.uncertain && k.lastResult == publish.Nacked
}

// retryBudget is a token bucket that limits retries to a share of the calls, so that retries
// cannot multiply an outage: the "per-client retry budget" of
// https://sre.google/sre-book/handling-overload/. The bucket starts full. Safe for concurrent
// use.
type retryBudget struct {
	most, deposit int64 // in millionths of a retry
	tokens        atomic.Int64
}

// retryCost is the cost of a retry in the bucket's unit.
const retryCost = 1_000_000

func newRetryBudget(ratio float64, burst int) *retryBudget {
	b := &retryBudget{most: int64(burst) * retryCost, deposit: int64(ratio * retryCost)}
	b.tokens.Store(b.most)
	return b
}

// earn deposits a call's share. While the bucket is full it writes nothing.
func (b *retryBudget) earn() {
	for {
		have := b.tokens.Load()
		sum := min(have+b.deposit, b.most)
		if sum == have || b.tokens.CompareAndSwap(have, sum) {
			return
		}
	}
}

// spend takes a retry out of the bucket; false means that the bucket holds too little.
func (b *retryBudget) spend() bool {
	for {
		have := b.tokens.Load()
		if have < retryCost {
			return false
		}
		if b.tokens.CompareAndSwap(have, have-retryCost) {
			return true
		}
	}
}
