package amqpxgrpc

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"rabbitmq-rpc/pkg/amqpx"
)

// NewStream opens a stream, as generated code does. The first use of the stream sends its opening. An
// error of the stream has a status of gRPC, and [amqpx.OutcomeOf] and [amqpx.ProgressOf] tell whether
// a server may have run the method, and how far the stream has come. Without a deadline the stream
// has none. As with grpc-go, a stream takes memory until the context ends or RecvMsg returns an
// error.
func (c *ClientConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	opts = c.withDefaults(opts)
	open := grpc.Streamer(c.newStream)
	for _, interceptor := range slices.Backward(c.cfg.stream) {
		next := open
		open = func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return interceptor(ctx, desc, cc, method, next, opts...)
		}
	}
	return open(ctx, desc, nil, method, opts...)
}

// newStream is the innermost [grpc.Streamer].
func (c *ClientConn) newStream(ctx context.Context, desc *grpc.StreamDesc, _ *grpc.ClientConn, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := newCallSettings(opts)
	if err == nil {
		var x *clientStream
		if x, err = c.open(ctx, desc, fullName(method), s); err == nil {
			return x, nil
		}
	}
	s.finish(err)
	return nil, err
}

// open opens the stream.
func (c *ClientConn) open(ctx context.Context, desc *grpc.StreamDesc, method string, s *callSettings) (*clientStream, error) {
	if err := ctx.Err(); err != nil { // otherwise the stream might begin before it notices
		return nil, refused(status.FromContextError(err).Code(), "%w", err)
	}
	options, err := callOptions(ctx, method, s)
	if err != nil {
		return nil, err
	}
	stream, err := c.client.Open(ctx, method, options...)
	if err != nil {
		return nil, newCallError(err)
	}
	x := &clientStream{ctx: ctx, stream: stream, callSettings: s, oneRequest: !desc.ClientStreams, oneResponse: !desc.ServerStreams}
	if len(s.onFinish) > 0 { // they are called even if nobody receives
		x.mu.Lock()
		defer x.mu.Unlock()
		x.stop = context.AfterFunc(ctx, func() { x.finish(newCallError(ctx.Err())) })
	}
	return x, nil
}

// clientStream is the stream of a generated client.
type clientStream struct {
	*callSettings

	ctx         context.Context //nolint:containedctx // as grpc.ClientStream requires.
	stream      *amqpx.ClientStream
	oneRequest  bool // the client sends exactly one message
	oneResponse bool // the server sends exactly one message
	closed      atomic.Bool
	answered    atomic.Bool // the one response has arrived

	mu       sync.Mutex
	finished bool
	stop     func() bool // ends the watch of the context; nil: there is none
}

var _ grpc.ClientStream = (*clientStream)(nil)

// Context implements [grpc.ClientStream].
func (x *clientStream) Context() context.Context { return x.ctx }

// Header implements [grpc.ClientStream]. If the stream ended without headers, RecvMsg returns the
// reason, and Header returns nothing.
func (x *clientStream) Header() (metadata.MD, error) {
	md, err := x.header()
	if err != nil {
		return nil, x.fail(localError(codes.Internal, "%w", err))
	}
	return md, nil
}

// header waits for the headers, and returns an error if they cannot be decoded.
func (x *clientStream) header() (metadata.MD, error) {
	header, err := x.stream.Header()
	if err != nil {
		return nil, nil //nolint:nilerr // as in grpc-go, RecvMsg returns the error.
	}
	return decodeHeader(header)
}

// Trailer implements [grpc.ClientStream].
func (x *clientStream) Trailer() metadata.MD {
	md, err := decodeHeader(x.stream.Trailer())
	if err != nil {
		return nil // RecvMsg has returned the error
	}
	return md
}

// CloseSend implements [grpc.ClientStream].
func (x *clientStream) CloseSend() error {
	x.closed.Store(true)
	return x.stream.CloseSend()
}

// SendMsg implements [grpc.ClientStream]. After the end of the stream SendMsg returns [io.EOF], and
// RecvMsg returns the reason; with only one message of the client SendMsg returns nil, because
// generated code would return [io.EOF] to its caller.
func (x *clientStream) SendMsg(message any) error {
	if x.closed.Load() {
		return x.fail(localError(codes.Internal, "SendMsg called after CloseSend"))
	}
	buffer := newSendBuffer()
	defer buffer.release()
	body, err := buffer.marshal(x.codec, message)
	if err = x.checkSent(body, err); err != nil {
		return x.fail(err)
	}
	err = x.stream.Send(body)
	switch {
	case err == nil, errors.Is(err, io.EOF) && x.oneRequest:
		return nil
	case errors.Is(err, io.EOF):
		return io.EOF
	default:
		return x.fail(newCallError(err))
	}
}

// RecvMsg implements [grpc.ClientStream].
func (x *clientStream) RecvMsg(message any) error {
	body, err := x.stream.Recv()
	switch {
	case errors.Is(err, io.EOF) && x.oneResponse && !x.answered.Load():
		return x.fail(localError(codes.Internal, "the server has sent no response"))
	case errors.Is(err, io.EOF):
		return x.succeed()
	case err != nil:
		err = newCallError(err)
		x.finish(err)
		return err
	}
	if err := x.decode(body, message); err != nil {
		return x.fail(err)
	}
	if !x.oneResponse {
		return nil
	}
	return x.awaitEnd()
}

// awaitEnd waits for the end of a stream whose only response has arrived.
func (x *clientStream) awaitEnd() error {
	if x.answered.Swap(true) {
		return x.fail(localError(codes.Internal, "the server has sent more than one response"))
	}
	switch _, err := x.stream.Recv(); {
	case err == nil:
		return x.fail(localError(codes.Internal, "the server has sent more than one response"))
	case !errors.Is(err, io.EOF):
		err = newCallError(err)
		x.finish(err)
		return err
	}
	if err := x.succeed(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// succeed finishes a stream that has ended without an error, and returns [io.EOF].
func (x *clientStream) succeed() error {
	if _, err := decodeHeader(x.stream.Trailer()); err != nil {
		return x.fail(localError(codes.Internal, "trailer: %w", err))
	}
	x.finish(nil)
	return io.EOF
}

// fail ends the stream because of a fault at this side.
func (x *clientStream) fail(err error) error {
	x.stream.Close()
	x.finish(err)
	return err
}

// finish sets the variables of the call options, and calls the functions of [grpc.OnFinish], once.
func (x *clientStream) finish(err error) {
	x.mu.Lock()
	first := !x.finished
	x.finished = true
	stop := x.stop
	x.mu.Unlock()
	if !first {
		return
	}
	if stop != nil {
		stop()
	}
	if len(x.headers)+len(x.trailers)+len(x.peers) > 0 {
		header, _ := x.header() // the stream has ended, so that this does not wait
		x.set(header, x.Trailer(), "")
	}
	x.callSettings.finish(err)
}
