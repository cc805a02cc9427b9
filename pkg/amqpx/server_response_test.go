package amqpx

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

func TestHandlerDescribesItsResponse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": described, "plain": echo})
		var info CallInfo
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), WithCallInfo(&info)), "described")
		want := &Response{Body: []byte("described"), ContentType: "text/plain", ContentEncoding: "identity", Header: map[string]any{"h": "x"}}
		if !reflect.DeepEqual(info.Response, want) {
			t.Errorf("got %+v, want %+v", info.Response, want)
		}
		got := <-goCall(r.client, within(t, time.Minute), "m", []byte("error"), WithCallInfo(&info))
		wantSame(t, "code", CodeOf(got.err), CodeNotFound)
		if want := (&Response{Header: map[string]any{"h": "error"}}); !reflect.DeepEqual(info.Response, want) {
			t.Errorf("got %+v, want %+v", info.Response, want)
		}
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "plain", []byte("x"), WithCallInfo(&info)), "x")
		if want := (&Response{Body: []byte("x")}); !reflect.DeepEqual(info.Response, want) {
			t.Errorf("got %+v, want %+v", info.Response, want)
		}
		f := r.client.Go(within(t, time.Minute), "m", []byte("y"), WithCallInfo(&info))
		if _, err := f.Wait(); err != nil || info.Response == nil || info.Response.Header["h"] != "y" {
			t.Errorf("a future: %+v, error %v", info.Response, err)
		}
	})
}

// A duplicate gets the stored response with all its properties.
func TestReplayedResponseIsDescribedAlike(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startRig(t, handlers{"m": counted(&runs, described)})
		var first, second CallInfo
		for _, info := range []*CallInfo{&first, &second} {
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), WithCallInfo(info), WithIdempotencyKey("key")), "described")
		}
		wantSame(t, "executions", runs.Load(), 1)
		if !reflect.DeepEqual(first.Response, second.Response) || second.Response.Header["h"] != "x" {
			t.Errorf("first %+v, then %+v", first.Response, second.Response)
		}
	})
}

func TestWhatAResponseCannotSay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		faults := make(chan error, 10)
		r := startRig(t, handlers{"m": func(ctx context.Context, _ *Request) ([]byte, error) {
			faults <- SetResponseHeader(ctx, "rpc-code", "x")
			faults <- SetResponseHeader(ctx, "CC", "x")
			faults <- SetResponseHeader(ctx, "h", new(int))
			faults <- SetResponseHeader(ctx, "h", strings.Repeat("v", wire.MaxHeaderBytes))
			faults <- SetResponseContentType(ctx, wire.ContentTypeResponses, "")
			faults <- SetResponseContentType(ctx, "", strings.Repeat("e", 256))
			faults <- SetResponseHeader(context.WithoutCancel(t.Context()), "h", "v")
			return nil, nil
		}})
		var info CallInfo
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil, WithCallInfo(&info)), "")
		for range 7 {
			if err := <-faults; err == nil {
				t.Error("accepted")
			}
		}
		if info.Response.Header != nil || info.Response.ContentType != "" {
			t.Errorf("got %+v", info.Response)
		}
	})
}

// aio-pika's RPC sends a response of type "error" when a function fails.
func TestResponseOfTypeErrorIsAFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		startScript(t, b, func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
			send(amqp.Publishing{CorrelationId: d.CorrelationId, Type: "error", ContentType: "text/x", Body: []byte("it broke")})
		})
		c := startClient(t, b)
		var info CallInfo
		got := <-goCall(c, within(t, time.Minute), "m", nil, WithCallInfo(&info))
		wantSame(t, "code", CodeOf(got.err), CodeUnknown)
		wantSame(t, "outcome", OutcomeOf(got.err), Ran)
		wantTexts(t, got.err, "it broke")
		if want := (&Response{Type: "error", ContentType: "text/x"}); !reflect.DeepEqual(info.Response, want) {
			t.Errorf("got %+v, want %+v", info.Response, want)
		}
	})
}

func TestResponseCheck(t *testing.T) {
	t.Parallel()
	broken := errors.New("it broke")
	for _, c := range []struct {
		body    string
		code    Code
		message string
		is      error
	}{
		{body: "fine"},
		{body: "coded", code: CodeNotFound, message: "none"},
		{body: "plain", code: CodeUnknown, message: "it broke", is: broken},
		{body: "panic", code: CodeInternal, message: "the response check panicked: boom"},
	} {
		t.Run(c.body, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				startServer(t, b, handlers{"m": echo})
				client := startClient(t, b, WithResponseCheck(func(r *Response) error {
					switch string(r.Body) {
					case "coded":
						return Errorf(CodeNotFound, "none")
					case "plain":
						return broken
					case "panic":
						panic("boom")
					default:
						return nil
					}
				}))
				ready(t, client.WaitReady)
				called := <-goCall(client, within(t, time.Minute), "m", []byte(c.body))
				response, err := client.Go(within(t, time.Minute), "m", []byte(c.body)).Wait()
				for _, got := range []result{called, {response: response, err: err}} {
					if c.code == "" {
						wantResponse(t, got, "fine")
						continue
					}
					wantSame(t, "code", CodeOf(got.err), c.code)
					wantSame(t, "outcome", OutcomeOf(got.err), Ran)
					wantSame(t, "answer", len(got.response), 0)
					coded, _ := errors.AsType[*Error](got.err)
					wantSame(t, "message", coded.Message(), c.message)
					if c.is != nil && !errors.Is(got.err, c.is) {
						t.Errorf("%v does not match %v", got.err, c.is)
					}
				}
			})
		})
	}
}
