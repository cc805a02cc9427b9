//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// violations returns an Any of google.rpc.BadRequest as Go's protocol buffers make it.
func violations(t *testing.T) (amqpx.AnyDetail, *errdetails.BadRequest) {
	t.Helper()
	message := &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "a.b", Description: "is empty", Reason: "EMPTY"}}}
	packed, err := anypb.New(message)
	if err != nil {
		t.Fatal(err)
	}
	return amqpx.AnyDetail{TypeURL: packed.GetTypeUrl(), Value: packed.GetValue()}, message
}

// TestDetailsHeadersAndTrailersOfErrors: a failure carries details, a hint, headers and trailers,
// alone and in batches, and a BadRequest of Go's protocol buffers is the library's and back.
func TestDetailsHeadersAndTrailersOfErrors(t *testing.T) {
	t.Parallel()
	detail, message := violations(t)
	own := amqpx.BadRequest{FieldViolations: []amqpx.FieldViolation{{Field: "x", Description: "y"}}}
	r := rig.New(t)
	b := newBatcher(t, r)
	server := r.Serve(b.methods(rig.Methods{"fail": func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		seen, ok := amqpx.RequestFromContext(ctx)
		same := "no"
		if ok && seen.CorrelationID == req.CorrelationID {
			same = "yes"
		}
		return nil, errors.Join(
			amqpx.SetResponseHeader(ctx, "bytes", req.Header["bytes"]), amqpx.SetResponseTrailer(ctx, "rpc-code", "text"),
			amqpx.SetResponseTrailer(ctx, "same", same),
			amqpx.Errorf(amqpx.CodeAborted, "no").WithDetail(detail, own, amqpx.JSONDetail("list", []int{1, 2})).WithRetryAfter(1500*time.Millisecond))
	}}))
	openLane(t, b.Client)
	servers, err := b.Servers(rig.Patience(t))
	if err != nil || len(servers) != 1 {
		t.Fatalf("%d servers, %v", len(servers), err)
	}
	check := func(name string, got outcome, info *amqpx.CallInfo) {
		t.Helper()
		e, _ := errors.AsType[*amqpx.Error](got.err)
		if e.Code() != amqpx.CodeAborted || e.Outcome() != amqpx.Ran || e.RetryAfter() != 1500*time.Millisecond || len(e.Details()) != 3 {
			t.Fatalf("%s: %v, hint %v, %d details", name, got.err, e.RetryAfter(), len(e.Details()))
		}
		var bad amqpx.BadRequest
		if !amqpx.Detail(got.err, &bad) || len(bad.FieldViolations) != 1 || bad.FieldViolations[0] != (amqpx.FieldViolation{Field: "a.b", Description: "is empty", Reason: "EMPTY"}) {
			t.Errorf("%s: %+v", name, bad)
		}
		for i, want := range []*errdetails.BadRequest{message, {FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "x", Description: "y"}}}} {
			packed := &anypb.Any{TypeUrl: e.Details()[i].TypeURL, Value: e.Details()[i].Value}
			unpacked, err := packed.UnmarshalNew()
			if err != nil || !proto.Equal(unpacked, want) {
				t.Errorf("%s: detail %d is %v, %v, want %v", name, i, unpacked, err, want)
			}
		}
		var list []int
		if !amqpx.Detail(got.err, amqpx.JSONDetail("list", &list)) || len(list) != 2 {
			t.Errorf("%s: list %v", name, list)
		}
		p := info.Response
		if p == nil || p.Trailer["rpc-code"] != "text" || p.Trailer["same"] != "yes" || info.Server != servers[0].ID || info.CorrelationID == "" {
			t.Fatalf("%s: info %+v, response %+v", name, info, p)
		}
		if value, _ := p.Header["bytes"].([]byte); !bytes.Equal(value, []byte{0, 255}) {
			t.Errorf("%s: header %v", name, p.Header["bytes"])
		}
	}
	options := func(info *amqpx.CallInfo) []amqpx.CallOption {
		return []amqpx.CallOption{amqpx.WithHeader(map[string]any{"bytes": []byte{0, 255}}), amqpx.WithCallInfo(info)}
	}
	var alone amqpx.CallInfo
	check("alone", rig.Recv(t, begin(rig.Patience(t), r.Ready(amqpx.WithBatch(amqpx.BatchOff)), "fail", nil, options(&alone)...), "a call alone"), &alone)
	const calls = 8
	infos := make([]amqpx.CallInfo, calls)
	before := server.Stats().Batched
	for i, end := range b.together(calls, func(i int) <-chan outcome {
		return begin(rig.Patience(t), b.Client, "fail", nil, options(&infos[i])...)
	}) {
		check("in a batch", rig.Recv(t, end, "a call in a batch"), &infos[i])
	}
	if server.Stats().Batched-before < calls {
		t.Errorf("%d of %d calls with headers of bytes travelled in batches", server.Stats().Batched-before, calls)
	}
}

// TestRefusalOfMiddleware: a refusal did not run, and is retried by the client.
func TestRefusalOfMiddleware(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	refused := make(chan struct{}, 2)
	limit := func(next amqpx.Handler) amqpx.Handler {
		return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			select {
			case refused <- struct{}{}:
				return nil, amqpx.Refuse(amqpx.CodeUnavailable, "not yet").WithRetryAfter(10 * time.Millisecond)
			default:
				return next(ctx, req)
			}
		}
	}
	server := r.Serve(rig.Methods{"echo": echo}, amqpx.WithMiddleware(limit))
	client := r.Ready()
	if got, err := client.Call(rig.Patience(t), "echo", []byte("x")); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	if s := server.Stats(); s.Refused != 2 || s.OK != 1 || client.Stats().Retried != 2 {
		t.Errorf("server %+v, client %+v", s, client.Stats())
	}
}
