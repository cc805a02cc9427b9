package amqpx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// seen is a handler that returns a description of its request.
func seen(_ context.Context, req *Request) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "method %q body %q idempotent %v", req.Method, req.Body, req.Idempotent)
	if req.IdempotencyKey != req.CorrelationID {
		fmt.Fprintf(&b, " key %q", req.IdempotencyKey)
	}
	fmt.Fprintf(&b, " content %q %q", req.ContentType, req.ContentEncoding)
	for _, name := range slices.Sorted(maps.Keys(req.Header)) {
		fmt.Fprintf(&b, " header %q=%#v", name, req.Header[name])
	}
	return b.Bytes(), nil
}

// variant is a type for header values.
type variant string

// described is a handler that sets its response's content type and header, depending on the
// request's body.
func described(ctx context.Context, req *Request) ([]byte, error) {
	value := any(string(req.Body))
	if value == "7" {
		value = 7
	}
	if err := errors.Join(SetResponseContentType(ctx, "text/plain", "identity"), SetResponseHeader(ctx, "h", value)); err != nil {
		return nil, err
	}
	if value == "error" {
		return nil, Errorf(CodeNotFound, "none")
	}
	return []byte("described"), nil
}

// detailed is a handler that fails with details, a hint, and trailers of every type.
func detailed(ctx context.Context, _ *Request) ([]byte, error) {
	if err := errors.Join(SetResponseTrailer(ctx, "rpc-code", "x"), SetResponseTrailer(ctx, "b", []byte{0, 255})); err != nil {
		return nil, err
	}
	bad := BadRequest{FieldViolations: []FieldViolation{{Field: "f", Description: "empty"}}}
	return nil, Errorf(CodeAborted, "no").WithDetail(bad, AnyDetail{TypeURL: "a/b"}, JSONDetail("j", "v"), bad).WithRetryAfter(time.Hour)
}

// wantSameEnd compares a call's result in a batch with its result alone.
func wantSameEnd(t *testing.T, alone, batched result) {
	t.Helper()
	if !bytes.Equal(alone.response, batched.response) {
		t.Errorf("alone %q, in a batch %q", alone.response, batched.response)
	}
	if CodeOf(alone.err) != CodeOf(batched.err) || OutcomeOf(alone.err) != OutcomeOf(batched.err) {
		t.Errorf("alone %v (%v), in a batch %v (%v)", alone.err, OutcomeOf(alone.err), batched.err, OutcomeOf(batched.err))
	}
	one, other := codedError(alone.err), codedError(batched.err)
	if !reflect.DeepEqual(one.Details(), other.Details()) || one.RetryAfter() != other.RetryAfter() {
		t.Errorf("alone %v after %v, in a batch %v after %v", one.Details(), one.RetryAfter(), other.Details(), other.RetryAfter())
	}
	if fmt.Sprint(alone.err) != fmt.Sprint(batched.err) {
		t.Errorf("alone %v, in a batch %v", alone.err, batched.err)
	}
}

// A call has the same result alone and in a batch.
func TestCallsEndAlikeAloneAndInABatch(t *testing.T) {
	t.Parallel()
	const odd = "\xff\x00 odd"
	for _, c := range []struct {
		name   string
		method string
		body   string
		opts   []CallOption
	}{
		{name: "plain", method: "m", body: "x"},
		{name: "empty body", method: "m"},
		{name: "method that is not UTF-8", method: odd, body: "x"},
		{name: "longest method", method: strings.Repeat("m", 255), body: "x"},
		{name: "method that is too long", method: strings.Repeat("m", 256), body: "x"},
		{name: "no method", method: "", body: "x"},
		{name: "unknown method", method: "nothing", body: "x"},
		{name: "unknown method, idempotent", method: "nothing", body: "x", opts: []CallOption{Idempotent()}},
		{name: "unknown method that is not UTF-8", method: "\xfe", body: "x"},
		{name: "key that is not UTF-8", method: "m", body: "x", opts: []CallOption{WithIdempotencyKey("\xff\xfe")}},
		{name: "longest key", method: "m", body: "x", opts: []CallOption{WithIdempotencyKey(strings.Repeat("k", 255))}},
		{name: "key that is too long", method: "m", body: "x", opts: []CallOption{WithIdempotencyKey(strings.Repeat("k", 256))}},
		{name: "header value that is not UTF-8", method: "m", body: "x", opts: []CallOption{WithHeader(map[string]any{"h": "\xff"})}},
		{name: "header name that is not UTF-8", method: "m", body: "x", opts: []CallOption{WithHeader(map[string]any{"\xff": "v"})}},
		{name: "header without a name", method: "m", body: "x", opts: []CallOption{WithHeader(map[string]any{"": ""})}},
		{name: "header name that is too long", method: "m", body: "x", opts: []CallOption{WithHeader(map[string]any{strings.Repeat("h", 256): "v"})}},
		{name: "reserved header", method: "m", body: "x", opts: []CallOption{WithHeader(map[string]any{"rpc-x": "v"})}},
		{name: "headers of nearly the largest record", method: "m", body: "x", opts: []CallOption{WithHeader(map[string]any{"h": strings.Repeat("v", publish.MaxRecordBytes-200)})}},
		{name: "headers that are too long", method: "m", body: "x", opts: []CallOption{WithHeader(map[string]any{"h": strings.Repeat("v", wire.MaxHeaderBytes)})}},
		{name: "body of nearly the largest record", method: "m", body: strings.Repeat("b", publish.MaxRecordBytes-200)},
		{name: "body beyond the largest record", method: "m", body: strings.Repeat("b", publish.MaxRecordBytes+1)},
		{name: "body that is too large", method: "m", body: strings.Repeat("b", 1<<20+1)},
		{name: "header values of an application's own types", method: "m", body: "x", opts: []CallOption{WithHeader(map[string]any{"h": variant("v"), "n": []int{1}})}},
		{name: "content type", method: "m", body: "x", opts: []CallOption{WithContentType("application/json", "\xff")}},
		{name: "content type that is too long", method: "m", body: "x", opts: []CallOption{WithContentType(strings.Repeat("c", 256), "")}},
		{name: "content type of batches", method: "m", body: "x", opts: []CallOption{WithContentType(wire.ContentTypeRequests, "")}},
		{name: "response with a content type and headers", method: "described", body: "x"},
		{name: "response with headers that are no text", method: "described", body: "7"},
		{name: "error with headers", method: "described", body: "error"},
		{name: "response with headers beyond a batch", method: "described", body: strings.Repeat("h", 60<<10)},
		{name: "header of bytes", method: "m", body: "x", opts: []CallOption{WithHeader(map[string]any{"b": []byte{0, 255}, "e": []byte{}, "h": "v"})}},
		{name: "details, a hint and trailers", method: "detailed", body: "x"},
		{name: "refusal with details", method: "refusing", body: "x"},
		{name: "answer that is too large", method: "large", body: "x"},
		{name: "coded error", method: "coded", body: "x"},
		{name: "error text that is not UTF-8", method: "garbled", body: "x"},
		{name: "uncoded error", method: "uncoded", body: "x"},
		{name: "panic", method: "panic", body: "x", opts: []CallOption{Idempotent()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				methods := handlers{
					"m": seen, odd: seen, strings.Repeat("m", 255): seen, "open the lane": echo,
					"described": described, "detailed": detailed,
					"refusing": func(context.Context, *Request) ([]byte, error) {
						return nil, Refuse(CodeFailedPrecondition, "not yet").WithDetail(ErrorInfo{Reason: "R"})
					},
					"large":   func(context.Context, *Request) ([]byte, error) { return make([]byte, 1<<20+1), nil },
					"coded":   func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeNotFound, "no such thing") },
					"garbled": func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeAborted, "\xff\xfe") },
					"uncoded": func(context.Context, *Request) ([]byte, error) { return nil, errors.New("secret") },
					"panic":   func(context.Context, *Request) ([]byte, error) { panic("boom") },
				}
				r := startRig(t, methods, WithBatch(BatchAuto), WithMaxMessageSize(1<<20))
				r.openLane()
				var info, batchedInfo CallInfo
				options := func(info *CallInfo) []CallOption { return append(slices.Clone(c.opts), WithCallInfo(info)) }
				alone := <-goCall(r.client, within(t, time.Minute), c.method, []byte(c.body), options(&info)...)
				ends := r.together(func() []<-chan result {
					call := goCall(r.client, within(t, time.Minute), c.method, []byte(c.body), options(&batchedInfo)...)
					settle()
					mate := goCall(r.client, within(t, time.Minute), "m", []byte("mate"))
					settle()
					return []<-chan result{call, mate}
				})
				wantSameEnd(t, alone, <-ends[0])
				if !reflect.DeepEqual(info.Response, batchedInfo.Response) {
					t.Errorf("alone %+v, in a batch %+v", info.Response, batchedInfo.Response)
				}
				if alone.err == nil && len(batchedInfo.Server) == 0 || info.Server != batchedInfo.Server {
					t.Errorf("the server is %q alone, %q in a batch", info.Server, batchedInfo.Server)
				}
				if mate := <-ends[1]; mate.err != nil {
					t.Errorf("the other in the batch: %v", mate.err)
				}
			})
		})
	}
}

// A refusal waits for slow calls in the same batch only until shortly before its caller's
// deadline.
func TestRefusalDoesNotWaitForeverForTheOthersInItsBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"stuck": untilDone})
		const timeout = 8 * time.Second
		ends := r.together(func() []<-chan result {
			stuck := goCall(r.client, within(t, timeout), "stuck", nil)
			settle()
			refused := goCall(r.client, within(t, timeout), "nothing", nil)
			settle()
			return []<-chan result{stuck, refused, goCall(r.client, within(t, timeout), "nothing", nil, Idempotent())}
		})
		for _, c := range []struct {
			end  <-chan result
			took time.Duration
		}{{ends[2], minRefusalPatience}, {ends[1], timeout - timeout/4}} {
			got := <-c.end
			wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
			wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun) // the batch may be redelivered
			wantSame(t, "time", got.took, c.took)
		}
		<-ends[0]
		settle()
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
		wantSame(t, "unacknowledged", r.broker.Unacked(batchQueueName), 0)
	})
}

// When the connection is lost, refusals in a batch are not sent: the broker delivers the batch
// again.
func TestRefusalsOfALostBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"slow": slow})
		ends := r.together(func() []<-chan result {
			a := goCall(r.client, within(t, time.Minute), "slow", nil, Idempotent())
			settle()
			return []<-chan result{a, goCall(r.client, within(t, time.Minute), "nothing", nil, Idempotent())}
		})
		r.broker.Kick(nil)
		got := <-ends[1]
		wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
		wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
		if got := <-ends[0]; got.err != nil {
			t.Errorf("the other in the batch: %v", got.err)
		}
		pass(time.Minute)
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
	})
}

// Calls with headers, trailers and details of bytes travel in batches, and so do their responses.
func TestBytesTravelInBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := make(chan struct{})
		r := startBatching(t, handlers{"detailed": func(ctx context.Context, req *Request) ([]byte, error) {
			<-start
			return detailed(ctx, req)
		}})
		const calls = 6
		waiting := r.batchOf(calls, "detailed", WithHeader(map[string]any{"b": []byte{1}}))
		r.broker.HoldConfirms()
		close(start)
		settle()
		r.broker.ReleaseConfirms()
		for _, end := range waiting {
			if got := <-end; CodeOf(got.err) != CodeAborted || len(codedError(got.err).Details()) != 4 {
				t.Errorf("got %v", got.err)
			}
		}
		wantSame(t, "requests in batches", r.server.Stats().Batched, calls)
		if sizes := sizesOfBatches(t, r.broker.MessagesTo(brokertest.RouteReplies), wire.ContentTypeResponses); len(sizes) == 0 {
			t.Error("no two responses travelled together")
		}
	})
}
