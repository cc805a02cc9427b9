package amqpx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/stream"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// ClientStream is a stream of a client: it sends items to the handler of a server, and receives items
// from it. [Client.Open] makes a ClientStream. All methods are safe for concurrent use; usually one
// goroutine sends while another receives.
//
// A stream ends when the handler returns, with the context of Open, with Close, or with the loss of
// the connection of either side: a stream does not move to another server or connection. Every
// stream must come to its end, or it takes memory at both sides: receive until an error, end the
// context, or call Close.
type ClientStream struct {
	client *Client
	st     *stream.Stream
	method string
	key    string
	id     atomic.Pointer[string] // nil until the opening was written
	stop   func() bool            // ends the watch of the context
	leave  func()                 // the client's Shutdown no longer waits for the stream

	begun     atomic.Bool
	unsampled bool // see Request.Unsampled
}

// Mistakes of calls with a CallInfo whose fields would never be set.
var (
	errStreamInfo  = errors.New("WithCallInfo: a stream has no CallInfo, but methods for headers, trailers, progress and correlation id")
	errCallAllInfo = errors.New("WithCallInfo: a call to all servers has no CallInfo, but its responses have the server and its times")
)

// streamStart is the state of a stream whose request passes middleware.
type streamStart struct {
	stream  *ClientStream
	patient bool
	timeout time.Duration // of CallTimeout; 0: none
	windows [2]int
	started chan struct{} // closed when the stream is made
	first   []byte        // the only item, with half
	half    bool
}

// Open opens a stream of a method, see [Server.HandleStream]. The first use of the stream sends the
// opening. A stream ends with ctx: with the deadline of ctx, if there is one, and with its
// cancellation, of which the server is told. Without a deadline a stream has none. An opening that
// is canceled while it waits in the queue is not run by the servers of that moment ([WithControl]).
//
// The options [WithHeader], [WithContentType], [WithIdempotencyKey], [CallTimeout], [WaitForServer] and
// [StreamWindow] have an effect on streams, also as options of [WithMethod]. Values of headers are
// string, []byte, or lists of them. [WithCallInfo] is an error: the stream itself has headers,
// trailers, progress and correlation id. Other options of calls have no effect. Middleware of the
// client sees the request without a body, and the end of the stream as the result. Open returns an
// error if the arguments cannot be sent, or if middleware refuses the stream; all other errors come
// from the methods of the stream. A stream is not sent again after a fault, see [ProgressOf].
func (c *Client) Open(ctx context.Context, method string, opts ...CallOption) (*ClientStream, error) {
	return c.openStream(ctx, method, nil, false, opts)
}

// Stream sends one item to a method and returns the items that the handler sends. Nothing is sent
// before the sequence is ranged over; each range opens a separate stream. An error, the last
// element of the sequence, is an [*Error], see [OutcomeOf] and [ProgressOf]. A loop that ends early
// cancels the stream. The items may be kept. Deadline and options are those of [Client.Open].
func (c *Client) Stream(ctx context.Context, method string, body []byte, opts ...CallOption) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		s, err := c.openStream(ctx, method, body, true, opts)
		if err != nil {
			yield(nil, err)
			return
		}
		s.all(yield)
	}
}

func (c *Client) openStream(ctx context.Context, method string, first []byte, half bool, opts []CallOption) (*ClientStream, error) {
	if err := c.checkCall(ctx, opts); err != nil {
		return nil, err
	}
	if method == "" || len(method) > wire.MaxShortString {
		return nil, misused(fmt.Errorf("method name of %d bytes: want 1 to %d", len(method), wire.MaxShortString))
	}
	cfg := c.cfg.callConfigOf(method).with(opts)
	req, timeout, mistake := c.newRequest(method, nil, opts)
	if mistake == nil && req.sent.info != nil {
		mistake = errStreamInfo
	}
	if mistake != nil {
		return nil, misused(mistake)
	}
	if !c.calls.Enter() {
		return nil, c.limitError(ErrClosed)
	}
	s := &ClientStream{client: c, leave: sync.OnceFunc(c.calls.Leave)}
	opened := false
	defer func() {
		if !opened {
			s.leave()
		}
	}()
	start := &streamStart{stream: s, patient: cfg.waitForServer, timeout: timeout, started: make(chan struct{}), first: first, half: half}
	start.windows = [2]int{DefaultStreamItems, DefaultStreamBytes}
	if cfg.windowItems > 0 {
		start.windows = [2]int{cfg.windowItems, cfg.windowBytes}
	}
	if half {
		if err := s.checkItem(first); err != nil {
			return nil, err
		}
	}
	req.sent.stream = start
	h := c.handlerOf(ctx, &req)
	if h == nil {
		if err := s.begin(ctx, &req); err != nil {
			return nil, err
		}
		opened = true
		return s, nil
	}
	refused := make(chan error, 1)
	go func() { // ends with the stream, or when middleware refuses it
		_, err := h(ctx, &req)
		if err == nil {
			err = localError(CodeInternal, DidNotRun, nil, "middleware did not pass the request of a stream on")
		}
		refused <- err
	}()
	select {
	case <-start.started:
	case err := <-refused:
		select {
		case <-start.started: // and has ended already
		default:
			return nil, err
		}
	}
	opened = true
	return s, nil
}

// roundTrip is the innermost handler for the request of a stream: it makes the stream, and returns
// when the stream has ended.
func (t *streamStart) roundTrip(ctx context.Context, req *Request) ([]byte, error) {
	s := t.stream
	if !s.begun.CompareAndSwap(false, true) {
		return nil, localError(CodeInternal, DidNotRun, nil, errSecondStream.Error(), errSecondStream)
	}
	if err := s.begin(ctx, req); err != nil {
		return nil, err
	}
	close(t.started)
	select {
	case <-s.st.Done():
	case <-s.client.closing:
		s.st.Start() // a stream that was never used ends with the client, too
		<-s.st.Done()
	}
	if e := s.err(); e != nil {
		return nil, e
	}
	return nil, nil
}

// progress returns how far the stream has come.
func (t *streamStart) progress() Progress {
	if t.stream.st == nil {
		return Progress{} // the request was invalid
	}
	return progressFrom(t.stream.st.Given())
}

// begin makes the stream of a request.
func (s *ClientStream) begin(ctx context.Context, req *Request) error {
	t := req.sent.stream
	headers, err := encodeStreamHeader(req.Header)
	checked := wire.Request{Method: req.Method, ID: req.CorrelationID, Key: req.IdempotencyKey, ContentType: req.ContentType, ContentEncoding: req.ContentEncoding}
	if err = errors.Join(err, checked.Check(s.client.cfg.maxMessageSize)); err != nil {
		return localError(CodeInvalidArgument, DidNotRun, nil, err.Error(), err)
	}
	s.method, s.key, s.unsampled = req.Method, req.IdempotencyKey, req.Unsampled
	o := &stream.Options{
		WindowItems: t.windows[0], WindowBytes: t.windows[1], Headers: headers, Patient: t.patient,
		ContentType: req.ContentType, ContentEncoding: req.ContentEncoding, Meta: s,
	}
	cancel := func() {}
	if t.timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, t.timeout)
	}
	o.Deadline, _ = ctx.Deadline()
	stopped := make(chan struct{})
	begun := time.Now()
	o.OnEnd = func(st *stream.Stream) {
		<-stopped
		s.stop()
		cancel()
		if o, ok := s.client.cfg.observer.(StreamObserver); ok {
			recordStream(o, s.method, begun, st, "server")
		}
		s.leave()
	}
	s.st = s.client.streams.table.NewStream(o)
	if t.half {
		s.st.Put(t.first, true)
	}
	s.stop = context.AfterFunc(ctx, func() { s.abandon(context.Cause(ctx), ctx.Err()) })
	close(stopped)
	return nil
}

// abandon ends the stream because its context has ended.
func (s *ClientStream) abandon(cause, err error) {
	reset := &wire.End{Failure: &wire.Failure{Code: string(CodeCanceled)}}
	if errors.Is(err, context.DeadlineExceeded) {
		reset.Failure.Code = string(CodeDeadlineExceeded)
	}
	if cause == nil || !errors.Is(cause, err) {
		cause = err
	}
	queue := s.st.Abandon(&stream.Result{Reason: stream.ReasonAbandoned, Cause: cause}, reset)
	if c := s.client.cancels; queue != "" && c != nil && errors.Is(err, context.Canceled) { // servers know the deadline
		c.add(cancellation{wire.Cancellation{ID: strconv.FormatUint(s.st.Number(), 10), Method: s.method}, queue})
	}
}

// checkItem returns an error for an item that is too large.
func (s *ClientStream) checkItem(item []byte) error {
	return s.client.cfg.checkItem(item)
}

// itemOverhead bounds the encoding of a frame with one item.
const itemOverhead = 256

// checkItem returns an error for an item that no message may have.
func (c *config) checkItem(item []byte) error {
	if most := max(c.maxMessageSize-itemOverhead, 1); len(item) > most {
		return localError(CodeInvalidArgument, MayHaveRun, ErrTooLarge, fmt.Sprintf("item of %d bytes, limit %d", len(item), most))
	}
	return nil
}

// Send sends an item, of which it keeps no memory. It waits while the server takes no items and 128
// KiB wait here. It returns [io.EOF] if the stream has ended, for whatever reason: Recv returns the
// reason. An item that is larger than the limit of [WithMaxMessageSize] is an error with
// [CodeInvalidArgument] and [ErrTooLarge], and does not end the stream. A sent item may not have
// reached the handler, see [ProgressOf].
func (s *ClientStream) Send(item []byte) error {
	if err := s.checkItem(item); err != nil {
		return err
	}
	return s.st.Send(item)
}

// CloseSend tells the handler that no items follow. The error is always nil.
func (s *ClientStream) CloseSend() error {
	s.st.HalfClose()
	return nil
}

// Recv returns the next item, which may be kept. It returns [io.EOF] after the last item if the
// handler has returned without an error, and an [*Error] if the stream has failed. Items that came
// before the handler's error, or before the loss of the server, are returned first.
func (s *ClientStream) Recv() ([]byte, error) {
	item, err := s.st.Receive()
	if err != nil && err != io.EOF { //nolint:errorlint // of package stream, with nothing around it.
		return nil, s.err()
	}
	return item, err
}

// err returns the error of a stream that has ended, nil for a success.
func (s *ClientStream) err() error {
	if e := streamError(s.st.Result(), "server"); e != nil {
		return e
	}
	return nil
}

// All returns the items until the stream ends, see Recv: an error is the last element, and [io.EOF]
// is not among the elements. A loop that ends early cancels the stream.
func (s *ClientStream) All() iter.Seq2[[]byte, error] { return s.all }

func (s *ClientStream) all(yield func([]byte, error) bool) {
	defer s.Close()
	for {
		switch item, err := s.Recv(); {
		case err == io.EOF: //nolint:errorlint // as Recv returns it.
			return
		case err != nil:
			yield(nil, err)
			return
		case !yield(item, nil):
			return
		}
	}
}

// CloseAndRecv ends the items of the client and returns the only item of the handler. A handler that
// sends none, or several, is an error with [CodeInternal].
func (s *ClientStream) CloseAndRecv() ([]byte, error) {
	s.st.HalfClose()
	item, err := s.Recv()
	switch {
	case err == io.EOF: //nolint:errorlint // as Recv returns it.
		return nil, localError(CodeInternal, Ran, nil, "the handler sent no answer")
	case err != nil:
		return nil, err
	}
	switch _, err := s.Recv(); {
	case err == nil:
		s.Close()
		return nil, localError(CodeInternal, Ran, nil, "the handler sent more than one answer")
	case err != io.EOF: //nolint:errorlint // as Recv returns it.
		return nil, err
	}
	return item, nil
}

// Header waits for the headers of the server, which come with the first item, with the end, or
// earlier. The map is nil if there are none. It returns an error if the stream ended before the
// server sent them or its end.
func (s *ClientStream) Header() (map[string]any, error) {
	headers := s.st.Headers()
	if headers == nil {
		if r := s.st.Result(); r != nil && r.End == nil {
			return nil, s.err()
		}
	}
	return decodeStreamHeader(headers), nil
}

// Trailer returns the trailers of the server, after the stream has ended; nil before, and if there
// are none.
func (s *ClientStream) Trailer() map[string]any {
	r := s.st.Result()
	if r == nil || r.End == nil {
		return nil
	}
	return decodeStreamHeader(r.End.Trailers)
}

// Progress returns how far the stream has come.
func (s *ClientStream) Progress() Progress {
	return progressFrom(s.st.Progress())
}

// CorrelationID identifies the stream, for example in a log of the server ([Request.CorrelationID]);
// "" until the opening was sent.
func (s *ClientStream) CorrelationID() string {
	if id := s.id.Load(); id != nil {
		return *id
	}
	return ""
}

// Close ends the stream with [CodeCanceled], of which the server is told, unless it has ended.
func (s *ClientStream) Close() { s.abandon(context.Canceled, context.Canceled) }
