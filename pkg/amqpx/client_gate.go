package amqpx

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// queueGate holds calls back while the request queue does not take messages, so that a
// broker in trouble gets one request at a time from a client instead of one from every
// call that waits. While the gate is shut, one parked call at a time has the turn: its
// request is published as the probe. A confirm opens the gate for all. Safe for concurrent
// use.
type queueGate struct {
	isShut atomic.Bool
	turn   chan struct{} // has a token when the next parked call may publish

	mu          sync.Mutex
	opened      chan struct{} // closed when the gate opens; nil while it is open
	epoch       uint64        // counts how often the gate was shut
	refusedFrom time.Time     // since when the broker nacks; zero: it returned requests, or nothing is known
	fullUntil   time.Time     // until then a nack means that the queue is at its bound
	renewals    int           // links replaced since the gate was open
	wait        *backoff.ExponentialBackOff
	timer       *time.Timer // gives the turn; nil while none is due
}

const (
	// probeMin and probeMax bound the wait before the next probe of a shut gate.
	probeMin = 20 * time.Millisecond
	probeMax = 500 * time.Millisecond
	// fullFor is how long a queue counts as full after a nack proved that it is.
	fullFor = 5 * time.Second
)

func newQueueGate() *queueGate {
	return &queueGate{turn: make(chan struct{}, 1), wait: newBackoff(probeMin, probeMax)}
}

// shut shuts the gate because a request was nacked or returned, and reports whether it was
// open. The first probe is due after a wait.
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

// schedule gives the turn to a parked call after a wait. The caller holds mu.
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
	select {
	case g.turn <- struct{}{}:
	default:
	}
}

// pass takes the turn back from the call that had it in an epoch: its probe failed, or the
// call ended. Another parked call gets it after a wait.
func (g *queueGate) pass(epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil && g.epoch == epoch {
		g.schedule()
	}
}

// open lets every parked call go on: the broker has confirmed a request.
func (g *queueGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refusedFrom, g.renewals = time.Time{}, 0
	g.release()
}

// full lets every parked call go on: a probe was nacked by a queue at its bound.
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
	case <-g.turn: // of a probe that nobody needs any more
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

// mayRenew reports whether a link of that age is to be replaced, because the broker has
// nacked every request for a while. The pauses between such links grow.
func (g *queueGate) mayRenew(age time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refusedFrom.IsZero() || time.Since(g.refusedFrom) < nackedConnectionAfter || age < nackedConnectionAfter<<min(g.renewals, 4) {
		return false
	}
	g.renewals++
	return true
}

// passage returns what a call waits for while the gate is shut, and the gate's epoch; nil
// when it is open.
func (g *queueGate) passage() (opened <-chan struct{}, epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened, g.epoch
}

// park holds a call back until the gate opens or the call has the turn to probe.
func (k *call) park(gone <-chan struct{}) event {
	g := k.route.queueGate
	opened, _ := g.passage()
	if opened == nil {
		return event{kind: eventAttempt}
	}
	select {
	case ev := <-k.events:
		return ev
	case <-gone:
		return event{kind: eventCanceled}
	case <-opened:
		if k.lastResult == resultNacked && g.isFull() {
			return event{kind: eventFull}
		}
		return event{kind: eventAttempt}
	case <-g.turn:
		_, k.probes = g.passage()
		return event{kind: eventAttempt}
	}
}

// endProbe gives the turn back, if the call has it.
func (k *call) endProbe() {
	if k.probes != 0 {
		k.route.queueGate.pass(k.probes)
		k.probes = 0
	}
}

// mayPark reports whether the call waits while the request queue does not take messages:
// it was told to wait for a server, an earlier attempt of it, an idempotent one, left, or it
// was nacked and did not run.
func (k *call) mayPark() bool {
	return k.req.sent.waitForServer || k.uncertain && k.req.Idempotent || !k.uncertain && k.lastResult == resultNacked
}

// retryBudget is a token bucket that keeps retries to a share of the calls, so that
// they cannot multiply an outage: the "per-client retry budget" of
// https://sre.google/sre-book/handling-overload/. It starts full. Safe for concurrent
// use.
type retryBudget struct {
	most, deposit int64 // in millionths of a retry
	tokens        atomic.Int64
}

// retryCost is what one retry takes out of the bucket.
const retryCost = 1_000_000

func newRetryBudget(ratio float64, burst int) *retryBudget {
	b := &retryBudget{most: int64(burst) * retryCost, deposit: int64(ratio * retryCost)}
	b.tokens.Store(b.most)
	return b
}

// earn deposits one call's share. While the bucket is full it writes nothing.
func (b *retryBudget) earn() {
	for {
		have := b.tokens.Load()
		sum := min(have+b.deposit, b.most)
		if sum == have || b.tokens.CompareAndSwap(have, sum) {
			return
		}
	}
}

// spend takes one retry out of the bucket; false means that too little is in it.
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
