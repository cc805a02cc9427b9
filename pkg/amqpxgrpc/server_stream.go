package amqpxgrpc

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"rabbitmq-rpc/pkg/amqpx"
)

// chainStream returns one interceptor for several, or nil.
func chainStream(interceptors []grpc.StreamServerInterceptor) grpc.StreamServerInterceptor {
	if len(interceptors) == 0 {
		return nil
	}
	return func(impl any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		for _, interceptor := range slices.Backward(interceptors) {
			next := handler
			handler = func(impl any, stream grpc.ServerStream) error { return interceptor(impl, stream, info, next) }
		}
		return handler(impl, stream)
	}
}

// streamHandler returns the handler of a streaming method.
func (s *Server) streamHandler(method string, desc *grpc.StreamDesc, impl any) amqpx.StreamHandler {
	info := &grpc.StreamServerInfo{FullMethod: method, IsClientStream: desc.ClientStreams, IsServerStream: desc.ServerStreams}
	return func(ctx context.Context, stream *amqpx.ServerStream) error {
		req := stream.Request()
		codec, err := codecOf(req.ContentType)
		if err != nil {
			return amqpx.Refuse(amqpx.CodeInvalidArgument, "%w", err)
		}
		x := &serverStream{stream: stream, codec: codec, oneRequest: !desc.ClientStreams}
		x.method = method
		c := &handlerContext{}
		if err := s.initContext(ctx, c, req, serverTransportStream{x}); err != nil {
			return err
		}
		x.ctx = c.complete()
		if s.stream == nil {
			err = desc.Handler(impl, x)
		} else {
			err = s.stream(impl, x, info, desc.Handler)
		}
		x.end()
		return handlerError(err)
	}
}

// serverStream is the stream that a streaming method gets.
type serverStream struct {
	transportStream

	ctx        context.Context //nolint:containedctx // as grpc.ServerStream requires.
	stream     *amqpx.ServerStream
	codec      encoding.CodecV2
	oneRequest bool // the client sends exactly one message
}

var _ grpc.ServerStream = (*serverStream)(nil)

// Context implements [grpc.ServerStream].
func (x *serverStream) Context() context.Context { return x.ctx }

// SetHeader implements [grpc.ServerStream].
func (x *serverStream) SetHeader(md metadata.MD) error {
	return x.addHeader(md, false, func(md metadata.MD) error { return headerError(x.stream.SetHeader(encodeHeader(md))) })
}

// SendHeader implements [grpc.ServerStream].
func (x *serverStream) SendHeader(md metadata.MD) error {
	return x.addHeader(md, true, func(md metadata.MD) error { return headerError(x.stream.SendHeader(encodeHeader(md))) })
}

// SetTrailer implements [grpc.ServerStream]. As in grpc-go, trailers that cannot be sent are dropped
// and logged.
func (x *serverStream) SetTrailer(md metadata.MD) {
	if err := x.setTrailer(md); err != nil {
		grpclog.Component("amqpxgrpc").Errorf("%s: trailers were dropped: %v", x.method, err)
	}
}

func (x *serverStream) setTrailer(md metadata.MD) error {
	return x.addTrailer(md, func(md metadata.MD) error { return headerError(x.stream.SetTrailer(encodeHeader(md))) })
}

// headerError returns the error of headers that cannot be sent.
func headerError(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codes.Internal, err.Error())
}

// SendMsg implements [grpc.ServerStream].
func (x *serverStream) SendMsg(message any) error {
	buffer := newSendBuffer()
	defer buffer.release()
	body, err := buffer.marshal(x.codec, message)
	if err != nil {
		return status.Errorf(codes.Internal, "error while marshaling: %v", err)
	}
	return newCallError(x.stream.Send(body))
}

// RecvMsg implements [grpc.ServerStream].
func (x *serverStream) RecvMsg(message any) error {
	body, err := x.stream.Recv()
	switch {
	case errors.Is(err, io.EOF) && x.oneRequest:
		return status.Error(codes.InvalidArgument, "the client has sent no request")
	case errors.Is(err, io.EOF):
		return io.EOF
	case err != nil:
		return newCallError(err)
	}
	if err := unmarshal(x.codec, body, message); err != nil {
		return status.Errorf(codes.InvalidArgument, "a message is not of the method's type: %v", err)
	}
	return nil
}

// serverTransportStream is the stream in the context of a streaming method, by which
// [grpc.SetHeader] and its like reach the stream.
type serverTransportStream struct{ stream *serverStream }

var _ grpc.ServerTransportStream = serverTransportStream{}

// Method implements [grpc.ServerTransportStream].
func (t serverTransportStream) Method() string { return t.stream.Method() }

// SetHeader implements [grpc.ServerTransportStream].
func (t serverTransportStream) SetHeader(md metadata.MD) error { return t.stream.SetHeader(md) }

// SendHeader implements [grpc.ServerTransportStream].
func (t serverTransportStream) SendHeader(md metadata.MD) error { return t.stream.SendHeader(md) }

// SetTrailer implements [grpc.ServerTransportStream].
func (t serverTransportStream) SetTrailer(md metadata.MD) error { return t.stream.setTrailer(md) }
