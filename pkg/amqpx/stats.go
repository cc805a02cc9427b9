package amqpx

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// ClientStats counts what a client did since it was made.
type ClientStats struct {
	// OK and Failed count the calls that returned; InFlight those that did not yet.
	OK, Failed, InFlight uint64
	// Resent counts the requests sent beyond each call's first; a call is counted when
	// it returns.
	Resent uint64
	// Retried counts the retries that the retry budget allowed.
	Retried uint64
	// Refused counts the calls that failed at once with [ErrTooManyCalls].
	Refused uint64
	// Late counts answers that came after their call was given up, Duplicates
	// second answers to one call, Unknown answers to no call of this client. All of
	// them were dropped.
	Late, Duplicates, Unknown uint64
	// Batched counts the requests that were sent in a batch.
	Batched uint64
	// Reconnects counts the links that became ready after the first.
	Reconnects uint64
	// Blocked is how long the broker has blocked publishing, all times together.
	Blocked time.Duration
}

type clientCounts struct {
	ok, failed, resent        atomic.Uint64
	retried, refused          atomic.Uint64
	late, duplicates, unknown atomic.Uint64
	batched                   atomic.Uint64
}

func (n *clientCounts) dropped(v matchResult) {
	switch v {
	case verdictLate:
		n.late.Add(1)
	case verdictDuplicate:
		n.duplicates.Add(1)
	case verdictUnknown:
		n.unknown.Add(1)
	case verdictTaken, verdictRedelivered, verdictCanceled:
	}
}

// Stats returns the counters.
func (c *Client) Stats() ClientStats {
	if c == nil || c.cfg == nil {
		return ClientStats{}
	}
	return ClientStats{
		OK:         c.counts.ok.Load(),
		Failed:     c.counts.failed.Load(),
		InFlight:   uint64(c.pending.len()), //nolint:gosec // a length is never negative.
		Resent:     c.counts.resent.Load(),
		Retried:    c.counts.retried.Load(),
		Refused:    c.counts.refused.Load(),
		Late:       c.counts.late.Load(),
		Duplicates: c.counts.duplicates.Load(),
		Unknown:    c.counts.unknown.Load(),
		Batched:    c.counts.batched.Load(),
		Reconnects: reconnects(c.Status()),
		Blocked:    c.sup.board.blockedFor(),
	}
}

// ServerStats counts what a server did since it was made.
type ServerStats struct {
	// Requests counts the requests taken from the queue; InFlight those of them that
	// are not settled yet.
	Requests, InFlight uint64
	// OK and Failed count the handlers that returned a result or an error; Panics
	// counts those of the failed that panicked.
	OK, Failed, Panics uint64
	// Refused counts the requests that were answered without being run: malformed,
	// or for an unknown method. Expired counts those whose time was over.
	Refused, Expired uint64
	// Shed counts those of the refused that would have expired before a worker was free.
	Shed uint64
	// TooLarge counts the requests and batches whose bodies were beyond the limit of
	// [WithMaxMessageSize]: they were not read.
	TooLarge uint64
	// Deferred counts the deliveries for whose bodies there was no room (see
	// [WithMaxBytesInHand]): they are delivered again when there is.
	Deferred uint64
	// Replayed counts the duplicates that were not run: they got the answer of the
	// request they repeat.
	Replayed uint64
	// Canceled counts the requests that were given up because their callers had: those
	// whose handler's context was cancelled, and those that were not run any more.
	Canceled uint64
	// Returned counts the requests given back to the queue by a drain.
	Returned uint64
	// Moved counts the requests that were put into a queue again, because a server had
	// lost them, and Dead those that went to the dead letters.
	Moved, Dead uint64
	// Batched counts the requests that came in a batch.
	Batched uint64
	// Undeliverable counts the responses, and the copies of requests, that were dropped
	// because they ended the connection they were published on.
	Undeliverable uint64
	// Unroutable counts the responses that no queue took: their callers are gone, or named a
	// reply_to that is no queue. Responses to direct reply-to are not among them.
	Unroutable uint64
	// Reconnects counts the links that became ready after the first.
	Reconnects uint64
	// Blocked is how long the broker has blocked publishing, all times together.
	Blocked time.Duration
	// Workers is how many handlers may run at once, Busy how many do, Waiting how many
	// requests wait in this server for a worker.
	Workers, Busy, Waiting int
	// Stuck is how many handlers run on though their time limit has passed and their
	// requests were answered ([WithMaxHandlerTime]). While it is more than Workers, some of
	// them hold workers, and the server does less than it should.
	Stuck int
	// OldestHandler is how long the handler that began first has run; 0 while none runs.
	OldestHandler time.Duration
	// BytesInHand is the size of the bodies of the requests that this server has and has
	// not acknowledged, see [WithMaxBytesInHand].
	BytesInHand int64
}

type serverCounts struct {
	requests, ok, failed, panics, refused, expired, returned atomic.Uint64
	shed, replayed, moved, dead, batched, canceled           atomic.Uint64
	undeliverable, unroutable                                atomic.Uint64
	tooLarge, deferred                                       atomic.Uint64
}

// Stats returns the counters.
func (s *Server) Stats() ServerStats {
	if s == nil || s.cfg == nil {
		return ServerStats{}
	}
	stuck, _ := s.stuck.count()
	return ServerStats{
		Requests: s.counts.requests.Load(),
		InFlight: uint64(max(int64(s.track.count())-s.consumers.Load()-s.parcels.Load(), 0)),
		OK:       s.counts.ok.Load(),
		Failed:   s.counts.failed.Load(),
		Panics:   s.counts.panics.Load(),
		Refused:  s.counts.refused.Load(),
		Expired:  s.counts.expired.Load(),
		Shed:     s.counts.shed.Load(),
		Replayed: s.counts.replayed.Load(),
		Canceled: s.counts.canceled.Load(),
		Returned: s.counts.returned.Load(),
		Moved:    s.counts.moved.Load(),
		Dead:     s.counts.dead.Load(),
		Batched:  s.counts.batched.Load(),

		Undeliverable: s.counts.undeliverable.Load(),
		Unroutable:    s.counts.unroutable.Load(),

		Reconnects: reconnects(s.Status()),
		Blocked:    s.sup.board.blockedFor(),
		Workers:    s.cfg.workers,
		Busy:       int(s.load.busy.Load()),
		Waiting:    s.jobs.len(),

		TooLarge:    s.counts.tooLarge.Load(),
		Deferred:    s.counts.deferred.Load(),
		BytesInHand: s.cfg.inHand.held.Load(),

		Stuck:         stuck,
		OldestHandler: s.oldestHandler(),
	}
}

func reconnects(st Status) uint64 {
	if st.Generation == 0 {
		return 0
	}
	return st.Generation - 1
}

// ClientObserver is told what a client does, as it happens: the hook for metrics
// ([rabbitmq-rpc/pkg/amqpxprom] is one). What only adds up is in [Client.Stats]. Its
// methods are called for every call, by many goroutines at once, and must return at once.
type ClientObserver interface {
	// CallSettled is told of a call that returned: its method, its code, which is "" for
	// an answer, and how long its caller waited, over every re-send.
	CallSettled(method string, code Code, took time.Duration)
	// BatchSent is told of a batch that left, and how many calls are in it.
	BatchSent(calls int)
}

// ServerObserver is told what a server does, as it happens. What holds for
// [ClientObserver] holds for it too; what only adds up is in [Server.Stats].
type ServerObserver interface {
	// HandlerEnded is told of a handler that ended: its method, its code, which is "" for
	// a result, how long the request had waited in this server for a worker, and how long
	// the handler ran.
	HandlerEnded(method string, code Code, queued, took time.Duration)
	// RequestRefused is told of a request that was answered without being run. The method
	// is "" unless this server has it: what callers send is no name to be trusted.
	RequestRefused(method string, code Code)
	// BatchReceived is told of a batch that came, and how many calls are in it.
	BatchReceived(calls int)
}

// WithClientObserver adds an observer to the client; nil is ignored, and the default is none.
// Given several times, every observer is told, in the order of the options. An observer that
// panics harms neither the call nor the process; it is logged once for each of its methods.
func WithClientObserver(o ClientObserver) ClientOption {
	return clientOption(func(c *clientConfig) {
		if o != nil {
			c.observers = append(c.observers, o)
		}
	})
}

// WithServerObserver adds an observer to the server. What holds for [WithClientObserver] holds
// for it too.
func WithServerObserver(o ServerObserver) ServerOption {
	return serverOption(func(c *serverConfig) {
		if o != nil {
			c.observers = append(c.observers, o)
		}
	})
}

// guardedClientObserver tells several observers and outlives what they do. It implements
// ClientObserver.
type guardedClientObserver struct {
	observers              []ClientObserver
	log                    *zap.Logger
	callSettled, batchSent sync.Once // of the log entry that each of them panicked
}

// guardClientObservers returns nil for no observers.
func guardClientObservers(observers []ClientObserver, log *zap.Logger) ClientObserver {
	if len(observers) == 0 {
		return nil
	}
	return &guardedClientObserver{observers: observers, log: log}
}

func (g *guardedClientObserver) CallSettled(method string, code Code, took time.Duration) {
	for _, o := range g.observers {
		guarded(g.log, "CallSettled", &g.callSettled, func() { o.CallSettled(method, code, took) })
	}
}

func (g *guardedClientObserver) BatchSent(calls int) {
	for _, o := range g.observers {
		guarded(g.log, "BatchSent", &g.batchSent, func() { o.BatchSent(calls) })
	}
}

// guardedServerObserver is guardedClientObserver for servers.
type guardedServerObserver struct {
	observers                                   []ServerObserver
	log                                         *zap.Logger
	handlerEnded, requestRefused, batchReceived sync.Once
}

// guardServerObservers returns nil for no observers.
func guardServerObservers(observers []ServerObserver, log *zap.Logger) ServerObserver {
	if len(observers) == 0 {
		return nil
	}
	return &guardedServerObserver{observers: observers, log: log}
}

func (g *guardedServerObserver) HandlerEnded(method string, code Code, queued, took time.Duration) {
	for _, o := range g.observers {
		guarded(g.log, "HandlerEnded", &g.handlerEnded, func() { o.HandlerEnded(method, code, queued, took) })
	}
}

func (g *guardedServerObserver) RequestRefused(method string, code Code) {
	for _, o := range g.observers {
		guarded(g.log, "RequestRefused", &g.requestRefused, func() { o.RequestRefused(method, code) })
	}
}

func (g *guardedServerObserver) BatchReceived(calls int) {
	for _, o := range g.observers {
		guarded(g.log, "BatchReceived", &g.batchReceived, func() { o.BatchReceived(calls) })
	}
}

// guarded calls a method of an observer. When the observer panics, or ends the goroutine,
// that is logged once.
func guarded(log *zap.Logger, method string, once *sync.Once, call func()) {
	returned := false
	defer func() {
		if returned {
			return
		}
		value := recover() // nil when the observer ended the goroutine, which goes on ending
		once.Do(func() {
			log.Error("observer panicked", zap.String("observer_method", method),
				zap.String("panic", panicText(value)), zap.ByteString("stack", debug.Stack()))
		})
	}()
	call()
	returned = true
}

// observation is a call that an observer is to be told of; its zero value is for none.
type observation struct {
	method string
	begun  time.Time
}

// observe begins an observation, if there is an observer.
func (c *Client) observe(method string) (o observation) {
	if c.cfg.observer != nil {
		o = observation{method: method, begun: time.Now()}
	}
	return o
}

// now is when the call begins: the clock is read once for each.
func (o observation) now() time.Time {
	if o.begun.IsZero() {
		return time.Now()
	}
	return o.begun
}

// recordCall counts a call that ended.
func (c *Client) recordCall(o observation, err error) {
	if err == nil {
		c.counts.ok.Add(1)
	} else {
		c.counts.failed.Add(1)
		c.noteUnanswered(err)
	}
	if c.cfg.observer != nil {
		c.cfg.observer.CallSettled(o.method, c.codeOf(err), time.Since(o.begun))
	}
}

// codeOf is CodeOf for an error that middleware may have made: its methods may panic.
func (c *Client) codeOf(err error) (code Code) {
	if err == nil {
		return ""
	}
	if coded, ok := err.(*Error); ok { //nolint:errorlint // of this package, as nearly always.
		return coded.Code()
	}
	defer func() {
		if recover() != nil {
			code = CodeUnknown
		}
	}()
	return CodeOf(err)
}

// recordBatchSent counts calls that left in one message.
func (c *Client) recordBatchSent(calls int) {
	c.counts.batched.Add(uint64(calls)) //nolint:gosec // a length is never negative.
	if c.cfg.observer != nil {
		c.cfg.observer.BatchSent(calls)
	}
}

// recordRefusal tells of a request that is answered without being run.
func (s *Server) recordRefusal(j *job, code Code) {
	s.counts.refused.Add(1)
	if s.cfg.observer == nil {
		return
	}
	name := ""
	if j.method != nil {
		name = j.method.name
	}
	s.cfg.observer.RequestRefused(name, code)
}

// recordBatchReceived counts requests that came in one message.
func (s *Server) recordBatchReceived(calls int) {
	s.counts.requests.Add(uint64(calls)) //nolint:gosec // a length is never negative.
	s.counts.batched.Add(uint64(calls))  //nolint:gosec // a length is never negative.
	if s.cfg.observer != nil {
		s.cfg.observer.BatchReceived(calls)
	}
}
