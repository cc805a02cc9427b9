package amqpx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/stream"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// StreamHandler handles one stream of a method. The stream ends when the handler returns, behind the
// sent items. An [*Error] reaches the client unchanged; any other error, and a panic, reach the
// client as [CodeInternal] without text.
//
// The context has the client's deadline, if any. The context ends at the deadline, when the client
// cancels the stream or has gone, when the connection is lost, when the server is stopped hard, and
// when the handler has returned. Each handler runs in a separate goroutine, beside the workers of
// [WithWorkers]; [WithMaxStreams] bounds the number.
type StreamHandler func(ctx context.Context, s *ServerStream) error

// StreamMiddleware wraps a StreamHandler.
type StreamMiddleware func(next StreamHandler) StreamHandler

// ServerStream is a stream of a server, which its handler gets. All methods are safe for concurrent
// use; usually one goroutine sends while another receives. No method may be used after the handler
// has returned.
type ServerStream struct {
	server   *Server
	consumer *streamConsumer
	method   *serverMethod
	st       *stream.Stream
	tag      uint64 // of the opening's delivery
	replyTo  string
	user     string
	begun    time.Time               // when the opening arrived
	req      atomic.Pointer[Request] // the innermost
	started  atomic.Bool             // the handler runs, or has run
	open     atomic.Int32            // until the handler has returned, and until the broker has the end
	mayRan   bool                    // the opening was delivered before

	mu      sync.Mutex
	header  map[string]any // not sent yet
	sent    bool           // the headers
	trailer map[string]any
}

// Request returns the request of the stream: method, headers, identity of the caller. It has no
// body: the items of the client come from Recv.
func (s *ServerStream) Request() *Request { return s.req.Load() }

// Recv returns the next item of the client, which may be kept. It returns [io.EOF] after the last
// item, and an [*Error] if the stream has ended, see [ProgressOf].
func (s *ServerStream) Recv() ([]byte, error) {
	item, err := s.st.Receive()
	if err != nil && err != io.EOF { //nolint:errorlint // of package stream, with nothing around it.
		return nil, s.err()
	}
	return item, err
}

// All returns the items of the client. An error is the last element, see Recv; [io.EOF] is not among
// the elements.
func (s *ServerStream) All() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for {
			item, err := s.Recv()
			if err == io.EOF || !yield(item, err) || err != nil { //nolint:errorlint // as Recv returns it.
				return
			}
		}
	}
}

// Send sends an item, of which it keeps no memory. It waits while the client takes no items and 128
// KiB wait here. An error is an [*Error] and means that the stream has ended, except for an item that
// is larger than the limit of [WithMaxMessageSize] ([ErrTooLarge]). A sent item may not have reached
// the client, see [ProgressOf].
func (s *ServerStream) Send(item []byte) error {
	if err := s.server.cfg.checkItem(item); err != nil {
		return err
	}
	if s.st.Send(item) != nil {
		return s.err()
	}
	return nil
}

// Progress returns how far the stream has come.
func (s *ServerStream) Progress() Progress { return progressFrom(s.st.Progress()) }

// err returns the error of a stream that has ended.
func (s *ServerStream) err() error {
	r := s.st.Result()
	if r == nil {
		return localError(CodeInternal, Ran, nil, "the handler has returned")
	}
	if e := streamError(r, "client"); e != nil {
		e.outcome = Ran
		return e
	}
	return localError(CodeInternal, Ran, nil, "the handler has returned")
}

// errHeadersSent is returned for headers after the headers were sent.
var errHeadersSent = errors.New("the headers of the stream were sent before")

// SetHeader adds headers for the client, which travel with the first item or the end. Values are
// string, []byte, or lists of them; a name replaces its earlier value. It returns an error if the
// headers were sent, or cannot be sent.
func (s *ServerStream) SetHeader(header map[string]any) error { return s.setHeader(header, false) }

// SendHeader adds headers like SetHeader, and sends all headers at once.
func (s *ServerStream) SendHeader(header map[string]any) error { return s.setHeader(header, true) }

func (s *ServerStream) setHeader(header map[string]any, now bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, encoded, err := merged(s.header, header)
	switch {
	case err != nil:
		return err
	case s.sent || !s.st.SetHeaders(encoded, now):
		return localError(CodeInternal, Ran, nil, errHeadersSent.Error(), errHeadersSent)
	}
	s.header, s.sent = all, now
	return nil
}

// SetTrailer adds trailers, which travel with the end of the stream, also if the handler fails.
// Values are those of SetHeader; an error reports a trailer that cannot be sent.
func (s *ServerStream) SetTrailer(trailer map[string]any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, _, err := merged(s.trailer, trailer)
	if err == nil {
		s.trailer = all
	}
	return err
}

// merged returns headers with further ones.
func merged(old, more map[string]any) (map[string]any, []wire.StreamHeader, error) {
	all := maps.Clone(old)
	if all == nil {
		all = make(map[string]any, len(more))
	}
	maps.Copy(all, more)
	encoded, err := encodeStreamHeader(all)
	if err != nil {
		return nil, nil, localError(CodeInvalidArgument, Ran, nil, err.Error(), err)
	}
	return all, encoded, nil
}

// Draining returns a channel that is closed when the server drains: a handler without an end of its
// own should return soon. The drain waits for the handlers until its time limit
// ([WithDrainTimeout]).
func (s *ServerStream) Draining() <-chan struct{} { return s.server.draining }

// run runs the middleware and the handler.
func (s *ServerStream) run(ctx context.Context, req *Request) {
	defer s.done()
	ctx, cancel := context.WithCancel(ctx) // the stream goes on until its end is written
	defer cancel()
	in := &incoming{Request: wire.Request{Method: req.Method, ID: req.CorrelationID}}
	_, err := s.method.handler(context.WithValue(ctx, streamKey{}, s), req)
	var failed *Error
	if err != nil {
		failed = s.failure(in, err)
		if coded := codedError(err); !s.started.Load() && coded != nil && coded.outcome == DidNotRun {
			failed.outcome = DidNotRun
		}
	}
	if s.started.Load() {
		s.finish(failed)
		return
	}
	if failed == nil {
		failed = Errorf(CodeInternal, "middleware did not pass the stream on")
		failed.outcome = DidNotRun
	}
	if s.mayRan {
		failed.outcome = MayHaveRun
	}
	s.st.Discard()
	s.done()
	s.server.recordStreamRefusal(s.method, failed.code)
	s.consumer.refuse(s.tag, s.replyTo, s.user, s.st.Number(), failed)
}

// failure returns the error for the client of a handler that returned err. Methods of err may panic.
func (s *ServerStream) failure(in *incoming, err error) (failed *Error) {
	defer func() {
		if v := recover(); v != nil {
			failed = internalError()
			s.server.cfg.logger.Error("handler failed", zap.String("method", in.Method), zap.String("correlation_id", in.ID),
				zap.String("error", fmt.Sprintf("its error, of type %T, panicked: %s", err, panicText(v))))
		}
	}()
	own := *s.server.forCaller(in, err)
	own.outcome = Ran // even if err is the error of a call by the handler
	own.message = wire.Truncate(own.message, wire.MaxHeaderBytes)
	own.forget()
	return &own
}

// finish ends the stream behind its items.
func (s *ServerStream) finish(failed *Error) {
	end := &wire.End{}
	if failed != nil {
		end.Failure = failureOf(failed)
		end.Failure.Ran = wire.RanYes
	}
	s.mu.Lock()
	end.Trailers, _ = encodeStreamHeader(s.trailer) // they were checked before
	s.mu.Unlock()
	s.st.Finish(end, s.done)
}

// done is called when the handler has returned, and when the broker has the end.
func (s *ServerStream) done() {
	if s.open.Add(-1) == 0 {
		s.server.streams.ended(s)
	}
}

// streamKey is the key under which a context has its ServerStream.
type streamKey struct{}

// errNoStream is the error of the handler of a stream that runs for something else.
var errNoStream = errors.New("the context is not that of a stream")

// HandleStream registers the handler of the streams of a method, before the call of Serve. The faults
// are those of [Server.Handle]; a name is either a method for calls or for streams. The middleware of
// [WithMiddleware], such as [Authorize], sees a stream as a call without a body and without a
// response; the middleware of [WithStreamMiddleware] is inside it. [AtMostOnce] and [MaxStreams] are
// the options with an effect.
//
// Streams need a queue of their own, "<queue>.streams", which the server declares. A server that is
// full, see [WithMaxStreams], or that drains, takes no further streams from the queue.
func (s *Server) HandleStream(name string, h StreamHandler, opts ...HandleOption) error {
	var inner Handler
	if h != nil {
		inner = s.streamHandler(h)
	}
	return s.register(s.streamMethods(), name, inner, nil, opts)
}

// streamMethods returns the methods for streams; nil for a server that was not made by NewServer.
func (s *Server) streamMethods() map[string]*serverMethod {
	if s == nil || s.cfg == nil {
		return nil
	}
	return s.streams.methods
}

// streamHandler returns the innermost handler of a stream, which accepts the stream.
func (s *Server) streamHandler(h StreamHandler) Handler {
	for _, m := range slices.Backward(s.streamMiddleware()) {
		if m != nil && h != nil {
			h = m(h)
		}
	}
	if h == nil {
		return nil
	}
	return func(ctx context.Context, req *Request) ([]byte, error) {
		x, ok := ctx.Value(streamKey{}).(*ServerStream)
		if !ok || x.started.Swap(true) {
			return nil, localError(CodeInternal, DidNotRun, nil, errNoStream.Error(), errNoStream)
		}
		x.req.Store(req)
		if err := x.accept(ctx); err != nil {
			return nil, err
		}
		return nil, h(ctx, x)
	}
}

// accept accepts the stream. If the opening was delivered before, another server may have the stream,
// or the client may be gone: accept then waits until the client has answered, and returns an error if
// the stream has ended instead, so that the handler does not run for nobody.
func (s *ServerStream) accept(ctx context.Context) error {
	if !s.mayRan {
		s.st.Accept(func() { s.consumer.ack(s.tag) })
		return ctx.Err() // the client may have canceled it meanwhile
	}
	confirmed := make(chan struct{})
	s.st.Accept(func() {
		s.consumer.ack(s.tag)
		close(confirmed)
	})
	select {
	case <-confirmed:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-s.st.Probe(): // a client that has the stream elsewhere has reset this one before
	case <-ctx.Done():
	}
	return ctx.Err()
}

func (s *Server) streamMiddleware() []StreamMiddleware {
	if s == nil || s.cfg == nil {
		return nil
	}
	return s.cfg.streamMiddleware
}

// abandon ends the stream because its context has ended.
func (s *ServerStream) abandon(ctx context.Context) {
	err := ctx.Err()
	end := &wire.End{Failure: &wire.Failure{Code: string(CodeUnavailable), Message: errServerStopped.Error()}}
	var cause error = Errorf(CodeUnavailable, "%w", errServerStopped)
	if errors.Is(err, context.DeadlineExceeded) {
		cause = err
		end.Failure = &wire.Failure{Code: string(CodeDeadlineExceeded), Message: "the stream's time ran out"}
	}
	s.st.Abandon(&stream.Result{Reason: stream.ReasonAbandoned, Cause: cause}, end)
}

// newServerStream makes the stream of an opening.
func (c *streamConsumer) newServerStream(d *amqp.Delivery, f *wire.Frame, m *serverMethod, user string) (*ServerStream, context.Context) {
	s := c.server
	x := &ServerStream{server: s, consumer: c, method: m, tag: d.DeliveryTag, replyTo: d.ReplyTo, user: user, begun: time.Now(), mayRan: d.Redelivered}
	x.open.Store(2)
	ctx, cancel := context.WithCancelCause(s.streams.base)
	limit := f.Timeout
	if most := s.cfg.maxStreamTime; most > 0 && (limit == wire.NoBudget || limit > most) {
		limit = most
	}
	release := func() {}
	if limit != wire.NoBudget {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadline(ctx, time.Now().Add(limit))
		release = func() { stop() }
	}
	o := &stream.Options{WindowItems: DefaultStreamItems, WindowBytes: DefaultStreamBytes, Meta: x}
	o.OnEnd = func(st *stream.Stream) {
		if e := streamError(st.Result(), "client"); e != nil {
			e.outcome = Ran
			cancel(e)
		}
		cancel(context.Canceled)
		release()
	}
	if x.st = c.link.Open(d.ReplyTo, user, f, len(d.Body), o); x.st == nil {
		cancel(context.Canceled)
		release()
		return nil, nil
	}
	context.AfterFunc(ctx, func() { x.abandon(ctx) })
	return x, ctx
}
