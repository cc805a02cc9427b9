package amqpx

import (
	"encoding/json"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/stream"
)

// ClientStats has the counts of a client since its construction.
type ClientStats struct {
	// OK and Failed count the calls that returned; InFlight is the number of calls that have
	// not returned.
	OK, Failed, InFlight uint64
	// Resent counts the requests sent beyond each call's first request; a call's re-sends are
	// counted when the call returns.
	Resent uint64
	// Retried counts the retries allowed by the retry budget.
	Retried uint64
	// Hedged counts the second requests of hedged calls ([WithHedge]).
	Hedged uint64
	// Rejected counts the calls that failed at once with [ErrTooManyCalls].
	Rejected uint64
	// Late counts responses to a call that had ended without a response, Duplicates second
	// responses to a call, Unknown responses to no call of this client. All of these responses
	// were dropped.
	Late, Duplicates, Unknown uint64
	// Batched counts the requests sent in a batch.
	Batched uint64
	// Reconnects counts the sessions that became ready after the first.
	Reconnects uint64
	// Blocked is how long the broker has blocked publishing, all times together.
	Blocked time.Duration
	// Streams has the counts of streams.
	Streams StreamStats
}

type clientCounts struct {
	ok, failed, resent        atomic.Uint64
	retried, hedged, rejected atomic.Uint64
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
		Hedged:     c.counts.hedged.Load(),
		Rejected:   c.counts.rejected.Load(),
		Late:       c.counts.late.Load(),
		Duplicates: c.counts.duplicates.Load(),
		Unknown:    c.counts.unknown.Load(),
		Batched:    c.counts.batched.Load(),
		Reconnects: reconnects(c.Status()),
		Blocked:    c.board.blockedFor(),
		Streams:    streamStats(c.streams.table, 0),
	}
}

// ServerStats has the counts of a server since its construction. Its JSON is part of the response
// of the control plane to the query "stats" ([ServerInfo]); durations are in seconds there.
type ServerStats struct {
	// Requests counts the requests received from the queue; InFlight is the number of these
	// requests that are not finished yet.
	Requests uint64 `json:"requests"`
	InFlight uint64 `json:"in_flight"`
	// OK and Failed count the handlers that returned a result or an error; Panics counts the
	// failed handlers that panicked.
	OK     uint64 `json:"ok"`
	Failed uint64 `json:"failed"`
	Panics uint64 `json:"panics"`
	// Refused counts the requests that were answered with an error and not run: malformed
	// requests, or requests for an unknown method. Expired counts the requests whose time was
	// over.
	Refused uint64 `json:"refused"`
	Expired uint64 `json:"expired"`
	// Shed counts the refused requests whose deadline would have passed before a worker was
	// free.
	Shed uint64 `json:"shed"`
	// TooLarge counts the requests and batches with bodies beyond the limit of
	// [WithMaxMessageSize]; these bodies were not read.
	TooLarge uint64 `json:"too_large"`
	// Deferred counts the deliveries for whose bodies there was no room
	// ([WithMaxBytesInHand]); they are delivered again when there is room.
	Deferred uint64 `json:"deferred"`
	// CallerLimited counts the requests refused for the limits of a caller ([WithCallerLimits]).
	CallerLimited uint64 `json:"caller_limited"`
	// ReplyRefused counts the requests that were not run because of their reply_to
	// ([WithReplyPrefix]).
	ReplyRefused uint64 `json:"reply_refused"`
	// DefaultExchange counts the requests that callers published to the default exchange, and
	// not to the request exchange ([WithExchange]).
	DefaultExchange uint64 `json:"default_exchange"`
	// Replayed counts the duplicates that were not run, but got the response of the first request.
	Replayed uint64 `json:"replayed"`
	// Canceled counts the requests canceled by their callers: the handler's context was
	// canceled, or the request was not run.
	Canceled uint64 `json:"canceled"`
	// Requeued counts the requests that a drain put back into the queue.
	Requeued uint64 `json:"returned"`
	// Republished counts the requests that were republished because a server had lost them.
	// Dead counts the dead-lettered requests.
	Republished uint64 `json:"moved"`
	Dead        uint64 `json:"dead"`
	// Batched counts the requests received in a batch.
	Batched uint64 `json:"batched"`
	// Undeliverable counts the responses, and the copies of requests, that were dropped
	// because they had ended the connection used to publish them.
	Undeliverable uint64 `json:"undeliverable"`
	// Unroutable counts the responses that no queue accepted: the callers are gone, or named a
	// reply_to that is no queue. Responses to direct reply-to are not counted.
	Unroutable uint64 `json:"unroutable"`
	// Reconnects counts the sessions that became ready after the first.
	Reconnects uint64 `json:"reconnects"`
	// Blocked is how long the broker has blocked publishing, all times together.
	Blocked time.Duration `json:"-"`
	// Workers is the number of handlers that may run at once, Busy the number of running
	// handlers, Waiting the number of requests waiting in this server for a worker.
	Workers int `json:"workers"`
	Busy    int `json:"busy"`
	Waiting int `json:"waiting"`
	// Stuck is the number of handlers that still run after their time limit, when their
	// requests have been answered ([WithMaxHandlerTime]). While Stuck is more than Workers,
	// some stuck handlers hold workers, and the capacity of the server is reduced.
	Stuck int `json:"stuck"`
	// OldestHandler is the run time of the handler that started first; 0 while no handler
	// runs.
	OldestHandler time.Duration `json:"-"`
	// BytesInHand is the size of the bodies of this server's unacknowledged requests, see
	// [WithMaxBytesInHand].
	BytesInHand int64 `json:"bytes_in_hand"`
	// Streams has the counts of streams.
	Streams StreamStats `json:"streams"`
}

// plainServerStats is ServerStats without methods.
type plainServerStats ServerStats

// serverStatsJSON is the JSON of ServerStats.
type serverStatsJSON struct {
	plainServerStats
	BlockedSeconds       float64 `json:"blocked_seconds"`
	OldestHandlerSeconds float64 `json:"oldest_handler_seconds"`
}

// MarshalJSON encodes the durations as numbers of seconds.
func (s ServerStats) MarshalJSON() ([]byte, error) {
	return json.Marshal(serverStatsJSON{plainServerStats(s), s.Blocked.Seconds(), s.OldestHandler.Seconds()})
}

// UnmarshalJSON decodes the encoding of [ServerStats.MarshalJSON]. Unknown members are ignored.
func (s *ServerStats) UnmarshalJSON(text []byte) error {
	var in serverStatsJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	*s = ServerStats(in.plainServerStats)
	s.Blocked, s.OldestHandler = secondsToDuration(in.BlockedSeconds), secondsToDuration(in.OldestHandlerSeconds)
	return nil
}

// secondsToDuration converts a number from outside: a value beyond the range of a duration
// becomes the nearest duration.
func secondsToDuration(seconds float64) time.Duration {
	switch ns := seconds * float64(time.Second); {
	case ns >= math.MaxInt64:
		return math.MaxInt64
	case ns <= math.MinInt64:
		return math.MinInt64
	default:
		return time.Duration(ns)
	}
}

type serverCounts struct {
	requests, ok, failed, panics, refused, expired, requeued atomic.Uint64
	shed, replayed, republished, dead, batched, canceled     atomic.Uint64
	undeliverable, unroutable                                atomic.Uint64
	tooLarge, deferred, callerLimited                        atomic.Uint64
	replyRefused, defaultExchange                            atomic.Uint64
}

// Stats returns the counters.
func (s *Server) Stats() ServerStats {
	if s == nil || s.cfg == nil {
		return ServerStats{}
	}
	stuck, _ := s.stuck.count()
	return ServerStats{
		Requests: s.counts.requests.Load(),
		InFlight: uint64(max(s.inFlight.Load(), 0)),
		OK:       s.counts.ok.Load(),
		Failed:   s.counts.failed.Load(),
		Panics:   s.counts.panics.Load(),
		Refused:  s.counts.refused.Load(),
		Expired:  s.counts.expired.Load(),
		Shed:     s.counts.shed.Load(),
		Replayed: s.counts.replayed.Load(),
		Canceled: s.counts.canceled.Load(),
		Requeued: s.counts.requeued.Load(),
		Dead:     s.counts.dead.Load(),
		Batched:  s.counts.batched.Load(),

		Republished:   s.counts.republished.Load(),
		Undeliverable: s.counts.undeliverable.Load(),
		Unroutable:    s.counts.unroutable.Load(),

		Reconnects: reconnects(s.Status()),
		Blocked:    s.board.blockedFor(),
		Workers:    s.cfg.workers,
		Busy:       int(s.load.busy.Load()),
		Waiting:    s.waitingTasks(),

		TooLarge:      s.counts.tooLarge.Load(),
		Deferred:      s.counts.deferred.Load(),
		CallerLimited: s.counts.callerLimited.Load(),
		BytesInHand:   s.cfg.inHand.Held.Load(),

		ReplyRefused:    s.counts.replyRefused.Load(),
		DefaultExchange: s.counts.defaultExchange.Load(),

		Stuck:         stuck,
		OldestHandler: s.oldestHandler(),

		Streams: streamStats(s.streams.table, s.streams.refused.Load()),
	}
}

func reconnects(st Status) uint64 {
	if st.Generation == 0 {
		return 0
	}
	return st.Generation - 1
}

// ClientObserver receives the events of a client as they happen. It is the hook for metrics
// ([rabbitmq-rpc/pkg/amqpxprom] is an implementation); plain counts are in [Client.Stats]. The
// methods are called for every call, by many goroutines at once, and must return at once.
type ClientObserver interface {
	// CallSettled is called when a call has returned, with the method, the code ("" for a result),
	// and the time that the caller waited, over every re-send.
	CallSettled(method string, code Code, took time.Duration)
	// BatchSent is called when a batch is sent, with the number of calls in the batch.
	BatchSent(calls int)
}

// ServerObserver receives the events of a server as they happen. The rules of [ClientObserver]
// apply; plain counts are in [Server.Stats].
type ServerObserver interface {
	// HandlerEnded is called when a handler has ended, with the method, the code ("" for a result),
	// the time that the request waited in this server for a worker, and the run time.
	HandlerEnded(method string, code Code, queued, took time.Duration)
	// RequestRefused is called when a request, or the opening of a stream, was answered with an
	// error and not run. The method is "" unless this server has the method: a name sent by a caller is not to be
	// trusted.
	RequestRefused(method string, code Code)
	// BatchReceived is called when a batch has arrived, with the number of calls in the batch.
	BatchReceived(calls int)
}

// StreamObserver receives the ends of streams. A [ClientObserver] or [ServerObserver] that also
// implements StreamObserver gets the ends of the streams of its client or server; streams do not
// call CallSettled and HandlerEnded. The rules of ClientObserver apply.
type StreamObserver interface {
	// StreamEnded is called when a stream that was opened has ended: at a client when it knows the
	// end, at a server when the handler has returned and the broker has the end. It gets the method,
	// the code ("" for an end without an error), the time since the stream was opened, and how far
	// the stream came: Received includes the items that wait for the application. A stream that a
	// server refused is a refused request there (RequestRefused).
	StreamEnded(method string, code Code, took time.Duration, progress Progress)
}

// WithClientObserver adds an observer to the client; nil is ignored, and the default is none.
// If the option is given several times, every observer is called, in the order of the options.
// A panic of an observer harms neither the call nor the process, and is logged once for each
// method of the interface.
func WithClientObserver(o ClientObserver) ClientOption {
	return clientOption(func(c *clientConfig) {
		if o != nil {
			c.observers = append(c.observers, o)
		}
	})
}

// WithServerObserver adds an observer to the server. The rules of [WithClientObserver] apply.
func WithServerObserver(o ServerObserver) ServerOption {
	return serverOption(func(c *serverConfig) {
		if o != nil {
			c.observers = append(c.observers, o)
		}
	})
}

// guardedClientObserver calls several observers and recovers their panics. It implements
// ClientObserver.
type guardedClientObserver struct {
	observers              []ClientObserver
	log                    *zap.Logger
	callSettled, batchSent sync.Once // one log entry for each panicking method
	streamEnded            sync.Once
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

// StreamEnded implements StreamObserver for the observers that do.
func (g *guardedClientObserver) StreamEnded(method string, code Code, took time.Duration, progress Progress) {
	for _, o := range g.observers {
		if streams, ok := o.(StreamObserver); ok {
			guarded(g.log, streamEnded, &g.streamEnded, func() { streams.StreamEnded(method, code, took, progress) })
		}
	}
}

// streamEnded is the name of a method of observers.
const streamEnded = "StreamEnded"

// guardedServerObserver is guardedClientObserver for servers.
type guardedServerObserver struct {
	observers                                   []ServerObserver
	log                                         *zap.Logger
	handlerEnded, requestRefused, batchReceived sync.Once
	streamEnded                                 sync.Once
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

// StreamEnded implements StreamObserver for the observers that do.
func (g *guardedServerObserver) StreamEnded(method string, code Code, took time.Duration, progress Progress) {
	for _, o := range g.observers {
		if streams, ok := o.(StreamObserver); ok {
			guarded(g.log, streamEnded, &g.streamEnded, func() { streams.StreamEnded(method, code, took, progress) })
		}
	}
}

// guarded calls a method of an observer. A panic of the observer, or the end of the goroutine
// by runtime.Goexit, is logged once.
func guarded(log *zap.Logger, method string, once *sync.Once, call func()) {
	returned := false
	defer func() {
		if returned {
			return
		}
		value := recover() // nil for runtime.Goexit, which continues
		once.Do(func() {
			log.Error("observer panicked", zap.String("observer_method", method),
				zap.String("panic", panicText(value)), zap.ByteString("stack", debug.Stack()))
		})
	}()
	call()
	returned = true
}

// observation is a call to be reported to an observer; the zero value is for no observer.
type observation struct {
	method string
	begun  time.Time
}

// observe starts an observation, if there is an observer.
func (c *Client) observe(method string) (o observation) {
	if c.cfg.observer != nil {
		o = observation{method: method, begun: time.Now()}
	}
	return o
}

// now returns the start time of the call, so that the clock is read once for each call.
func (o observation) now() time.Time {
	if o.begun.IsZero() {
		return time.Now()
	}
	return o.begun
}

// recordCall counts a settled call and reports it to the observer.
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

// codeOf is CodeOf for an error that middleware may have made: the methods of such an error
// may panic.
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

// recordBatchSent counts calls sent in one batch.
func (c *Client) recordBatchSent(calls int) {
	c.counts.batched.Add(uint64(calls)) //nolint:gosec // a length is never negative.
	if c.cfg.observer != nil {
		c.cfg.observer.BatchSent(calls)
	}
}

// recordRefusal counts a request that is answered with an error and not run.
func (s *Server) recordRefusal(req *inboundRequest, code Code) {
	s.counts.refused.Add(1)
	s.observeRefusal(req.method, code)
}

// recordStreamRefusal counts a stream that is refused.
func (s *Server) recordStreamRefusal(m *serverMethod, code Code) {
	s.streams.refused.Add(1)
	s.observeRefusal(m, code)
}

// observeRefusal reports a refusal to the observer. The method is nil if this server has none of the
// name.
func (s *Server) observeRefusal(m *serverMethod, code Code) {
	if s.cfg.observer == nil {
		return
	}
	name := ""
	if m != nil {
		name = m.name
	}
	s.cfg.observer.RequestRefused(name, code)
}

// recordStream reports the end of a stream to an observer.
func recordStream(o StreamObserver, method string, begun time.Time, st *stream.Stream, peer string) {
	r := st.Result()
	if r == nil || !r.Counted {
		return
	}
	code := Code("")
	if e := streamError(r, peer); e != nil {
		code = e.code
	}
	o.StreamEnded(method, code, time.Since(begun), progressFrom(st.Given()))
}

// recordBatchReceived counts requests received in one batch.
func (s *Server) recordBatchReceived(calls int) {
	s.counts.requests.Add(uint64(calls)) //nolint:gosec // a length is never negative.
	s.counts.batched.Add(uint64(calls))  //nolint:gosec // a length is never negative.
	if s.cfg.observer != nil {
		s.cfg.observer.BatchReceived(calls)
	}
}
