package amqpx

import "time"

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

// WithClientObserver sets the client's observer; the default is none.
func WithClientObserver(o ClientObserver) ClientOption {
	return clientOption(func(c *clientConfig) { c.observer = o })
}

// WithServerObserver sets the server's observer; the default is none.
func WithServerObserver(o ServerObserver) ServerOption {
	return serverOption(func(c *serverConfig) { c.observer = o })
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
	}
	if c.cfg.observer != nil {
		c.cfg.observer.CallSettled(o.method, CodeOf(err), time.Since(o.begun))
	}
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
