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
	t := typedCaller{client: c, methods: make(map[string]*amqpx.Method[document, document])}
	for _, method := range []string{MethodQuick, MethodSlow, MethodEcho, MethodHold} {
		t.methods[method] = documents(method)
	}
	return t
}

type typedCaller struct {
	client  *amqpx.Client
	methods map[string]*amqpx.Method[document, document]
}

// Call implements caller.
func (c typedCaller) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	out, err := c.methods[method].Call(ctx, c.client, document{string(body)})
	return []byte(out.Body), err
}

// Close implements caller.
func (c typedCaller) Close(ctx context.Context) error { return c.client.Close(ctx) }
