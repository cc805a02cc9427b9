//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// seen responds with a description of its request.
func seen(_ context.Context, req *amqpx.Request) ([]byte, error) {
	b := fmt.Appendf(nil, "method %q body %q idempotent %v", req.Method, req.Body, req.Idempotent)
	if req.IdempotencyKey != req.CorrelationID {
		b = fmt.Appendf(b, " key %q", req.IdempotencyKey)
	}
	for _, name := range slices.Sorted(maps.Keys(req.Header)) {
		b = fmt.Appendf(b, " header %q=%#v", name, req.Header[name])
	}
	return b, nil
}

// sentText returns the error text sent by a server.
func sentText(err error) string {
	if coded, ok := errors.AsType[*amqpx.Error](err); ok {
		return coded.Message()
	}
	return ""
}

// TestCallsEndAlikeAloneAndInABatch makes the same calls alone and in a single batch, with
// equal results.
func TestCallsEndAlikeAloneAndInABatch(t *testing.T) {
	t.Parallel()
	const odd = "\xff\x00 odd"
	header := func(name string, value any) []amqpx.CallOption {
		return []amqpx.CallOption{amqpx.WithHeader(map[string]any{name: value})}
	}
	calls := []struct {
		name   string
		method string
		body   string
		opts   []amqpx.CallOption
	}{
		{name: "plain", method: "seen", body: "x"},
		{name: "empty body", method: "seen"},
		{name: "method that is not UTF-8", method: odd, body: "x"},
		{name: "unknown method", method: "nothing", body: "x"},
		{name: "unknown method, idempotent", method: "nothing", body: "x", opts: []amqpx.CallOption{amqpx.Idempotent()}},
		{name: "unknown method that is not UTF-8", method: "\xfe", body: "x"},
		{name: "key that is not UTF-8", method: "seen", body: "x", opts: []amqpx.CallOption{amqpx.WithIdempotencyKey("\xff\xfe")}},
		{name: "longest key", method: "seen", body: "x", opts: []amqpx.CallOption{amqpx.WithIdempotencyKey(strings.Repeat("k", 255))}},
		{name: "header value that is not UTF-8", method: "seen", body: "x", opts: header("h", "\xff")},
		{name: "header name that is not UTF-8", method: "seen", body: "x", opts: header("\xff", "v")},
		{name: "header without a name", method: "seen", body: "x", opts: header("", "")},
		{name: "long header", method: "seen", body: "x", opts: header("h", strings.Repeat("v", 8<<10))},
		{name: "coded error", method: "coded", body: "x"},
		{name: "error text that is not UTF-8", method: "garbled", body: "x"},
		{name: "uncoded error", method: "uncoded", body: "x"},
	}
	methods := rig.Methods{
		"seen": seen, odd: seen,
		"coded": func(context.Context, *amqpx.Request) ([]byte, error) {
			return nil, amqpx.Errorf(amqpx.CodeNotFound, "none")
		},
		"garbled": func(context.Context, *amqpx.Request) ([]byte, error) {
			return nil, amqpx.Errorf(amqpx.CodeAborted, "\xff\xfe")
		},
		"uncoded": func(context.Context, *amqpx.Request) ([]byte, error) { return nil, errors.New("a secret") },
	}
	lonely := rig.New(t)
	lonely.Serve(methods)
	plain := lonely.Ready(amqpx.WithBatch(amqpx.BatchOff))
	r := rig.New(t)
	b := newBatcher(t, r)
	server := r.Serve(b.methods(methods))
	openLane(t, b.Client)
	ends := b.together(len(calls), func(i int) <-chan outcome {
		return begin(rig.Patience(t), b.Client, calls[i].method, []byte(calls[i].body), calls[i].opts...)
	})
	for i, c := range calls {
		alone := rig.Recv(t, begin(rig.Patience(t), plain, c.method, []byte(c.body), c.opts...), c.name)
		batched := rig.Recv(t, ends[i], c.name)
		if string(alone.response) != string(batched.response) {
			t.Errorf("%s: alone %q, in a batch %q", c.name, alone.response, batched.response)
		}
		// If the other calls of the batch are slow, as on a busy machine, the refusal of an
		// idempotent call is sent before their ends and leaves the outcome open.
		open := amqpx.OutcomeOf(batched.err) == amqpx.MayHaveRun && strings.HasSuffix(c.name, "idempotent")
		if amqpx.CodeOf(alone.err) != amqpx.CodeOf(batched.err) || sentText(alone.err) != sentText(batched.err) ||
			amqpx.OutcomeOf(alone.err) != amqpx.OutcomeOf(batched.err) && !open {
			t.Errorf("%s: alone %v (%v), in a batch %v (%v)", c.name, alone.err, amqpx.OutcomeOf(alone.err), batched.err, amqpx.OutcomeOf(batched.err))
		}
	}
	if got := server.Stats().Batched; got < uint64(len(calls)) {
		t.Errorf("%d calls came in batches, want at least %d", got, len(calls))
	}
}
