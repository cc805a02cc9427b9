package amqpxgrpc

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"rabbitmq-rpc/pkg/amqpx"
)

// transportStream is the part of a [grpc.ServerTransportStream] that unary and streaming methods
// have in common: headers and trailers that add up until they are sent.
type transportStream struct {
	method string

	mu      sync.Mutex
	header  metadata.MD
	trailer metadata.MD
	sent    bool // the headers
	ended   bool // the method has returned
}

// Method implements [grpc.ServerTransportStream].
func (t *transportStream) Method() string { return t.method }

// addHeader adds metadata to the headers, and calls set with all values of the keys that changed.
// With last, further headers are refused.
func (t *transportStream) addHeader(md metadata.MD, last bool, set func(metadata.MD) error) error {
	if err := checkMetadata(md); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sent || t.ended {
		return status.Error(codes.Internal, "the headers were sent already")
	}
	t.sent = last
	return set(add(&t.header, md))
}

// addTrailer is addHeader for trailers, which are sent when the method has returned.
func (t *transportStream) addTrailer(md metadata.MD, set func(metadata.MD) error) error {
	if err := checkMetadata(md); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return status.Error(codes.Internal, "the method has returned")
	}
	return set(add(&t.trailer, md))
}

// end refuses headers and trailers from now on.
func (t *transportStream) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
}

// add adds metadata to all, and returns the values that the keys of md have then.
func add(all *metadata.MD, md metadata.MD) metadata.MD {
	if *all == nil {
		*all = make(metadata.MD, len(md))
	}
	changed := make(metadata.MD, len(md))
	for key, values := range md {
		all.Append(key, values...)
		changed[key] = all.Get(key)
	}
	return changed
}

// unaryTransportStream is the stream in the context of a unary method. Its headers and trailers
// travel with the response.
type unaryTransportStream struct {
	transportStream

	ctx context.Context //nolint:containedctx // the handler's, by which package amqpx finds the response.
}

var _ grpc.ServerTransportStream = (*unaryTransportStream)(nil)

// SetHeader implements [grpc.ServerTransportStream].
func (t *unaryTransportStream) SetHeader(md metadata.MD) error {
	return t.addHeader(md, false, t.setHeader)
}

// SendHeader implements [grpc.ServerTransportStream]. The headers travel with the response, and
// cannot be changed after the call.
func (t *unaryTransportStream) SendHeader(md metadata.MD) error {
	return t.addHeader(md, true, t.setHeader)
}

// SetTrailer implements [grpc.ServerTransportStream].
func (t *unaryTransportStream) SetTrailer(md metadata.MD) error {
	return t.addTrailer(md, t.setTrailer)
}

func (t *unaryTransportStream) setHeader(md metadata.MD) error {
	return t.set(md, amqpx.SetResponseHeader)
}

func (t *unaryTransportStream) setTrailer(md metadata.MD) error {
	return t.set(md, amqpx.SetResponseTrailer)
}

// set sets headers or trailers of the response.
func (t *unaryTransportStream) set(md metadata.MD, set func(context.Context, string, any) error) error {
	for name, value := range encodeHeader(md) {
		if err := set(t.ctx, name, value); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
	}
	return nil
}
