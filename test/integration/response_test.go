//go:build integration

package integration

import (
	"context"
	"errors"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestContentTypesAndHeadersTravelBothWays: content types, encodings and headers are
// transferred in both directions, alone and in batches.
func TestContentTypesAndHeadersTravelBothWays(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	b := newBatcher(t, r)
	r.Serve(b.methods(rig.Methods{"upper": func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		return []byte("done"), errors.Join(
			amqpx.SetResponseContentType(ctx, "answer to "+req.ContentType, req.ContentEncoding),
			amqpx.SetResponseHeader(ctx, "page", req.Header["page"]))
	}}))
	openLane(t, b.Client)
	plain := r.Ready(amqpx.WithBatch(amqpx.BatchOff))
	check := func(name string, got outcome, info *amqpx.CallInfo, page any) {
		t.Helper()
		if got.err != nil || string(got.response) != "done" {
			t.Fatalf("%s: %q, error %v", name, got.response, got.err)
		}
		if p := info.Response; p == nil || p.ContentType != "answer to text/x" || p.ContentEncoding != "gzip" || p.Header["page"] != page {
			t.Errorf("%s: response %+v", name, p)
		}
	}
	options := func(info *amqpx.CallInfo, page any) []amqpx.CallOption {
		return []amqpx.CallOption{
			amqpx.WithContentType("text/x", "gzip"), amqpx.WithHeader(map[string]any{"page": page}), amqpx.WithCallInfo(info),
		}
	}
	var alone amqpx.CallInfo
	got := rig.Recv(t, begin(rig.Patience(t), plain, "upper", nil, options(&alone, "7")...), "a call alone")
	check("alone", got, &alone, "7")
	const calls = 8
	infos := make([]amqpx.CallInfo, calls)
	for i, end := range b.together(calls, func(i int) <-chan outcome {
		return begin(rig.Patience(t), b.Client, "upper", nil, options(&infos[i], "7")...)
	}) {
		check("in a batch", rig.Recv(t, end, "a call in a batch"), &infos[i], "7")
	}
	// A header of a non-text type is transferred, too; such a call is sent alone.
	var number amqpx.CallInfo
	got = rig.Recv(t, begin(rig.Patience(t), b.Client, "upper", nil, options(&number, 1<<40)...), "a call with a number")
	check("a number", got, &number, int64(1<<40))
}

// TestResponseOfTypeError: a response of type "error" is a failure, as in aio-pika's patterns.
func TestResponseOfTypeError(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	requests := rawServer(t, r)
	call := begin(rig.Patience(t), r.Ready(), "b", nil)
	request := rig.Recv(t, requests, "the request")
	r.Publish(request.ReplyTo, amqp.Publishing{CorrelationId: request.CorrelationId, Type: "error", Body: []byte("it broke")})
	err := rig.Recv(t, call, "the call to settle").err
	if amqpx.CodeOf(err) != amqpx.CodeUnknown || amqpx.OutcomeOf(err) != amqpx.Ran || sentText(err) != "it broke" {
		t.Errorf("error %v, outcome %v", err, amqpx.OutcomeOf(err))
	}
}
