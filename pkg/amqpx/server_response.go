package amqpx

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

const (
	// nackedPauseMin and nackedPauseMax bound the pauses before a nacked response is published
	// again. A broker nacks, for example, when the queue's process restarts.
	nackedPauseMin = 20 * time.Millisecond
	nackedPauseMax = time.Second
	// nackedElsewhere is the number of nacks after which a response is published once on the
	// isolated connection: 1.6 to 3.3 s after the first nack, then every 4 to 8 s, because the
	// pauses are random. RabbitMQ 3.10 and 3.11 nack all messages to a quorum queue, as a reply
	// queue may be, on a channel that first published to the queue during the election of its
	// leader; the isolated connection is newer. A full reply queue nacks on every connection, so
	// the isolated connection must be used seldom.
	nackedElsewhere = 8
	// nackedFor is how long a response to a call without a deadline is published again.
	nackedFor = 30 * time.Second
)

// outboundResponse is a response on its way to the caller. Its confirm acknowledges the
// request, so the broker always holds the request or the response. Only a refusal with
// [DidNotRun] is sent after the acknowledgement of its request: otherwise the broker could
// deliver the request again, and it would run.
type outboundResponse struct {
	server   *Server
	request  *inboundRequest
	response wire.Response
	tries    int
	route    responseRoute
	acked    bool // the acknowledgement of the request precedes the response
	// replaced is true if the response is an error in place of a response which the broker
	// rejected.
	replaced bool
}

// responseRoute is the connection on which a response is published.
type responseRoute uint8

const (
	routeMain     responseRoute = iota // the session's connection
	routeDirect                        // the connection for direct reply-to
	routeIsolated                      // the connection for suspects
)

// reply sends the response to a request. A one-way request has no response and is only
// acknowledged; its error is logged. Without a connection the response waits in the outbox for the next connection:
// the reply queue outlives a connection.
func (s *Server) reply(req *inboundRequest, r reply) {
	if req.in.OneWay {
		if r.failed != nil && req.in.ReplyTo == "" { // otherwise the reply_to is refused, and logged
			s.logOneWay(req, r.failed)
		}
		req.ack()
		return
	}
	req.response = outboundResponse{server: s, request: req, response: r.toWire(s.selfID)}
	req.response.send()
}

// logOneWay logs the error of a one-way request, which its caller does not get.
func (s *Server) logOneWay(req *inboundRequest, e *Error) {
	s.logs.oneWay.of(s.cfg.logger).Warn("a one-way request failed", zap.String("method", wire.Truncate(req.in.Method, wire.MaxShortString)),
		zap.String("correlation_id", req.in.ID), zap.String("code", string(e.code)), zap.String("outcome", e.outcome.String()),
		zap.String("error", wire.Truncate(e.message, maxLoggedMessage)))
}

// maxLoggedMessage bounds the message of an error of a one-way request in the log, in bytes.
const maxLoggedMessage = 1024

// send puts the response into the outbox of the right connection. A response to an address
// which has ended a connection is dropped.
func (a *outboundResponse) send() {
	s, in := a.server, a.request.in
	switch direct := isDirectAddress(in.ReplyTo); {
	case direct && s.suspects.isAvoided(in.ReplyTo):
		a.undeliverable(errAvoided)
	case a.route == routeIsolated || s.suspects.isSuspect(in):
		a.isolate()
	case direct:
		a.route = routeDirect
		s.direct.outbox.Put(a)
	default:
		a.route = routeMain
		s.outbox.Put(a)
	}
}

// isolate publishes the response alone on its connection.
func (a *outboundResponse) isolate() {
	a.route = routeIsolated
	a.server.isolate(a)
}

// undeliverable implements isolable. It acknowledges the request, so that the response cannot
// end another connection.
func (a *outboundResponse) undeliverable(cause error) {
	a.server.noteUndeliverable(a.request.in.ReplyTo, a.request.in.ID, cause)
	a.done()
}

// refuse responds to a request that no handler of this server ran. A refusal with [DidNotRun]
// is sent after the acknowledgement of the request's message. A request in a batch is
// acknowledged when all other requests of the batch are completed; see delivery.bound.
func (s *Server) refuse(req *inboundRequest, e *Error) { s.refuseWith(req, e, nil) }

// refuseWith is refuse for a refusal of middleware, which may have set properties.
func (s *Server) refuseWith(req *inboundRequest, e *Error, props *wire.Properties) {
	s.recordRefusal(req, e.code)
	r := s.refusalOf(req, e)
	r.props = props
	if req.in.OneWay || r.failed.outcome != DidNotRun {
		s.reply(req, r)
		return
	}
	req.response = outboundResponse{server: s, request: req, response: r.toWire(s.selfID), acked: true}
	req.refuseAfterAck(&req.response)
}

// refusalOf returns the response to a refused request. Its outcome is [DidNotRun] only if no
// earlier delivery or sending of the request is known.
func (s *Server) refusalOf(req *inboundRequest, e *Error) reply {
	if req.in.Redelivered && e.outcome == DidNotRun {
		e.outcome = MayHaveRun
	}
	return reply{failed: e, times: wire.Times{Queue: time.Since(req.delivery.arrived)}}
}

// BeginSend implements publish.Outbound. A response is always sent.
func (a *outboundResponse) BeginSend(uint64) bool { return true }

// Canceled implements publish.Outbound.
func (a *outboundResponse) Canceled() bool { return false }

// Publishing implements publish.Outbound. The return of a mandatory response is only counted: a caller
// without a reply queue needs no response.
func (a *outboundResponse) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	in := a.request.in
	return in.ReplyTo, a.server.returnsCount(in.ReplyTo), a.response.Publishing(&in.Request, a.server.cfg.persistent)
}

// BatchKey implements publish.Batchable. A client that sends batches can read batches.
func (a *outboundResponse) BatchKey() string {
	if !a.request.delivery.batched || !a.response.FitsBatch() || a.response.BatchSize(&a.request.in.Request) > publish.MaxRecordBytes {
		return ""
	}
	return a.request.in.ReplyTo
}

// Consumers implements publish.Batchable. A reply queue has one consumer, the client.
func (a *outboundResponse) Consumers() int { return 1 }

// MustTravelAlone implements publish.Batchable.
func (a *outboundResponse) MustTravelAlone() bool { return false }

// NewBatch implements publish.Batchable.
func (a *outboundResponse) NewBatch(key string, limit int, buffer []byte) publish.Batch {
	if len(buffer) == 0 {
		buffer = wire.BeginResponses(buffer, a.server.selfID)
	}
	return &responseBatch{
		replyTo: key, limit: min(limit, publish.BatchLimit(a.server.cfg.maxMessageSize)), body: buffer,
		persistent: a.server.cfg.persistent, mandatory: a.server.returnsCount(key),
	}
}

// responseBatch is a batch of responses to one client.
type responseBatch struct {
	responses  []*outboundResponse
	replyTo    string
	persistent bool
	mandatory  bool
	limit      int    // of the body in bytes
	body       []byte // valid until the batch is published
}

// Fits implements publish.Batch.
func (b *responseBatch) Fits(m publish.Batchable) bool {
	a, ok := m.(*outboundResponse)
	return ok && len(b.body)+a.response.BatchSize(&a.request.in.Request) <= b.limit
}

// Add implements publish.Batch.
func (b *responseBatch) Add(m publish.Batchable) {
	if a, ok := m.(*outboundResponse); ok {
		b.responses = append(b.responses, a)
		b.body = a.response.AppendTo(b.body, &a.request.in.Request)
	}
}

// Size implements publish.Batch.
func (b *responseBatch) Size() int { return len(b.responses) }

// Sent implements publish.Batch.
func (b *responseBatch) Sent() {}

// Buffer implements publish.Batch.
func (b *responseBatch) Buffer() []byte { return b.body }

// BeginSend implements publish.Outbound.
func (b *responseBatch) BeginSend(uint64) bool { return true }

// Canceled implements publish.Outbound.
func (b *responseBatch) Canceled() bool { return false }

// Publishing implements publish.Outbound.
func (b *responseBatch) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	return b.replyTo, b.mandatory, amqp.Publishing{
		ContentType: wire.ContentTypeResponses, DeliveryMode: wire.DeliveryMode(b.persistent), Body: b.body,
	}
}

// Reject implements publish.Rejectable: the broker accepted no part of the batch, and its responses
// are sent again in smaller batches, or alone.
func (b *responseBatch) Reject(error) { b.OnResult(publish.Unsent) }

// OnResult implements publish.Outbound.
func (b *responseBatch) OnResult(f publish.Result) {
	for _, a := range b.responses {
		a.OnResult(f)
	}
}

// OnResult implements publish.Outbound.
func (a *outboundResponse) OnResult(f publish.Result) {
	switch {
	case f == publish.Confirmed, f == publish.Returned:
		if f == publish.Returned {
			a.server.counts.unroutable.Add(1)
		}
		if a.route == routeIsolated {
			a.server.suspects.clear(a.request.in)
		}
		a.done()
	case f == publish.Nacked:
		a.nacked()
	case f == publish.Unsent && (a.acked || a.route != routeMain || !a.request.delivery.consumer.sess.Ended()): // no redelivery of the request
		a.send()
	case f == publish.Suspect:
		a.isolate() // the response may have ended the channel
	case a.acked || a.route != routeMain:
		a.isolate() // the response may have ended the connection
	default:
		a.server.suspects.noteUnconfirmed(a.request.in)
		a.request.leaveUnacked() // lost with its session: the broker delivers the request again
	}
}

// Reject implements publish.Rejectable. The caller gets an error in place of a response which the
// broker rejects. If the broker rejects the error too, the request is only acknowledged.
func (a *outboundResponse) Reject(cause error) {
	code, told := CodeInternal, errors.New("the broker does not take the response")
	if errors.Is(cause, ErrTooLarge) {
		code, told = CodeResourceExhausted, cause
	}
	if a.replaced {
		a.undeliverable(cause)
		return
	}
	a.replaced = true
	a.response.Body, a.response.Properties = nil, nil
	a.response.Failure = failureOf(Errorf(code, "response: %w", told))
	a.send()
}

// nacked publishes the response again after a pause, until the caller's deadline.
func (a *outboundResponse) nacked() {
	s, req := a.server, a.request
	left := nackedFor - time.Since(req.delivery.arrived)
	if req.in.Budget != wire.NoBudget {
		left = req.in.Budget - time.Since(req.delivery.arrived)
	}
	if left <= 0 {
		s.noteNacked(nackedResponse{req.in.ReplyTo, req.in.ID, a.tries + 1})
		a.done()
		return
	}
	pause := min(xsync.GrowingPause(nackedPauseMin, nackedPauseMax, a.tries), left)
	a.tries++
	again := a.send
	if a.tries%nackedElsewhere == 0 {
		again = func() { s.isolate(a) }
	}
	s.delayed.After(pause, again)
}

func (a *outboundResponse) done() {
	if a.acked {
		a.request.finish()
	} else {
		a.request.ack()
	}
}

// forCaller returns the error for the caller of a handler that returned err. A coded error is
// unchanged, except that an invalid code, as in a nil *Error, becomes [CodeUnknown]. The end
// of the handler's context becomes its code. Any other error becomes [CodeInternal] without
// its text, which forCaller logs.
func (s *Server) forCaller(in *incoming, err error) *Error {
	coded := codedError(err)
	if coded != nil {
		s.logCoded(in, coded)
	}
	switch {
	case coded != nil && coded.code.Valid():
		return coded
	case coded != nil:
		return Errorf(CodeUnknown, "%s", coded.message)
	case errors.Is(err, context.DeadlineExceeded):
		return Errorf(CodeDeadlineExceeded, "the call's time ran out in the handler")
	case errors.Is(err, context.Canceled):
		return Errorf(CodeCanceled, "the handler was cancelled")
	}
	if _, panicked := errors.AsType[*panicError](err); panicked {
		s.counts.panics.Add(1)
	} else {
		if bare, ok := err.(*Error); ok && bare == nil { //nolint:errorlint // with nothing around it.
			err = errNilError
		}
		s.cfg.logger.Error("handler failed", zap.String("method", in.Method),
			zap.String("correlation_id", in.ID), zap.Error(err))
	}
	return internalError()
}

// logCoded logs the parts of a handler's error which the caller does not get: the error that it
// hides, and why details were left out.
func (s *Server) logCoded(in *incoming, e *Error) {
	if hidden := e.hiddenError(); hidden != nil {
		s.cfg.logger.Error("handler failed", zap.String("method", in.Method), zap.String("correlation_id", in.ID), zap.Error(hidden))
	}
	if e.leftOut != nil {
		s.warnDetails(in, e.leftOut)
	}
}

// warnDetails logs why an error has fewer details than its handler gave it.
func (s *Server) warnDetails(in *incoming, why error) {
	s.logs.details.of(s.cfg.logger).Warn("details of an error were left out", zap.String("method", in.Method),
		zap.String("correlation_id", in.ID), zap.Error(why))
}

// errNilError is logged when a handler returns a nil *Error as its error.
var errNilError = errors.New("the handler returned a nil *amqpx.Error as error, which is not nil: " +
	"declare the result of the function that made it as error")

// internalError returns the error for a caller who must not know how the handler failed.
func internalError() *Error { return Errorf(CodeInternal, "internal error") }

// Response is a response that a client received; see [CallInfo] and [WithResponseCheck].
type Response struct {
	// Body is the result, or nil for a failure, whose text is in the error.
	Body []byte
	// ContentType and ContentEncoding describe the body; "" if the server did not set them.
	ContentType, ContentEncoding string
	// Type is the AMQP property type, which this package's servers do not set. A response of
	// type "error" is a failure.
	Type string
	// Header holds the application's headers, with values as in [Request.Header]; may be nil.
	Header map[string]any
	// Trailer holds the application's trailers ([SetResponseTrailer]), with values as in
	// [Request.Header]; may be nil.
	Trailer map[string]any
}

// errNoResponse is returned for a context that is not a handler's.
var errNoResponse = errors.New("amqpx: the context is not that of a server's handler")

// SetResponseContentType sets the content type and the content encoding of the response to the
// request of the handler with context ctx; "" means none. Error responses have neither. Each
// value may have at most 255 bytes. The function may be called by any goroutine until the
// handler returns. It returns an error if ctx is not a handler's context, or if a value cannot
// be sent.
func SetResponseContentType(ctx context.Context, contentType, contentEncoding string) error {
	if err := wire.CheckContent(contentType, contentEncoding); err != nil {
		return err
	}
	return changeResponse(ctx, func(p *wire.Properties) error {
		p.ContentType, p.ContentEncoding = contentType, contentEncoding
		return nil
	})
}

// SetResponseHeader sets a header of the response to the request of the handler with context
// ctx, including an error response. The limits of names and values are the limits of
// [WithHeader]. The function may be called by any goroutine until the handler returns. It
// returns an error if ctx is not a handler's context, or if the header cannot be sent. The
// caller reads headers with [WithCallInfo].
func SetResponseHeader(ctx context.Context, name string, value any) error {
	sent, err := wire.EncodeHeader(map[string]any{name: value})
	if err != nil {
		return err
	}
	return changeResponse(ctx, func(p *wire.Properties) error {
		header := maps.Clone(p.Header)
		if header == nil {
			header = make(map[string]any, 1)
		}
		header[name] = sent[name]
		p.Header = header
		return wire.CheckHeader(header)
	})
}

// SetResponseTrailer sets a trailer of the response to the request of the handler with context ctx,
// including an error response. Trailers and headers have separate names; no name of a trailer is
// reserved, and a name has 1 to 243 bytes. Trailers exist for gRPC, where headers come before and
// trailers after the result; here both come with the result. Limits, errors and concurrency are
// those of [SetResponseHeader]. The caller reads trailers with [WithCallInfo].
func SetResponseTrailer(ctx context.Context, name string, value any) error {
	sent, err := wire.EncodeHeader(map[string]any{name: value})
	if err != nil {
		return err
	}
	return changeResponse(ctx, func(p *wire.Properties) error {
		trailer := maps.Clone(p.Trailer)
		if trailer == nil {
			trailer = make(map[string]any, 1)
		}
		trailer[name] = sent[name]
		p.Trailer = trailer
		return wire.CheckTrailer(trailer)
	})
}

// changeResponse atomically replaces the properties of a handler's response by a changed copy.
func changeResponse(ctx context.Context, change func(*wire.Properties) error) error {
	r, ok := ctx.Value(invocationKey{}).(*invocation)
	if !ok {
		return errNoResponse
	}
	for {
		before := r.response.Load()
		var changed wire.Properties
		if before != nil {
			changed = *before
		}
		if err := change(&changed); err != nil {
			return err
		}
		if r.response.CompareAndSwap(before, &changed) {
			return nil
		}
	}
}

// ownProperties is the space in a frame, in bytes, for the properties that this package adds
// to a response.
const ownProperties = 4 << 10

// checkResponse returns an error if the properties and the details of an error do not fit a frame
// of the connection together with the properties of this package.
func (r *invocation) checkResponse(p *wire.Properties, details []wire.Detail) error {
	var msg amqp.Publishing
	p.AddTo(&msg, false)
	if len(details) > 0 {
		wire.SetHeader(&msg, wire.HeaderDetails, wire.EncodeDetails(details))
	}
	size := r.request.delivery.consumer.sess.Pub.FrameSize()
	if size == 0 {
		return nil // the frame size has no limit
	}
	if err := transport.CheckFrame(&msg, max(size-ownProperties, ownProperties/2)); err != nil {
		return Errorf(CodeResourceExhausted, "the response's %w", err)
	}
	return nil
}

// newResponse returns the response in the form for the application.
func newResponse(a *wire.Response) *Response {
	r := &Response{Body: a.Body}
	if p := a.Properties; p != nil {
		r.ContentType, r.ContentEncoding, r.Type, r.Header = p.ContentType, p.ContentEncoding, p.Type, p.Header
		r.Trailer = p.Trailer
	}
	return r
}

// WithResponseCheck sets a function that is called with every successful response, and turns
// the response into an error by returning an error. It is for servers which report a failure
// in the body, for example as {"error": …}. An [*Error] reaches the caller with its code and
// message, any other error with [CodeUnknown] and its text; the outcome is [Ran] in both
// cases. The function runs on the goroutine of the call and must be safe for concurrent use; a
// panic becomes [CodeInternal]. If the option is given twice, the last function counts. The
// default is nil: no check.
func WithResponseCheck(check func(*Response) error) ClientOption {
	return clientOption(func(c *clientConfig) { c.responseCheck = check })
}

// check calls the function of WithResponseCheck with a successful response.
func (k *call) check(a *wire.Response) (failed *Error) {
	defer func() {
		if v := recover(); v != nil {
			failed = localError(CodeInternal, Ran, nil, "the response check panicked: "+panicText(v))
		}
	}()
	err := k.route.check(newResponse(a))
	if err == nil {
		return nil
	}
	if coded := codedError(err); coded != nil {
		own := *coded
		own.outcome = Ran
		return &own
	}
	return localError(CodeUnknown, Ran, nil, strings.ToValidUTF8(err.Error(), "\uFFFD"), err)
}

// nackedResponse is a response which the broker nacked until the caller's deadline.
type nackedResponse struct {
	replyTo, correlationID string
	tries                  int
}

// noteNacked logs that a caller gets no response. A nack has no reason, so a goroutine of the
// current session inspects the reply queue first.
func (s *Server) noteNacked(r nackedResponse) {
	log := s.logs.nackedResponse.of(s.cfg.logger)
	if !log.Core().Enabled(zap.WarnLevel) {
		return // logged a moment ago
	}
	if s.sup.Current() != nil && !isDirectAddress(r.replyTo) {
		select {
		case s.nacked <- nackedToLog{r, log}:
			return
		default:
		}
	}
	r.log(log, "", nil)
}

// nackedToLog is a nacked response with its logger, which adds the number of lines that were
// not logged before.
type nackedToLog struct {
	nackedResponse

	logger *zap.Logger
}

// explainNacked logs nacked responses until the session ends.
func (s *Server) explainNacked(sess *transport.Session) {
	for {
		select {
		case r := <-s.nacked:
			kind, err := checkReplyQueue(sess, r.replyTo)
			r.log(r.logger, kind, err)
		case <-sess.Done:
			return
		}
	}
}

// checkReplyQueue returns the fault of a reply queue that nacks; none if the queue exists.
func checkReplyQueue(s *transport.Session, name string) (FaultKind, error) {
	found := s.InGoroutine(func() error {
		return transport.WithTempChannel(s.Sub, func(ch transport.Channel) error {
			_, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
			return err
		})
	})
	limit := time.NewTimer(checkTimeout)
	defer limit.Stop()
	var err error
	select {
	case err = <-found:
	case <-limit.C:
		err = errNoAnswer
	case <-s.Done:
		err = s.Cause
	}
	if err == nil {
		return "", nil
	}
	fault := transport.Classify(s.Target, transport.AtStep(transport.StepPublishTo, name, err))
	return fault.Kind, fault
}

// log logs the nacked response.
func (r nackedResponse) log(logger *zap.Logger, kind FaultKind, err error) {
	logger.Warn("the broker refused a response, its caller gets none",
		zap.String("reply_to", r.replyTo), zap.String("correlation_id", r.correlationID), zap.Int("tries", r.tries),
		zap.String("fault", string(kind)), zap.Error(err))
}
