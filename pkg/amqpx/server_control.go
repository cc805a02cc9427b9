package amqpx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Control plane. Every server consumes, from a queue of its own, the messages to a fanout
// exchange: cancellations of calls (server_cancels.go), and queries about the server
// (describe, below). docs/protocol.md describes the messages.

const (
	// controlPrefetch, controlLength and controlResponses bound the resources which a flood of
	// control messages can use: the deliveries in this process, the messages in its queue,
	// where the broker drops the oldest, and the responses in progress.
	controlPrefetch  = 64
	controlLength    = 1024
	controlResponses = 64
)

// control receives control messages during one session of a server.
type control struct {
	server     *Server
	sess       *transport.Session
	ch         transport.Channel
	queue      string
	deliveries <-chan amqp.Delivery
}

// errControlEnded ends a session whose control queue is gone.
var errControlEnded error = &transport.KindError{Kind: FaultQueueDeleted, Cause: errors.New("that of the control plane")}

// controlRetry is the time between two attempts to set up the control plane.
const controlRetry = 15 * time.Second

// startControl starts to receive control messages, on a channel of its own. If the broker
// refuses this, the server serves without a control plane and tries again.
func (s *Server) startControl(sess *transport.Session) error {
	if !s.cfg.control {
		return nil
	}
	err := s.listenToControl(sess)
	if err == nil || !isChannelException(err) {
		return err
	}
	s.control.Store(nil)
	s.warnNoControl(sess, err)
	sess.Run(func() { s.retryControl(sess) })
	return nil
}

// retryControl tries to set up the control plane until it succeeds or the session ends.
func (s *Server) retryControl(sess *transport.Session) {
	again := time.NewTicker(controlRetry)
	defer again.Stop()
	for {
		select {
		case <-again.C:
		case <-sess.Done:
			return
		}
		err := s.listenToControl(sess)
		if err == nil || sess.Ended() {
			return
		}
		s.warnNoControl(sess, err)
	}
}

// listenToControl starts to receive control messages.
func (s *Server) listenToControl(sess *transport.Session) error {
	exchange := s.cfg.queue.controlExchange()
	c := &control{server: s, sess: sess, queue: exchange + "." + strings.ReplaceAll(newID(), "-", "")}
	if err := c.listen(exchange); err != nil {
		return transport.AtStep(transport.StepControl, "", err)
	}
	s.control.Store(c)
	sess.Run(c.read)
	return nil
}

// warnNoControl logs that the server has no control plane.
func (s *Server) warnNoControl(sess *transport.Session, err error) {
	fault := transport.Classify(sess.Target, err)
	s.logs.noControl.of(s.cfg.logger).Warn("no control plane: the broker refused it",
		zap.String("exchange", s.cfg.queue.controlExchange()), zap.String("fault", string(fault.Kind)), zap.Error(fault))
}

// isChannelException reports whether the broker refused an operation by closing the channel,
// which leaves the connection open.
func isChannelException(err error) bool {
	refused, ok := errors.AsType[*amqp.Error](err)
	if !ok || !refused.Server {
		return false
	}
	switch refused.Code {
	case amqp.AccessRefused, amqp.NotFound, amqp.ResourceLocked, amqp.PreconditionFailed:
		return true
	default:
		return false
	}
}

// listen declares the exchange and a queue which is deleted when the connection ends.
func (c *control) listen(exchange string) (err error) {
	if c.ch, err = c.sess.Sub.Channel(); err != nil {
		return err
	}
	if err = c.ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
		return err
	}
	if _, err = c.ch.QueueDeclare(c.queue, false, true, true, false, amqp.Table{amqp.QueueMaxLenArg: int64(controlLength)}); err != nil {
		return err
	}
	if err = c.ch.QueueBind(c.queue, "", exchange, false, nil); err != nil {
		return err
	}
	if err = c.ch.Qos(controlPrefetch, 0, false); err != nil {
		return err
	}
	c.deliveries, err = c.ch.Consume(c.queue, transport.ControlTag, false, true, false, false, nil)
	return err
}

// read handles control messages until the session ends.
func (c *control) read() {
	for {
		select {
		case d, ok := <-c.deliveries:
			if !ok {
				c.sess.Fail(errControlEnded)
				return
			}
			c.handle(&d)
			if err := c.ch.Ack(d.DeliveryTag, false); err != nil {
				c.sess.Fail(err)
				return
			}
		case <-c.sess.Done:
			return
		}
	}
}

// handle handles one control message.
func (c *control) handle(d *amqp.Delivery) {
	s := c.server
	switch d.AppId {
	case "": // a response to this server's own query
		open, _ := s.queries.Load(d.CorrelationId)
		if q, ok := open.(*query); ok {
			q.passOn(d)
		}
	case wire.ControlCancel:
		if err := s.cancelCalls(d); err != nil {
			c.warnMalformed(d, err)
		}
	case wire.ControlPing, wire.ControlInfo, wire.ControlStats:
		if d.ReplyTo == "" || !wire.SafeReplyTo(d.ReplyTo) {
			c.warnMalformed(d, errors.New("no reply_to for a response"))
			return
		}
		if user := s.callerOf(d); d.ReplyTo != c.queue && !s.mayRespond(d.ReplyTo, user) {
			s.warnReplyTo(d, user)
			return
		}
		s.respondToQuery(d)
	default:
		c.warnMalformed(d, errors.New("unknown app_id"))
	}
}

// warnMalformed logs that a control message was dropped.
func (c *control) warnMalformed(d *amqp.Delivery, err error) {
	c.server.logs.badControl.of(c.server.cfg.logger).Warn("dropped a control message that cannot be read",
		zap.String("app_id", wire.Truncate(d.AppId, wire.MaxShortString)), zap.Error(err))
}

// cancelCalls cancels the calls in a message, which has the format of a batch: a record has
// the id of a call, its method, and its key if the key differs from the id. Only calls of the
// message's sender, with the same user and reply_to, are canceled. A call without a request
// here may run on another server, or its request may be on its way. The id of a stream is its
// number. The returned error is the error of the last malformed record.
func (s *Server) cancelCalls(d *amqp.Delivery) error {
	var room [64][]byte
	records, err := wire.AppendRecords(room[:0], d.Body)
	if err != nil {
		return err
	}
	user, now := s.callerOf(d), time.Now()
	for _, record := range records {
		in := incoming{user: user}
		if failed := formatRefusal(in.DecodeRecord(record, d.ReplyTo, s.nameOf)); failed != nil {
			err = failed
			continue
		}
		m := s.methods[in.Method]
		switch {
		case m == nil && s.streams.methods[in.Method] != nil:
			s.cancelOpening(&in, now)
			continue
		case m == nil, in.ID == "":
			continue
		}
		for _, r := range s.dedup.cancel(m, &in, now) {
			s.counts.canceled.Add(1)
			r.Cancel()
		}
	}
	return err
}

// respondToQuery responds to a query about this server.
func (s *Server) respondToQuery(d *amqp.Delivery) {
	if s.controlResponses.Add(1) > controlResponses {
		s.controlResponses.Add(-1) // a flood of queries gets fewer responses than queries
		return
	}
	body, err := s.describe(d.AppId)
	if err != nil { // not expected: every value can be encoded
		s.controlResponses.Add(-1)
		s.cfg.logger.Error("server cannot be described", zap.Error(err))
		return
	}
	m := &controlMessage{server: s, to: d.ReplyTo, msg: amqp.Publishing{
		ContentType: "application/json", CorrelationId: d.CorrelationId, Body: body,
	}}
	if s.suspects.isAvoided(d.ReplyTo) {
		m.undeliverable(errAvoided)
		return
	}
	s.direct.outbox.Put(m)
}

// controlMessage is a response of the control plane, or a server's ping to itself.
type controlMessage struct {
	server *Server // of a response; nil for a ping
	to     string
	msg    amqp.Publishing
	over   atomic.Bool // the caller does not wait any more
}

// BeginSend implements publish.Outbound.
func (m *controlMessage) BeginSend(uint64) bool { return !m.over.Load() }

// Canceled implements publish.Outbound.
func (m *controlMessage) Canceled() bool { return m.over.Load() }

// Publishing implements publish.Outbound.
func (m *controlMessage) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	return m.to, false, m.msg
}

// OnResult implements publish.Outbound. A lost ping is not sent again.
func (m *controlMessage) OnResult(f publish.Result) {
	switch {
	case m.server == nil:
	case f == publish.Unsent:
		m.server.direct.outbox.Put(m)
	case f == publish.Lost:
		m.server.isolate(m) // the message may have ended the connection
	default:
		m.server.controlResponses.Add(-1)
	}
}

// undeliverable implements isolable.
func (m *controlMessage) undeliverable(cause error) {
	m.server.controlResponses.Add(-1)
	m.server.noteUndeliverable(m.to, m.msg.CorrelationId, cause)
}

// query is an open question to servers, whose responses have its correlation id. A client
// receives them from a queue of the query, a server from the queue of its control plane.
type query struct {
	id        string
	begun     time.Time
	lost      <-chan struct{} // closed when no response can arrive any more; nil if failed tells
	responses chan *ServerInfo
	failed    chan error
	over      chan struct{} // closed when the asker does not wait any more
}

func newQuery(id string, lost <-chan struct{}) query {
	return query{
		id: id, begun: time.Now(), lost: lost,
		responses: make(chan *ServerInfo), failed: make(chan error, 1), over: make(chan struct{}),
	}
}

// passOn hands a response to the asker. It drops any other message.
func (q *query) passOn(d *amqp.Delivery) {
	var in ServerInfo
	if d.CorrelationId != q.id || json.Unmarshal(d.Body, &in) != nil {
		return // not from a server of this package
	}
	in.RoundTripMS = float64(time.Since(q.begun).Microseconds()) / float64(time.Millisecond/time.Microsecond)
	select {
	case q.responses <- &in:
	case <-q.over:
	}
}

// await calls take with each response until take returns false, enough has a value, the query
// fails, or ctx ends.
func (q *query) await(ctx context.Context, status func() Status, enough <-chan time.Time, take func(*ServerInfo) (more bool)) error {
	for {
		select {
		case in := <-q.responses:
			if !take(in) {
				return nil
			}
		case err := <-q.failed:
			return err
		case <-q.lost:
			return localError(CodeUnavailable, MayHaveRun, ErrNotConnected, "the connection was lost")
		case <-enough:
			return localError(CodeDeadlineExceeded, MayHaveRun, nil, "no server responded")
		case <-ctx.Done():
			return noAnswer(ctx, status())
		}
	}
}

// Ping sends a query to this server over the broker and returns the time until the response. A
// success means that both connections, the broker's routing and this server's consumer work. Ping
// is for health checks at a low rate. The error is an [*Error] that matches the error of ctx,
// [ErrNotConnected] or [ErrBlocked], if that is the reason.
func (s *Server) Ping(ctx context.Context) (took time.Duration, err error) {
	if err = s.check(ctx); err != nil {
		return 0, err
	}
	if s.sup.Current() == nil {
		return 0, notConnected(s.Status())
	}
	c := s.control.Load()
	if c == nil {
		return 0, localError(CodeUnimplemented, DidNotRun, nil, "this server has no control plane")
	}
	q := newQuery(newID(), c.sess.Done)
	s.queries.Store(q.id, &q)
	ping := &controlMessage{to: c.queue, msg: amqp.Publishing{AppId: wire.ControlPing, ReplyTo: c.queue, CorrelationId: q.id}}
	s.outbox.Put(ping)
	err = q.await(ctx, s.Status, nil, func(in *ServerInfo) (more bool) {
		took = time.Since(q.begun)
		return in.ID != s.self.id
	})
	close(q.over)
	s.queries.Delete(q.id)
	if err != nil {
		ping.over.Store(true)
		s.outbox.NoteCanceled()
		return 0, err
	}
	return took, nil
}

// notConnected returns the error of a query without a connection.
func notConnected(st Status) *Error {
	if st.Err == nil {
		return localError(CodeUnavailable, DidNotRun, ErrNotConnected, st.State.String())
	}
	return localError(CodeUnavailable, DidNotRun, ErrNotConnected, st.Err.Error())
}

// noAnswer returns the error of a query without a response in time.
func noAnswer(ctx context.Context, st Status) *Error {
	if st.State == StateBlocked {
		return contextError(ctx.Err(), MayHaveRun, ErrBlocked, st.Reason)
	}
	return contextError(ctx.Err(), MayHaveRun, nil, fmt.Sprintf("no response, the connection is %v", st.State))
}

// logInterval is the minimum time between two log lines of one logLimit.
const logInterval = 30 * time.Second

// logLimit limits the log lines about faults that other programs can cause at any rate. The
// first fault is logged at once, later faults at most once every logInterval, with the number
// of the faults that were not logged in between. The zero value is ready to use. Safe for
// concurrent use.
type logLimit struct {
	mu      sync.Mutex
	next    time.Time // no line is logged before
	skipped int       // faults since the last line
}

// of returns logger, or a logger that drops everything while the limit is reached.
func (l *logLimit) of(logger *zap.Logger) *zap.Logger {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.next) {
		l.skipped++
		return zap.NewNop()
	}
	if l.skipped > 0 {
		logger = logger.With(zap.Int("not_logged", l.skipped))
	}
	l.next, l.skipped = now.Add(logInterval), 0
	return logger
}

// serverLogs holds the limits for the log lines of a server, one for each kind of fault.
type serverLogs struct {
	badBatch       logLimit // malformed batches and records of batches
	tooLarge       logLimit // one-way requests and batches beyond the size limit
	deferred       logLimit // requests without room for their bodies
	badControl     logLimit // malformed control messages
	undeliverable  logLimit // messages that end the connection on which they are published
	nackedResponse logLimit
	nackedMove     logLimit
	replyTo        logLimit // messages whose reply_to WithReplyPrefix does not allow
	callerLimit    logLimit // requests beyond the limits of their callers
	details        logLimit // details of errors that do not fit
	badStream      logLimit // malformed openings of streams
	oneWay         logLimit // errors of one-way requests
	dedupStore     logLimit // failures of the store of WithDedupStore
	dedupClaim     logLimit // lost claims in this store

	noControl      logLimit // the control plane cannot be set up
	streams        logLimit // the queues of streams
	companion      logLimit // queues that the server cannot use
	sideConnection logLimit // lost connections of server_side_connection.go
}

// ServerInfo is one server's description of itself ([Client.Servers]). Its JSON is the response to
// the queries of the control plane. The response to "ping" is without Methods and Stats, the
// response to "info" without Stats and the methods' counts.
type ServerInfo struct {
	// ID is new for each [Server]; Name and Version are set with [WithName] and [WithVersion].
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	// Host and PID identify the process.
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Queue is the request queue.
	Queue string `json:"queue"`
	// Shards is the server's number of request queues ([WithShards]). Retiring are the numbers of
	// further shards that exist and that the server consumes too. ShardRequests are the numbers of
	// requests received from each shard, of the response to "stats" of a server with several.
	Shards        int      `json:"shards,omitempty"`
	Retiring      []int    `json:"retiring,omitempty"`
	ShardRequests []uint64 `json:"shard_requests,omitempty"`
	// State is the state of the connection ([State.String]): ready, blocked or draining.
	State string `json:"state"`
	// Broker and Node are the node of the connection ([Status]).
	Broker string `json:"broker,omitempty"`
	Node   string `json:"node,omitempty"`
	// Started is a time of the server's clock; UptimeSeconds does not depend on the clocks.
	Started       time.Time `json:"started"`
	UptimeSeconds float64   `json:"uptime_seconds"`
	// RoundTripMS is the time until the response of the server, in milliseconds. The client
	// sets this field.
	RoundTripMS float64 `json:"round_trip_ms,omitempty"`
	// Workers, Prefetch and Batch are settings of the server.
	Workers  int  `json:"workers,omitempty"`
	Prefetch int  `json:"prefetch,omitempty"`
	Batch    bool `json:"batch,omitempty"`
	// Methods are the methods of the server, sorted by name.
	Methods []MethodInfo `json:"methods,omitempty"`
	// Stats are the counters of the server.
	Stats *ServerStats `json:"stats,omitempty"`
}

// MethodInfo describes one method of a server.
type MethodInfo struct {
	Name       string `json:"name"`
	AtMostOnce bool   `json:"at_most_once,omitempty"`
	// OK and Failed count the handlers that returned a result or an error.
	OK     uint64 `json:"ok"`
	Failed uint64 `json:"failed"`
	// LatencyMS summarises the run times of the handlers since the server was created, in
	// milliseconds.
	LatencyMS Latency `json:"latency_ms"`
}

// Latency summarises times in milliseconds, with a precision of two significant digits.
type Latency struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
}

// instance is the constant part of a server's description.
type instance struct {
	id      string
	host    string
	started time.Time
}

func newInstance() instance {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return instance{id: newID(), host: host, started: time.Now()}
}

// describe returns the response to a query about the server.
func (s *Server) describe(question string) ([]byte, error) {
	st := s.Status()
	in := ServerInfo{
		ID: s.self.id, Name: s.cfg.name, Version: s.cfg.version, Host: s.self.host, PID: os.Getpid(),
		Queue: s.cfg.queue.Name, State: st.State.String(), Broker: st.Broker, Node: st.Node,
		Started: s.self.started.UTC(), UptimeSeconds: time.Since(s.self.started).Seconds(),
	}
	if question == wire.ControlPing {
		return json.Marshal(in)
	}
	in.Workers, in.Prefetch, in.Batch = s.cfg.workers, s.cfg.prefetch, s.cfg.batch == BatchAuto
	in.Shards, in.Retiring = s.cfg.shards, s.retiring.numbers()
	for _, name := range slices.Sorted(maps.Keys(s.methods)) {
		m := MethodInfo{Name: name, AtMostOnce: s.methods[name].atMostOnce}
		if question == wire.ControlStats {
			s.methods[name].times.sumUp(&m)
		}
		in.Methods = append(in.Methods, m)
	}
	if question == wire.ControlStats {
		st := s.Stats()
		in.Stats = &st
		in.ShardRequests = s.requestsByShard(in.Retiring)
	}
	return json.Marshal(in)
}

// handlerTimes counts the ended handlers of a method, and their run times. The zero value is
// ready to use; safe for concurrent use.
type handlerTimes struct {
	ok, failed atomic.Uint64

	mu   sync.Mutex
	took *hdrhistogram.Histogram // in µs; nil before the first handler
}

// slowestHandler is the longest run time in the histogram; longer times count as this value.
const slowestHandler = time.Hour

// ended counts a handler that ended.
func (h *handlerTimes) ended(ok bool, took time.Duration) {
	if ok {
		h.ok.Add(1)
	} else {
		h.failed.Add(1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.took == nil {
		const digits = 2
		h.took = hdrhistogram.New(1, slowestHandler.Microseconds(), digits)
	}
	_ = h.took.RecordValue(min(took.Microseconds(), slowestHandler.Microseconds())) // within its bounds
}

// sumUp sets the counts and latencies of m.
func (h *handlerTimes) sumUp(m *MethodInfo) {
	m.OK, m.Failed = h.ok.Load(), h.failed.Load()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.took == nil {
		return
	}
	const perMS = 1000
	m.LatencyMS = Latency{
		Mean: h.took.Mean() / perMS, P50: float64(h.took.ValueAtPercentile(50)) / perMS,
		P99: float64(h.took.ValueAtPercentile(99)) / perMS, Max: float64(h.took.Max()) / perMS,
	}
}
