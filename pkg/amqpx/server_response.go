package amqpx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

const (
	// nackedPauseMin and nackedPauseMax bound the pauses before a response that the broker
	// nacked is published again, as when its queue's process restarts.
	nackedPauseMin = 20 * time.Millisecond
	nackedPauseMax = time.Second
	// nackedFor is how long a response is published again for a call without a deadline.
	nackedFor = 30 * time.Second
)

// outboundResponse is one answer on its way to its caller. Its confirm acknowledges the
// request: the broker always holds either the request or the answer. Only a refusal
// that says "did not run" is sent after its request was acknowledged, or the request
// could come again, and run.
type outboundResponse struct {
	server *Server
	job    *job
	reply  reply
	tries  int
	route  responseRoute
	acked  bool // its request is acknowledged
	// replaced says that the reply stands for one that the broker does not take.
	replaced bool
}

// responseRoute is the connection on which a response is published.
type responseRoute uint8

const (
	routeMain     responseRoute = iota // that of the server's session
	routeDirect                        // that for direct reply-to
	routeIsolated                      // that for suspects
)

// reply answers a job. A one-way call has no answer: it is acknowledged as it is.
// Without a link the answer waits in the outbox for the next one: the reply queue
// outlives the link.
func (s *Server) reply(j *job, r reply) {
	if j.in.OneWay {
		j.ack()
		return
	}
	j.answer = outboundResponse{server: s, job: j, reply: r}
	j.answer.send()
}

// send publishes the response on the connection that it belongs on.
func (a *outboundResponse) send() {
	s, in := a.server, a.job.in
	switch direct := isDirectAddress(in.replyTo); {
	case direct && s.suspects.isAvoided(in.replyTo):
		a.undeliverable(errAvoided)
	case a.route == routeIsolated || s.suspects.isSuspect(in):
		a.isolate()
	case direct:
		a.route = routeDirect
		s.direct.outbox.put(a)
	default:
		a.route = routeMain
		s.outbox.put(a)
	}
}

// isolate publishes the response alone.
func (a *outboundResponse) isolate() {
	a.route = routeIsolated
	a.server.isolate(a)
}

// undeliverable implements isolable: the request is acknowledged, so that it cannot end
// another connection.
func (a *outboundResponse) undeliverable(cause error) {
	a.server.noteUndeliverable(a.job.in.replyTo, a.job.in.CorrelationID, cause)
	a.done()
}

// refuse answers a job that no handler of this server ran. That a request did not run can
// be said when its message is acknowledged, which for a call in a batch is when all the
// others in it are settled; see parcel.bound.
func (s *Server) refuse(j *job, e *Error) {
	s.recordRefusal(j, e.code)
	r := s.refusalOf(j, e)
	if j.in.OneWay || r.failed.outcome != DidNotRun {
		s.reply(j, r)
		return
	}
	j.answer = outboundResponse{server: s, job: j, reply: r, acked: true}
	j.refuseAfterAck(&j.answer)
}

// refusalOf is what a refused job comes to. That it did not run is only said of a
// request that was never in other hands.
func (s *Server) refusalOf(j *job, e *Error) reply {
	if j.in.Redelivered && e.outcome == DidNotRun {
		e.outcome = MayHaveRun
	}
	return reply{failed: e, timing: timing{queue: time.Since(j.arrived)}}
}

// beginSend implements outgoing: an answer is always worth sending.
func (a *outboundResponse) beginSend(uint64) bool { return true }

// canceled implements outgoing.
func (a *outboundResponse) canceled() bool { return false }

// publishing implements outgoing. The broker returns a mandatory response that no queue takes,
// which is only counted: a caller that is gone needs none.
func (a *outboundResponse) publishing() (key string, mandatory bool, msg amqp.Publishing) {
	in, r, persistent := a.job.in, a.reply, a.server.cfg.persistent
	if r.failed != nil {
		msg = encodeError(in, r.failed, r.timing, persistent)
	} else {
		msg = encodeResult(in, r.body, r.timing, persistent)
	}
	r.props.addTo(&msg, r.failed != nil)
	return in.replyTo, a.server.returnsCount(in.replyTo), msg
}

// batchKey implements mate. Who sends batches reads them.
func (a *outboundResponse) batchKey() string {
	if a.job.parcel == nil || !a.reply.props.batchable() || answerSize(a.job.in.CorrelationID, a.reply) > batchBytes {
		return ""
	}
	return a.job.in.replyTo
}

// fits implements mate.
func (a *outboundResponse) fits(b *batch) bool {
	return len(b.body)+answerSize(a.job.in.CorrelationID, a.reply) <= b.limit
}

// consumers implements mate: one client takes them all.
func (a *outboundResponse) consumers() int { return 1 }

// mustTravelAlone implements mate.
func (a *outboundResponse) mustTravelAlone() bool { return false }

// appendTo implements mate.
func (a *outboundResponse) appendTo(b *batch) {
	if len(b.messages) == 0 {
		b.persistent, b.mandatory = a.server.cfg.persistent, a.server.returnsCount(b.key)
	}
	b.body = appendAnswer(b.body, a.job.in, a.reply)
}

// onResult implements outgoing.
func (a *outboundResponse) onResult(f publishResult) {
	switch {
	case f == resultConfirmed, f == resultReturned:
		if f == resultReturned {
			a.server.counts.unroutable.Add(1)
		}
		if a.route == routeIsolated {
			a.server.suspects.clear(a.job.in)
		}
		a.done()
	case f == resultNacked:
		a.nacked()
	case f == resultUnsent && (a.acked || a.route != routeMain || !a.job.from.sess.ended()): // its request does not come again
		a.send()
	case f == resultSuspect:
		a.isolate() // it may be what ended the channel
	case a.acked || a.route != routeMain:
		a.isolate() // it may be what ended the connection
	default:
		a.server.suspects.noteUnconfirmed(a.job.in)
		a.job.finish() // lost with its session: the request comes again
	}
}

// reject implements rejectable: the caller gets an error in place of a response that the
// broker does not take. When it does not take that either, the request is acknowledged.
func (a *outboundResponse) reject(cause error) {
	code, told := CodeInternal, errors.New("the broker does not take the response")
	if errors.Is(cause, ErrTooLarge) {
		code, told = CodeResourceExhausted, cause
	}
	if a.replaced {
		a.undeliverable(cause)
		return
	}
	a.replaced = true
	e := Errorf(code, "response: %w", told)
	e.causes = nil // they stay here, and must not stay in memory
	a.reply.body, a.reply.failed, a.reply.props = nil, e, nil
	a.send()
}

// nacked publishes a response again after a pause, while its caller waits.
func (a *outboundResponse) nacked() {
	s, j := a.server, a.job
	left := nackedFor - time.Since(j.arrived)
	if j.in.budget != noBudget {
		left = j.in.budget - time.Since(j.arrived)
	}
	if left <= 0 {
		s.noteNacked(nackedResponse{j.in.replyTo, j.in.CorrelationID, a.tries + 1})
		a.done()
		return
	}
	pause := min(growingPause(nackedPauseMin, nackedPauseMax, a.tries), left)
	a.tries++
	s.delayed.after(pause, a.send)
}

func (a *outboundResponse) done() {
	if a.acked {
		a.job.finish()
	} else {
		a.job.ack()
	}
}

// forCaller turns a handler's error into what its caller may know: a coded error
// as it is, the end of the handler's context as its code, anything else as
// CodeInternal without its text, which is logged here. A nil *Error has no code.
func (s *Server) forCaller(in *incoming, err error) *Error {
	coded := codedError(err)
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
			zap.String("correlation_id", in.CorrelationID), zap.Error(err))
	}
	return internalError()
}

// errNilError is what is logged of a handler whose error is a nil *Error.
var errNilError = errors.New("the handler returned a nil *amqpx.Error as error, which is not nil: " +
	"declare the result of the function that made it as error")

// internalError is the response of a handler that failed in a way its caller is not told.
func internalError() *Error { return Errorf(CodeInternal, "internal error") }

// Response is a response as a client received it; see [CallInfo] and [WithResponseCheck].
type Response struct {
	// Body is the result; nil for a failure, whose text is in the error.
	Body []byte
	// ContentType and ContentEncoding describe the body; "" when the server did not say.
	ContentType, ContentEncoding string
	// Type is the property type, which this package's servers do not set. "error" is read as
	// a failure.
	Type string
	// Header holds the application's headers, with values as in [Request.Header]. It may be
	// nil.
	Header map[string]any
}

// properties are what a message says beside its body and what this package needs. A value
// is not changed once it is shared.
type properties struct {
	contentType, contentEncoding string
	kind                         string // the property type
	header                       map[string]any
}

// typeError is the property type of responses with which some libraries tell a failure.
const typeError = "error"

// errNoResponse is returned where a context is not that of a handler.
var errNoResponse = errors.New("amqpx: the context is not that of a server's handler")

// SetResponseContentType sets the content type and the content encoding of the response to
// the request that the handler with context ctx answers; "" is none. Responses that are
// errors have none. Each is at most 255 bytes long. It may be called until the handler
// returns, by any goroutine; the error says that ctx is not a handler's, or what cannot be
// sent.
func SetResponseContentType(ctx context.Context, contentType, contentEncoding string) error {
	if err := checkContent(contentType, contentEncoding); err != nil {
		return err
	}
	return changeResponse(ctx, func(p *properties) error {
		p.contentType, p.contentEncoding = contentType, contentEncoding
		return nil
	})
}

// SetResponseHeader sets a header of the response to the request that the handler with
// context ctx answers, also if that is an error. Names and values are bound as those of
// [WithHeader]. It may be called until the handler returns, by any goroutine; the error says
// that ctx is not a handler's, or what cannot be sent. The caller gets headers by
// [WithCallInfo].
func SetResponseHeader(ctx context.Context, name string, value any) error {
	sent, err := encodeHeader(map[string]any{name: value})
	if err != nil {
		return err
	}
	return changeResponse(ctx, func(p *properties) error {
		header := maps.Clone(p.header)
		if header == nil {
			header = make(map[string]any, 1)
		}
		header[name] = sent[name]
		p.header = header
		return checkHeader(header)
	})
}

// changeResponse replaces the properties of a handler's response by a changed copy.
func changeResponse(ctx context.Context, change func(*properties) error) error {
	r, ok := ctx.Value(invocationKey{}).(*invocation)
	if !ok {
		return errNoResponse
	}
	for {
		before := r.response.Load()
		var changed properties
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

// ownProperties is the room in a frame for what this package adds to a response.
const ownProperties = 4 << 10

// checkResponse refuses properties that do not fit a frame of the connection beside what
// this package adds.
func (r *invocation) checkResponse(p *properties) error {
	var msg amqp.Publishing
	p.addTo(&msg, false)
	size := r.job.from.sess.pub.frameSize()
	if size == 0 {
		return nil // no limit
	}
	if err := checkFrame(&msg, max(size-ownProperties, ownProperties/2)); err != nil {
		return Errorf(CodeResourceExhausted, "the response's %w", err)
	}
	return nil
}

// checkContent refuses a content type, or encoding, that cannot be sent.
func checkContent(contentType, contentEncoding string) error {
	switch {
	case len(contentType) > maxShortString || len(contentEncoding) > maxShortString:
		return fmt.Errorf("content type of %d bytes, content encoding of %d: want at most %d", len(contentType), len(contentEncoding), maxShortString)
	case contentType == contentTypeCalls || contentType == contentTypeAnswers:
		return fmt.Errorf("content type %q is reserved for batches", contentType)
	default:
		return nil
	}
}

// addTo adds the properties to a response that travels alone.
func (p *properties) addTo(msg *amqp.Publishing, failed bool) {
	if p == nil {
		return
	}
	if !failed {
		msg.ContentType, msg.ContentEncoding = p.contentType, p.contentEncoding
	}
	for name, v := range p.header {
		setHeader(msg, name, v)
	}
}

// batchable reports whether the properties can travel in a batch: headers are text there.
func (p *properties) batchable() bool { return p == nil || allText(p.header) }

// allText reports whether all values of headers are text.
func allText(header map[string]any) bool {
	for _, v := range header {
		if _, ok := v.(string); !ok {
			return false
		}
	}
	return true
}

// size estimates the memory of the properties.
func (p *properties) size() int {
	if p == nil {
		return 0
	}
	n, _ := headerSize(amqp.Table(p.header), 0)
	return n + len(p.contentType) + len(p.contentEncoding)
}

// receivedProperties returns the properties of a response that came alone, or nil.
func receivedProperties(d *amqp.Delivery) *properties {
	header := applicationHeader(d.Headers)
	if header == nil && d.ContentType == "" && d.ContentEncoding == "" && d.Type == "" {
		return nil
	}
	return &properties{contentType: d.ContentType, contentEncoding: d.ContentEncoding, kind: d.Type, header: header}
}

// response returns what a client tells of the response to a call.
func (p *properties) response(body []byte) *Response {
	r := &Response{Body: body}
	if p != nil {
		r.ContentType, r.ContentEncoding, r.Type, r.Header = p.contentType, p.contentEncoding, p.kind, p.header
	}
	return r
}

// WithResponseCheck sets a function that is called with every response that would be a
// result, and turns it into an error by returning one: for servers that tell a failure in
// the body, as {"error": …}. An [*Error] reaches the caller with its code and message,
// another error with [CodeUnknown] and its text; the outcome is [Ran] either way. The
// function runs on the goroutine of the call and must be safe for concurrent use; its panic
// is [CodeInternal]. Given twice, the last one counts; nil is none, the default.
func WithResponseCheck(check func(*Response) error) ClientOption {
	return clientOption(func(c *clientConfig) { c.responseCheck = check })
}

// check asks the client's check about a response that would be a result.
func (k *call) check(a *reply) (failed *Error) {
	defer func() {
		if v := recover(); v != nil {
			failed = localError(CodeInternal, Ran, nil, "the response check panicked: "+panicText(v))
		}
	}()
	err := k.route.check(a.props.response(a.body))
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

// nackedResponse is a response that the broker nacked until its caller's deadline.
type nackedResponse struct {
	replyTo, correlationID string
	tries                  int
}

// noteNacked has it logged that a caller gets no response. Why the broker nacks it does not
// say, so the reply queue is looked at first, by a goroutine of the session that is ready.
func (s *Server) noteNacked(r nackedResponse) {
	log := s.logs.nackedResponse.of(s.cfg.logger)
	if !log.Core().Enabled(zap.WarnLevel) {
		return // said a moment ago
	}
	if s.sup.current() != nil && !isDirectAddress(r.replyTo) {
		select {
		case s.nacked <- nackedToLog{r, log}:
			return
		default:
		}
	}
	r.log(log, "", nil)
}

// nackedToLog is a nacked response with the logger that counts the ones before.
type nackedToLog struct {
	nackedResponse

	logger *zap.Logger
}

// explainNacked logs nacked responses while the session lasts.
func (s *Server) explainNacked(sess *session) {
	for {
		select {
		case r := <-s.nacked:
			kind, err := sess.lookAtReplyQueue(r.replyTo)
			r.log(r.logger, kind, err)
		case <-sess.done:
			return
		}
	}
}

// lookAtReplyQueue says what is wrong with a queue that nacks; nothing if it is there.
func (s *session) lookAtReplyQueue(name string) (FaultKind, error) {
	found := s.inGoroutine(func() error {
		return withTempChannel(s.sub, func(ch channel) error {
			_, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
			return err
		})
	})
	limit := time.NewTimer(lookTimeout)
	defer limit.Stop()
	var err error
	select {
	case err = <-found:
	case <-limit.C:
		err = errNoAnswer
	case <-s.done:
		err = s.cause
	}
	if err == nil {
		return "", nil
	}
	fault := classify(s.target, atStep(stepPublishTo, name, err))
	return fault.kind, fault
}

// log writes the line.
func (r nackedResponse) log(logger *zap.Logger, kind FaultKind, err error) {
	logger.Warn("the broker refused an answer, its caller gets none",
		zap.String("reply_to", r.replyTo), zap.String("correlation_id", r.correlationID), zap.Int("tries", r.tries),
		zap.String("fault", string(kind)), zap.Error(err))
}
