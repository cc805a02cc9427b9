package amqpxgrpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"rabbitmq-rpc/pkg/amqpx"
)

// handlerContext is the context of a method: the context of the request with the caller's metadata,
// the caller as peer, and the stream for [grpc.SetHeader] and its like. With the functions of these
// packages each would be a context of its own, and an allocation.
type handlerContext struct {
	context.Context //nolint:containedctx // this is a context.

	metadata metadata.MD
	peer     *peer.Peer
	stream   grpc.ServerTransportStream
}

// initContext sets the context of a method.
func (s *Server) initContext(ctx context.Context, c *handlerContext, req *amqpx.Request, stream grpc.ServerTransportStream) error {
	*c = handlerContext{Context: ctx, peer: s.peerOf(req.User), stream: stream}
	if len(req.Header) == 0 {
		return nil
	}
	var err error
	if c.metadata, err = decodeHeader(req.Header); err != nil {
		return amqpx.Refuse(amqpx.CodeInvalidArgument, "metadata: %w", err)
	}
	return nil
}

// Value implements context.Context. An empty metadata.MD counts as metadata.
func (c *handlerContext) Value(key any) any {
	switch key {
	case contextKeys.metadata:
		return c.metadata
	case contextKeys.peer:
		return c.peer
	case contextKeys.stream:
		return c.stream
	default:
		return c.Context.Value(key)
	}
}

// complete returns the context for the method: c, or with a version of grpc-go that looks something
// up in another way, the same with contexts of the packages around it.
func (c *handlerContext) complete() context.Context {
	if contextKeys.all {
		return c
	}
	return c.wrapped()
}

// wrapped returns a context like c, made by the functions of the packages.
func (c *handlerContext) wrapped() context.Context {
	ctx := metadata.NewIncomingContext(c.Context, c.metadata)
	ctx = peer.NewContext(ctx, c.peer)
	return grpc.NewContextWithServerTransportStream(ctx, c.stream)
}

// lookUpKeys are the keys by which the packages of grpc-go look up values in a context. The keys have
// types of their own, which are not exported.
type lookUpKeys struct {
	metadata, peer, stream any

	all bool // each value is found by its key
}

// contextKeys are the keys.
//
//nolint:gochecknoglobals // they do not change.
var contextKeys = findKeys()

// findKeys returns the keys, which it gets from look-ups in a context that notes them.
func findKeys() (keys lookUpKeys) {
	empty := context.Background() //nolint:forbidigo // nothing ends it.
	noted := func(lookUp func(context.Context)) any {
		n := &keyNote{Context: empty}
		lookUp(n) //nolint:contextcheck // nothing ends a look-up.
		return n.key
	}
	keys.metadata = noted(func(ctx context.Context) { _, _ = metadata.FromIncomingContext(ctx) })
	keys.peer = noted(func(ctx context.Context) { _, _ = peer.FromContext(ctx) })
	keys.stream = noted(func(ctx context.Context) { _ = grpc.ServerTransportStreamFromContext(ctx) })
	sample := &handlerContext{Context: empty, metadata: metadata.MD{"key": nil}, peer: &peer.Peer{}, stream: &unaryTransportStream{}}
	made := sample.wrapped()
	md, _ := made.Value(keys.metadata).(metadata.MD)
	keys.all = len(md) == 1 && made.Value(keys.peer) == any(sample.peer) && made.Value(keys.stream) == any(sample.stream)
	return keys
}

// keyNote is an empty context that notes the key of a look-up.
type keyNote struct {
	context.Context //nolint:containedctx // this is a context.

	key any
}

// Value implements context.Context.
func (n *keyNote) Value(key any) any {
	n.key = key
	return nil
}
