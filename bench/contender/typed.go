package contender

import (
	"context"

	"rabbitmq-rpc/pkg/amqpx"
)

// typed is the surface of typed methods with JSON.
type typed struct{}

// document is the request and the response of a typed call.
type document struct {
	Body string `json:"body"`
}

func documents(method string) *amqpx.Method[document, document] {
	return amqpx.NewMethod[document, document](method, amqpx.JSON())
}

func (typed) settings() string { return "pkg/amqpx, typed methods with JSON" }

func (typed) register(s *amqpx.Server, h *Handler) error {
	for _, method := range []string{MethodQuick, MethodSlow, MethodEcho, MethodHold} {
		err := documents(method).Handle(s, func(ctx context.Context, in document) (document, error) {
			if method == MethodQuick && in.Body == RequestBody { // as a service does, without bytes
				return document{ResponseBody}, nil
			}
			body, err := h.Answer(ctx, method, []byte(in.Body))
			return document{string(body)}, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (typed) caller(c *amqpx.Client) Caller {
	t := typedCaller{client: c, methods: make(map[string]*amqpx.Method[document, document]), expected: []byte(ResponseBody)}
	for _, method := range []string{MethodQuick, MethodSlow, MethodEcho, MethodHold} {
		t.methods[method] = documents(method)
	}
	return t
}

type typedCaller struct {
	client   *amqpx.Client
	methods  map[string]*amqpx.Method[document, document]
	expected []byte // ResponseBody
}

// Call implements caller.
func (c typedCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	if method == MethodQuick { // as a service does, without bytes
		out, err := c.methods[method].Call(ctx, c.client, document{RequestBody})
		return c.response(out.Body), err
	}
	out, err := c.methods[method].Call(ctx, c.client, document{string(body)})
	return []byte(out.Body), err
}

// response returns a response's text as bytes, and the expected one without a copy.
func (c typedCaller) response(text string) []byte {
	if text == ResponseBody {
		return c.expected
	}
	return []byte(text)
}

// Close implements caller.
func (c typedCaller) Close(ctx context.Context) error { return c.client.Close(ctx) }
