package contender

import (
	"context"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxcodec/amqpxproto"
)

// typed is the surface of typed methods whose requests and responses are a T, with one field of text.
type typed[T any] struct {
	name   string // of the codec
	codec  amqpx.Codec
	pack   func(text string) T
	unpack func(T) string
}

// document is the request and the response of a typed call with JSON.
type document struct {
	Body string `json:"body"`
}

// typedJSON is the surface of typed methods with JSON.
func typedJSON() typed[document] {
	return typed[document]{
		name: "JSON", codec: amqpx.JSON(),
		pack:   func(text string) document { return document{text} },
		unpack: func(d document) string { return d.Body },
	}
}

// typedProto is the surface of typed methods with protocol buffers.
func typedProto() typed[*wrapperspb.StringValue] {
	return typed[*wrapperspb.StringValue]{
		name: "protocol buffers", codec: amqpxproto.Codec(),
		pack:   wrapperspb.String,
		unpack: (*wrapperspb.StringValue).GetValue,
	}
}

// method returns a method of the surface.
func (c typed[T]) method(name string) *amqpx.Method[T, T] {
	return amqpx.NewMethod[T, T](name, c.codec)
}

func (c typed[T]) settings() string { return "pkg/amqpx, typed methods with " + c.name }

func (c typed[T]) register(s *amqpx.Server, h *Handler) error {
	for _, method := range []string{MethodQuick, MethodSlow, MethodEcho, MethodHold} {
		err := c.method(method).Handle(s, func(ctx context.Context, in T) (T, error) {
			text := c.unpack(in)
			if method == MethodQuick && text == RequestBody { // as a service does, without bytes
				return c.pack(ResponseBody), nil
			}
			body, err := h.Answer(ctx, method, []byte(text))
			return c.pack(string(body)), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c typed[T]) caller(client *amqpx.Client) Caller {
	t := typedCaller[T]{typed: c, client: client, methods: make(map[string]*amqpx.Method[T, T]), expected: []byte(ResponseBody)}
	for _, method := range []string{MethodQuick, MethodSlow, MethodEcho, MethodHold} {
		t.methods[method] = c.method(method)
	}
	return t
}

type typedCaller[T any] struct {
	typed[T]

	client   *amqpx.Client
	methods  map[string]*amqpx.Method[T, T]
	expected []byte // ResponseBody
}

// Call implements caller.
func (c typedCaller[T]) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	if method == MethodQuick { // as a service does, without bytes
		out, err := c.methods[method].Call(ctx, c.client, c.pack(RequestBody))
		if err != nil {
			return nil, err
		}
		return c.response(c.unpack(out)), nil
	}
	out, err := c.methods[method].Call(ctx, c.client, c.pack(string(body)))
	if err != nil {
		return nil, err
	}
	return []byte(c.unpack(out)), nil
}

// response returns a response's text as bytes, and the expected one without a copy.
func (c typedCaller[T]) response(text string) []byte {
	if text == ResponseBody {
		return c.expected
	}
	return []byte(text)
}

// Close implements caller.
func (c typedCaller[T]) Close(ctx context.Context) error { return c.client.Close(ctx) }
