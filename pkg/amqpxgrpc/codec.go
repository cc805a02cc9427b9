package amqpxgrpc

import (
	"fmt"
	"reflect"
	"strings"
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	protolib "google.golang.org/protobuf/proto"
)

// contentTypePrefix begins the content type of messages that are not of protocol buffers. The
// content subtype follows, which names the codec, as in gRPC.
const contentTypePrefix = "application/grpc+"

// contentType returns the content type of messages with a content subtype. Messages of protocol
// buffers have none: they are the common case, and a content type takes space in every message.
func contentType(subtype string) string {
	if subtype == proto.Name {
		return ""
	}
	return contentTypePrefix + subtype
}

// codecOf returns the registered codec for the content type of a message, see
// [encoding.RegisterCodecV2]. No content type, and those that are in use for protocol buffers, mean
// the codec "proto".
func codecOf(contentType string) (encoding.CodecV2, error) {
	subtype := proto.Name
	switch contentType {
	case "", "application/grpc", "application/protobuf", "application/x-protobuf":
	default:
		var ok bool
		if subtype, ok = strings.CutPrefix(contentType, contentTypePrefix); !ok {
			return nil, fmt.Errorf("content type %q: want none, or %q and the name of a codec", contentType, contentTypePrefix)
		}
	}
	return codecNamed(subtype)
}

// codecNamed returns the registered codec for a content subtype.
func codecNamed(subtype string) (encoding.CodecV2, error) {
	if c := encoding.GetCodecV2(subtype); c != nil {
		return c, nil
	}
	if c := encoding.GetCodec(subtype); c != nil {
		return codecV1{c}, nil
	}
	return nil, fmt.Errorf("no codec is registered for content subtype %q", subtype)
}

// marshal returns an encoded message, which the caller may keep.
func marshal(c encoding.CodecV2, message any) ([]byte, error) {
	if m, ok := message.(protolib.Message); ok && isStandard(c) {
		return protolib.Marshal(m)
	}
	data, err := c.Marshal(message)
	if err != nil {
		return nil, err
	}
	defer data.Free()
	return data.Materialize(), nil
}

// sendBuffer has memory for a message until a stream has copied the message.
type sendBuffer struct{ bytes []byte }

// sendBuffers has idle memory.
//
//nolint:gochecknoglobals // for any goroutine.
var sendBuffers = sync.Pool{New: func() any { return &sendBuffer{} }}

// maxSendBuffer bounds the memory that is kept for a further message.
const maxSendBuffer = 16 << 10

func newSendBuffer() *sendBuffer {
	b, _ := sendBuffers.Get().(*sendBuffer)
	return b
}

// release lets a later message use the memory.
func (b *sendBuffer) release() {
	if cap(b.bytes) <= maxSendBuffer {
		sendBuffers.Put(b)
	}
}

// marshal returns an encoded message, which is valid until the release.
func (b *sendBuffer) marshal(c encoding.CodecV2, message any) (data []byte, err error) {
	if m, ok := message.(protolib.Message); ok && isStandard(c) {
		b.bytes, err = protolib.MarshalOptions{}.MarshalAppend(b.bytes[:0], m)
		return b.bytes, err
	}
	return marshal(c, message)
}

// unmarshal decodes a message. The message may keep the memory of body.
func unmarshal(c encoding.CodecV2, body []byte, message any) error {
	if m, ok := message.(protolib.Message); ok && isStandard(c) {
		return protolib.Unmarshal(body, m)
	}
	return c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(body)}, message)
}

// isStandard reports whether c is the codec of grpc-go for protocol buffers, and not one that a
// program has registered in its place. What it does is done here without its buffers: they
// are for connections, and cost three allocations for each message.
func isStandard(c encoding.CodecV2) bool { return reflect.TypeOf(c) == standardCodec() }

// standardCodec returns the type of grpc-go's codec for protocol buffers; nil if a program has
// registered another one in its place.
//
//nolint:gochecknoglobals // codecs are registered while a program initializes.
var standardCodec = sync.OnceValue(func() reflect.Type {
	t := reflect.TypeOf(encoding.GetCodecV2(proto.Name))
	if t == nil || t.Kind() != reflect.Pointer || t.Elem().PkgPath() != "google.golang.org/grpc/encoding/proto" {
		return nil
	}
	return t
})

// codecV1 makes a codec of gRPC's older interface one of the newer.
type codecV1 struct{ encoding.Codec }

// Marshal implements [encoding.CodecV2].
func (c codecV1) Marshal(v any) (mem.BufferSlice, error) {
	data, err := c.Codec.Marshal(v)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}

// Unmarshal implements [encoding.CodecV2].
func (c codecV1) Unmarshal(data mem.BufferSlice, v any) error {
	return c.Codec.Unmarshal(data.Materialize(), v)
}
