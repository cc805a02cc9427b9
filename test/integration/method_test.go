//go:build integration

package integration

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

type item struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

// TestTypedMethod: values, content type, compression and the name of a wrong field travel through a
// broker, alone and in batches.
func TestTypedMethod(t *testing.T) {
	t.Parallel()
	double := amqpx.NewMethod[item, item]("double", amqpx.JSON(), amqpx.Compress(amqpx.Gzip(), 1000), amqpx.CallTimeout(time.Minute))
	r := rig.New(t)
	b := newBatcher(t, r)
	server := r.Serve(b.methods(rig.Methods{"double": double.Handler(func(_ context.Context, in item) (item, error) {
		return item{in.Name + in.Name, 2 * in.Count}, nil
	})}))
	openLane(t, b.Client)
	plain := r.Ready(amqpx.WithBatch(amqpx.BatchOff))
	long := strings.Repeat("long ", 1000)
	check := func(what string, client *amqpx.Client, in item, encoding string) {
		var info amqpx.CallInfo
		got, err := double.Call(rig.Patience(t), client, in, amqpx.WithCallInfo(&info))
		if want := (item{in.Name + in.Name, 2 * in.Count}); err != nil || got != want {
			t.Errorf("%s: got a name of %d bytes and %d, %v", what, len(got.Name), got.Count, err)
			return
		}
		if p := info.Response; p == nil || p.ContentType != "application/json" || p.ContentEncoding != encoding {
			t.Errorf("%s: response with %+v", what, info)
		}
	}
	check("alone", plain, item{"a", 1}, "")
	check("alone, large", plain, item{long, 1}, "gzip")
	before := server.Stats().Batched
	var calls sync.WaitGroup
	for i, end := range b.together(8, func(i int) <-chan outcome {
		done := make(chan outcome, 1)
		calls.Go(func() {
			if i%2 == 0 {
				check(fmt.Sprint("in a batch ", i), b.Client, item{"a", i}, "")
			} else {
				check(fmt.Sprint("in a batch ", i), b.Client, item{long, i}, "gzip")
			}
			done <- outcome{}
		})
		return done
	}) {
		rig.Recv(t, end, fmt.Sprint("call ", i))
	}
	calls.Wait()
	if server.Stats().Batched-before < 8 {
		t.Errorf("%d of 8 calls travelled in batches", server.Stats().Batched-before)
	}
	_, err := plain.Call(rig.Patience(t), "double", []byte(`{"name":"a","count":"three"}`), amqpx.WithContentType("application/json", ""))
	var bad amqpx.BadRequest
	if amqpx.CodeOf(err) != amqpx.CodeInvalidArgument || !amqpx.Detail(err, &bad) || bad.FieldViolations[0].Field != "count" {
		t.Errorf("%v, %+v", err, bad)
	}
	if _, err := plain.Call(rig.Patience(t), "double", []byte("a"), amqpx.WithContentType("text/plain", "")); amqpx.CodeOf(err) != amqpx.CodeInvalidArgument {
		t.Errorf("another content type: %v", err)
	}
}

// protoCodec is a codec of a program for messages of Go's protocol buffers: requests and responses
// are pointers to messages.
type protoCodec[Req, Res any] struct{}

func (protoCodec[Req, Res]) ContentType() string { return "application/x-protobuf" }

func (protoCodec[Req, Res]) Marshal(v any) ([]byte, error) {
	message, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("a %T is no message", v)
	}
	return proto.Marshal(message)
}

func (protoCodec[Req, Res]) Unmarshal(body []byte, v any) error {
	var message any
	switch to := v.(type) {
	case **Req:
		*to = new(Req)
		message = *to
	case **Res:
		*to = new(Res)
		message = *to
	}
	decoded, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("a %T is no pointer to a message", v)
	}
	return proto.Unmarshal(body, decoded)
}

// TestTypedMethodWithProtocolBuffers: a program brings its own codec.
func TestTypedMethodWithProtocolBuffers(t *testing.T) {
	t.Parallel()
	info := amqpx.NewMethod[*errdetails.ErrorInfo, *errdetails.RetryInfo]("info", protoCodec[errdetails.ErrorInfo, errdetails.RetryInfo]{})
	r := rig.New(t)
	r.Serve(rig.Methods{"info": info.Handler(func(_ context.Context, in *errdetails.ErrorInfo) (*errdetails.RetryInfo, error) {
		if in.GetReason() != "R" || in.GetMetadata()["k"] != "v" {
			return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "got %v", in)
		}
		return &errdetails.RetryInfo{}, nil
	})})
	client := r.Ready()
	if got, err := info.Call(rig.Patience(t), client, &errdetails.ErrorInfo{Reason: "R", Metadata: map[string]string{"k": "v"}}); err != nil || got == nil {
		t.Errorf("got %v, %v", got, err)
	}
	_, err := client.Call(rig.Patience(t), "info", []byte{0xff})
	if amqpx.CodeOf(err) != amqpx.CodeInvalidArgument {
		t.Errorf("a body that is no message: %v", err)
	}
}
