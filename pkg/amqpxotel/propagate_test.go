package amqpxotel

import (
	"context"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/baggage"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"rabbitmq-rpc/pkg/amqpx"
)

const (
	aTrace      = "0af7651916cd43dd8448eb211c80319c"
	aSpan       = "b7ad6b7169203331"
	aParent     = "00-" + aTrace + "-" + aSpan + "-01"
	unsampled   = "00-" + aTrace + "-" + aSpan + "-00"
	anyOtherKey = "tenant"
)

// The caller's request is not changed, and the caller's own headers are sent.
func TestHeadersAreCopied(t *testing.T) {
	t.Parallel()
	r := record(t)
	mine := map[string]any{anyOtherKey: 7, traceparent: unsampled, tracestate: "old=1"}
	before := maps.Clone(mine)
	req := &amqpx.Request{Method: "greet", Body: []byte("world"), CorrelationID: "id", Header: mine}
	var got *amqpx.Request
	call := Client(r.options...)(func(_ context.Context, req *amqpx.Request) ([]byte, error) { got = req; return nil, nil })
	if _, err := call(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(mine, before) {
		t.Errorf("the caller's headers became %v", mine)
	}
	sc := r.only().SpanContext
	want := map[string]any{anyOtherKey: 7, traceparent: "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-01"}
	if !maps.Equal(got.Header, want) {
		t.Errorf("sent %v, want %v", got.Header, want)
	}
	again := *got
	again.Header = req.Header
	if !reflect.DeepEqual(&again, req) {
		t.Errorf("sent %+v for %+v", got, req)
	}
}

// All context is propagated: state, baggage, and without an SDK the incoming context.
func TestContextIsHandedOn(t *testing.T) {
	t.Parallel()
	header := map[string]any{traceparent: aParent, tracestate: "a=1,b=2", "baggage": "tenant=blue"}
	never := record(t, sdktrace.WithSampler(sdktrace.NeverSample()))
	always := record(t)
	for name, c := range map[string]struct {
		options []Option
		spans   *recorder
		sampled string
	}{
		"noop":      {[]Option{WithTracerProvider(noop.NewTracerProvider()), WithPropagator(w3c())}, nil, "01"},
		"global":    {[]Option{WithPropagator(w3c())}, nil, "01"},
		"unsampled": {never.options, never, "00"},
		"sampled":   {always.options, always, "01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got map[string]any
			relay := Client(c.options...)(func(_ context.Context, req *amqpx.Request) ([]byte, error) { got = req.Header; return nil, nil })
			h := Server(c.options...)(func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
				if m := baggage.FromContext(ctx).Member("tenant"); m.Value() != "blue" {
					t.Errorf("the handler's baggage is %v", m)
				}
				return relay(ctx, &amqpx.Request{Method: "next"})
			})
			if _, err := h(t.Context(), &amqpx.Request{Method: "m", Header: header}); err != nil {
				t.Fatal(err)
			}
			parent, _ := got[traceparent].(string)
			if !strings.HasPrefix(parent, "00-"+aTrace+"-") || !strings.HasSuffix(parent, "-"+c.sampled) {
				t.Errorf("traceparent %v", parent)
			}
			if noSDK := c.spans == nil; noSDK != (parent == aParent) {
				t.Errorf("traceparent %v, from %v", parent, aParent)
			}
			if got[tracestate] != "a=1,b=2" || got["baggage"] != "tenant=blue" {
				t.Errorf("sent %v", got)
			}
			if c.spans == never && len(never.exporter.GetSpans()) != 0 {
				t.Error("a call that is not sampled was recorded")
			}
		})
	}
}

// Without context to propagate, the request is passed on unchanged.
func TestNothingToHandOn(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]Option{
		"global": nil,
		"noop":   {WithTracerProvider(noop.NewTracerProvider()), WithPropagator(w3c())},
	} {
		req := &amqpx.Request{Method: "m", Header: map[string]any{traceparent: aParent}}
		call := Client(options...)(func(_ context.Context, got *amqpx.Request) ([]byte, error) {
			if got != req {
				t.Errorf("%s: the request was copied", name)
			}
			return nil, nil
		})
		if _, err := call(t.Context(), req); err != nil {
			t.Error(err)
		}
	}
}

func TestHeadersThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, v := range map[string]any{
		"empty": "", "text": "nonsense", "too short": "00-1-2-03", "zeros": "00-" + strings.Repeat("0", 32) + "-" + strings.Repeat("0", 16) + "-01",
		"upper case": strings.ToUpper(aParent), "version": "ff" + aParent[2:], "tail": aParent + "-x", "long": strings.Repeat("0", 1<<16),
		"bytes": []byte{0xff, 0}, "nil": nil, "number": int64(7), "float": 1.5, "bool": true, "time": time.Unix(0, 0),
		"list": []any{aParent}, "table": map[string]any{traceparent: aParent}, "control": "00-\x00",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := record(t)
			h := Server(r.options...)(answering([]byte("fine"), nil))
			response, err := h(t.Context(), &amqpx.Request{Method: "m", Header: map[string]any{
				traceparent: v, tracestate: v, "baggage": v,
			}})
			if string(response) != "fine" || err != nil {
				t.Errorf("got %q, %v", response, err)
			}
			if span := r.only(); span.Parent.IsValid() {
				t.Errorf("the span has the parent %v", span.Parent)
			}
		})
	}
}

// Some programs send text as bytes.
func TestHeaderAsBytes(t *testing.T) {
	t.Parallel()
	r := record(t)
	h := Server(r.options...)(answering(nil, nil))
	if _, err := h(t.Context(), &amqpx.Request{Method: "m", Header: map[string]any{traceparent: []byte(aParent)}}); err != nil {
		t.Error(err)
	}
	if span := r.only(); span.Parent.SpanID().String() != aSpan || !span.Parent.IsRemote() {
		t.Errorf("the span's parent is %v", span.Parent)
	}
}

func TestCarrier(t *testing.T) {
	t.Parallel()
	c := &carrier{header: map[string]any{anyOtherKey: "blue", tracestate: "old=1"}}
	c.Set("baggage", "x=y")
	c.Set(traceparent, aParent)
	if c.Get(tracestate) != "" || c.Get(anyOtherKey) != "blue" || c.Get(traceparent) != aParent {
		t.Errorf("the copy is %v", c.copied)
	}
	if len(c.Keys()) != 2 || c.header[tracestate] != "old=1" {
		t.Errorf("the original is %v", c.header)
	}
}
