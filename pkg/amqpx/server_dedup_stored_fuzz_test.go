package amqpx

import (
	"bytes"
	"context"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// storedBy returns the stored form of a response.
func storedBy(ctx context.Context, body []byte, err error, props *wire.Properties) []byte {
	s := &Server{cfg: &serverConfig{}}
	s.cfg.maxMessageSize = 1 << 20
	r := &invocation{request: &inboundRequest{method: &serverMethod{name: "m"}}}
	r.response.Store(props)
	return s.storedFormOf(ctx, r, body, err)
}

// FuzzStoredResponse: whatever the store returns, reading it ends with an error or with a response that
// can be stored again.
func FuzzStoredResponse(f *testing.F) {
	props := &wire.Properties{
		ContentType: "text/plain", Header: map[string]any{"a": "b", "n": int64(1), "t": amqp.Table{"x": []any{true}}, "at": time.Unix(1, 0)},
		Trailer: map[string]any{"c": []byte("d")},
	}
	for _, stored := range [][]byte{
		storedBy(f.Context(), []byte("body"), nil, nil), storedBy(f.Context(), []byte("body"), nil, props),
		storedBy(f.Context(), nil, Errorf(CodeNotFound, "text").WithDetail(ErrorInfo{Reason: "R"}), props),
		nil,
		{storedFormat},
		{storedFormat + 1, 0, 0},
		{storedFormat, 0xff, 0xff},
		{storedFormat, 1 << 5, 0, 0xff, 0xff, 0xff, 0xff},
	} {
		f.Add(stored)
	}
	f.Fuzz(func(t *testing.T, stored []byte) {
		res, err := readStored(stored)
		if err != nil {
			return
		}
		var failed error
		if res.err != nil {
			failed = res.err
		}
		again := storedBy(t.Context(), res.body, failed, res.props)
		if again == nil {
			return // an error that is not final, which no server stores
		}
		second, err := readStored(again)
		if err != nil || !bytes.Equal(second.body, res.body) {
			t.Errorf("read %q, then %q, %v", res.body, second.body, err)
		}
	})
}
