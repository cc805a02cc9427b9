package amqpx

import (
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"
)

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

// settled counts a call that ended.
func (c *Client) settled(o observation, err error) {
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

// sentBatch counts calls that left in one message.
func (c *Client) sentBatch(calls int) {
	c.counts.batched.Add(uint64(calls)) //nolint:gosec // a length is never negative.
	if c.cfg.observer != nil {
		c.cfg.observer.BatchSent(calls)
	}
}

// refused tells of a request that is answered without being run.
func (s *Server) refused(j *job, code Code) {
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

// receivedBatch counts requests that came in one message.
func (s *Server) receivedBatch(calls int) {
	s.counts.requests.Add(uint64(calls)) //nolint:gosec // a length is never negative.
	s.counts.batched.Add(uint64(calls))  //nolint:gosec // a length is never negative.
	if s.cfg.observer != nil {
		s.cfg.observer.BatchReceived(calls)
	}
}
