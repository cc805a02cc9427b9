// Package amqpxproto has the codec for protocol buffers, for typed methods of package amqpx:
//
//	var Get = amqpx.NewMethod[*pb.GetRequest, *pb.Order]("orders.get", amqpxproto.Codec())
//
// Requests and responses are pointers to generated messages. Package amqpxgrpc, in contrast, runs
// whole services that protoc-gen-go-grpc has generated.
package amqpxproto

import (
	"fmt"
	"reflect"

	"google.golang.org/protobuf/proto"

	"rabbitmq-rpc/pkg/amqpx"
)

// ContentType is the content type of encoded messages
// (https://datatracker.ietf.org/doc/draft-ietf-dispatch-mime-protobuf/).
const ContentType = "application/protobuf"

// Codec returns the codec for protocol buffers. A nil message is encoded like an empty one, and an
// empty body is an empty message. Unknown fields are kept. A body that is no message of the type is
// [amqpx.CodeInvalidArgument] if it is a request; the encoding has no names, so that the error
// names no field. A method whose requests or responses are no pointers to messages fails in every
// call: as a request with [amqpx.CodeInvalidArgument] before it is sent.
func Codec() amqpx.Codec { return codec{} }

type codec struct{}

// ContentType implements [amqpx.Codec].
func (codec) ContentType() string { return ContentType }

// Marshal implements [amqpx.Codec].
func (codec) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, notMessage(reflect.TypeOf(v))
	}
	return proto.Marshal(m)
}

// MarshalAppend is Marshal into memory of package amqpx, see [amqpx.Codec].
func (codec) MarshalAppend(buffer []byte, v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return buffer, notMessage(reflect.TypeOf(v))
	}
	return proto.MarshalOptions{}.MarshalAppend(buffer, m)
}

// Unmarshal implements [amqpx.Codec]: v points to the pointer to the message.
func (codec) Unmarshal(body []byte, v any) error {
	to := reflect.ValueOf(v)
	if to.Kind() != reflect.Pointer || to.IsNil() {
		return amqpx.Errorf(amqpx.CodeInternal, "%w", notMessage(reflect.TypeOf(v)))
	}
	to = to.Elem()
	if to.Kind() != reflect.Pointer || !to.CanSet() {
		return amqpx.Errorf(amqpx.CodeInternal, "%w", notMessage(to.Type()))
	}
	m, ok := reflect.TypeAssert[proto.Message](reflect.New(to.Type().Elem()))
	if !ok {
		return amqpx.Errorf(amqpx.CodeInternal, "%w", notMessage(to.Type()))
	}
	if err := proto.Unmarshal(body, m); err != nil {
		return fmt.Errorf("no %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	to.Set(reflect.ValueOf(m))
	return nil
}

// notMessage returns the error for a type that is no pointer to a message.
func notMessage(t reflect.Type) error {
	return fmt.Errorf("a %v is no pointer to a message of protocol buffers", t)
}
