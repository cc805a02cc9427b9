package amqpxotel

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// drawing returns a recorder whose options draw with this ratio.
func drawing(t *testing.T, ratio float64) *recorder {
	t.Helper()
	r := record(t, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())))
	r.options = append(r.options, WithSampleRatio(ratio))
	return r
}

// noSpans reports spans that were recorded.
func (r *recorder) noSpans(what string) {
	r.t.Helper()
	if n := len(r.exporter.GetSpans()); n != 0 {
		r.t.Errorf("%s: %d spans", what, n)
	}
}

// sending returns the request that a client sends.
func sending(t *testing.T, ctx context.Context, req *amqpx.Request, options ...Option) (sent *amqpx.Request) { //nolint:revive // as in the package.
	t.Helper()
	h := Client(options...)(func(_ context.Context, req *amqpx.Request) ([]byte, error) { sent = req; return nil, nil })
	if _, err := h(ctx, req); err != nil {
		t.Fatal(err)
	}
	return sent
}

// handling returns the context with which a server calls the handler.
func handling(t *testing.T, req *amqpx.Request, options ...Option) (inside context.Context) {
	t.Helper()
	h := Server(options...)(func(ctx context.Context, _ *amqpx.Request) ([]byte, error) { inside = ctx; return nil, nil }) //nolint:fatcontext // it is looked at afterwards.
	if _, err := h(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	return inside
}

// A call that is not drawn has no span and no trace headers, and tells the server so. Baggage is
// sent, and the caller's request is not changed.
func TestClientDoesNotDraw(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ header, want map[string]any }{
		"no headers":    {nil, nil},
		"other headers": {map[string]any{anyOtherKey: 7}, map[string]any{anyOtherKey: 7}},
		"trace headers": {map[string]any{traceparent: aParent, tracestate: "a=1", anyOtherKey: 7}, map[string]any{anyOtherKey: 7}},
	} {
		r := drawing(t, 0)
		req := &amqpx.Request{Method: "m", Header: maps.Clone(c.header)}
		sent := sending(t, t.Context(), req, r.options...)
		if !sent.Unsampled || !maps.Equal(sent.Header, c.want) || req.Unsampled || !maps.Equal(req.Header, c.header) {
			t.Errorf("%s: sent %+v for %+v", name, sent, req)
		}
		member, err := baggage.NewMember("tenant", "blue")
		if err != nil {
			t.Fatal(err)
		}
		bag, err := baggage.New(member)
		if err != nil {
			t.Fatal(err)
		}
		want := maps.Clone(c.want)
		if want == nil {
			want = make(map[string]any)
		}
		want[baggageHeader] = "tenant=blue"
		sent = sending(t, baggage.ContextWithBaggage(t.Context(), bag), req, r.options...)
		if !sent.Unsampled || !maps.Equal(sent.Header, want) {
			t.Errorf("%s, with baggage: sent %+v", name, sent)
		}
		r.noSpans(name)
	}
}

// A client and a server with a ratio follow the parent in the context, whatever the ratio is, and
// hand on the trace context of a parent that is not sampled.
func TestParentDecides(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		parent string
		ratio  float64
		spans  int
	}{
		"sampled": {aParent, 0, 2}, "not sampled": {unsampled, 1, 0},
	} {
		r := drawing(t, c.ratio)
		// The mark does not count beside trace context.
		ctx := handling(t, &amqpx.Request{Method: "m", Unsampled: true, Header: map[string]any{traceparent: c.parent, tracestate: "a=1"}}, r.options...)
		sent := sending(t, ctx, &amqpx.Request{Method: "m"}, r.options...)
		parent, _ := sent.Header[traceparent].(string)
		if !strings.HasPrefix(parent, c.parent[:36]) || parent[53:] != c.parent[53:] || sent.Header[tracestate] != "a=1" || sent.Unsampled {
			t.Errorf("%s: sent %+v", name, sent)
		}
		if Unsampled(ctx) {
			t.Errorf("%s: the trace has no id", name)
		}
		if n := len(r.exporter.GetSpans()); n != c.spans {
			t.Errorf("%s: %d spans, want %d", name, n, c.spans)
		}
	}
}

// The context of a handler whose request is not sampled says so to calls and to other spans.
func TestHandlerOfAnUnsampledRequest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ratio  float64
		marked bool
	}{
		"marked": {1, true}, "not drawn": {0, false},
	} {
		r := drawing(t, c.ratio)
		ctx := handling(t, &amqpx.Request{Method: "m", Unsampled: c.marked}, r.options...)
		if !Unsampled(ctx) || Unsampled(t.Context()) {
			t.Errorf("%s: the context does not say so", name)
		}
		always := drawing(t, 1)
		if sent := sending(t, ctx, &amqpx.Request{Method: "m"}, always.options...); !sent.Unsampled || sent.Header != nil {
			t.Errorf("%s: sent %+v", name, sent)
		}
		always.noSpans(name)
		sc := trace.SpanContextFromContext(ctx)
		if !sc.IsValid() || sc.IsSampled() || sc.IsRemote() || !sc.Equal(trace.SpanContextFromContext(ctx)) {
			t.Errorf("%s: span context %v", name, sc)
		}
		span := trace.SpanFromContext(ctx)
		inner, child := span.TracerProvider().Tracer("x").Start(ctx, "query")
		if child.IsRecording() || child.SpanContext().TraceID() != sc.TraceID() || Unsampled(inner) {
			t.Errorf("%s: the span of a query is %v", name, child.SpanContext())
		}
		_, root := span.TracerProvider().Tracer("x").Start(ctx, "other trace", trace.WithNewRoot())
		root.End()
		if n := len(r.exporter.GetSpans()); n != 1 {
			t.Errorf("%s: %d spans, want only that of the other trace", name, n)
		}
	}
}

// The context of a request that is not sampled takes one allocation. It is a context with a span
// also if the key of the span were not known.
//
//nolint:paralleltest // counts allocations
func TestContextOfAnUnsampledRequest(t *testing.T) {
	tr := newTracing(trace.SpanKindServer, drawing(t, 1).options)
	type key struct{}
	parent := context.WithValue(t.Context(), key{}, "value")
	if n := testing.AllocsPerRun(100, func() { tr.unsampled(parent, false) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
	for _, known := range []any{tr.spanKey, nil} {
		tr.spanKey = known
		ctx, cancel := context.WithCancel(tr.unsampled(parent, true))
		sc := trace.SpanContextFromContext(ctx)
		if !Unsampled(ctx) || Unsampled(parent) || !sc.IsValid() || !sc.IsRemote() || ctx.Value(key{}) != "value" {
			t.Errorf("with the key %v: span context %v, value %v", known, sc, ctx.Value(key{}))
		}
		if cancel(); ctx.Err() == nil || parent.Err() != nil {
			t.Errorf("with the key %v: %v, the parent %v", known, ctx.Err(), parent.Err())
		}
	}
}

// The ids are the same for all that read them at once.
func TestIDsOfAnUnsampledRequest(t *testing.T) {
	t.Parallel()
	ctx := handling(t, &amqpx.Request{Method: "m", Unsampled: true}, drawing(t, 1).options...)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if a, b := trace.SpanContextFromContext(ctx), trace.SpanContextFromContext(ctx); !a.Equal(b) {
				t.Errorf("%v and %v", a, b)
			}
		})
	}
	all.Wait()
}

// Without a ratio the sampler of the provider decides about a marked request, as about one whose
// parent is not sampled.
func TestMarkWithTheProvidersSampler(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sampler sdktrace.Sampler
		spans   int
	}{
		"heeds the parent":   {sdktrace.ParentBased(sdktrace.AlwaysSample()), 0},
		"ignores the parent": {sdktrace.AlwaysSample(), 1},
		"remote parent":      {sdktrace.ParentBased(sdktrace.NeverSample(), sdktrace.WithRemoteParentNotSampled(sdktrace.AlwaysSample())), 1},
	} {
		r := record(t, sdktrace.WithSampler(c.sampler))
		handling(t, &amqpx.Request{Method: "m", Unsampled: true}, r.options...)
		if n := len(r.exporter.GetSpans()); n != c.spans {
			t.Errorf("%s: %d spans, want %d", name, n, c.spans)
		}
	}
}

// Without trace context in the headers each side decides for itself.
func TestNoPropagationOfTheDecision(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]propagation.TextMapPropagator{
		"none": propagation.NewCompositeTextMapPropagator(), "baggage": propagation.Baggage{},
	} {
		r := drawing(t, 0)
		for _, early := range []bool{false, true} {
			client := newClientTracing(append(r.options, WithPropagator(p)))
			client.early = early
			req := &amqpx.Request{Method: "m"}
			if early {
				unsampled, skip := client.decideEarly(t.Context())
				if !unsampled || skip {
					t.Errorf("%s: unsampled %v, skipped %v", name, unsampled, skip)
				}
				req.Unsampled = unsampled
			}
			h := client.client(func(_ context.Context, sent *amqpx.Request) ([]byte, error) {
				if sent.Unsampled || sent.Header != nil {
					t.Errorf("%s: sent %+v", name, sent)
				}
				return nil, nil
			})
			if _, err := h(t.Context(), req); err != nil {
				t.Error(err)
			}
		}
		r.noSpans(name)
		always := drawing(t, 1)
		handling(t, &amqpx.Request{Method: "m", Unsampled: true}, append(always.options, WithPropagator(p))...)
		always.only()
	}
}

// Every side draws once for each call without a parent.
func TestRatio(t *testing.T) {
	t.Parallel()
	const calls = 10_000
	for _, c := range []struct{ ratio, want float64 }{{-1, 0}, {0, 0}, {math.NaN(), 0}, {0.25, 0.25}, {1, 1}, {2, 1}} {
		for _, side := range []string{"client", "server", "early"} {
			r := drawing(t, c.ratio)
			tr := newClientTracing(r.options)
			draws, random := 0, rand.New(rand.NewPCG(1, 2))
			tr.draw = func() float64 { draws++; return random.Float64() }
			h := tr.client(answering(nil, nil))
			if side == "server" {
				h = tr.server(answering(nil, nil))
			}
			tr.early = side == "early"
			for range calls {
				req := &amqpx.Request{Method: "m"}
				if tr.early {
					req.Unsampled, _ = tr.decideEarly(t.Context())
				}
				if _, err := h(t.Context(), req); err != nil {
					t.Fatal(err)
				}
			}
			sigma := math.Sqrt(c.want * (1 - c.want) / calls)
			if got := float64(len(r.exporter.GetSpans())) / calls; math.Abs(got-c.want) > 4*sigma {
				t.Errorf("%s, ratio %v: %v are traced", side, c.ratio, got)
			}
			if draws != calls {
				t.Errorf("%s, ratio %v: %d draws", side, c.ratio, draws)
			}
		}
	}
}

// oddPropagator writes a header of its own.
type oddPropagator struct{ propagation.TraceContext }

func (oddPropagator) Fields() []string { return []string{traceparent, "odd"} }

// Calls pass the middleware unless there is nothing to send but the decision.
func TestDecideEarly(t *testing.T) {
	t.Parallel()
	member, err := baggage.NewMember("tenant", "blue")
	if err != nil {
		t.Fatal(err)
	}
	bag, err := baggage.New(member)
	if err != nil {
		t.Fatal(err)
	}
	plain := t.Context()
	parent := func(header string) context.Context {
		return propagation.TraceContext{}.Extract(plain, propagation.MapCarrier{traceparent: header})
	}
	handler := handling(t, &amqpx.Request{Method: "m", Unsampled: true}, drawing(t, 1).options...)
	for name, c := range map[string]struct {
		ctx             context.Context //nolint:containedctx // of a test case.
		ratio           float64
		propagator      propagation.TextMapPropagator
		unsampled, skip bool
	}{
		"drawn":               {plain, 1, w3c(), false, false},
		"not drawn":           {plain, 0, w3c(), true, true},
		"in a handler":        {handler, 1, w3c(), true, true},
		"baggage":             {baggage.ContextWithBaggage(plain, bag), 0, w3c(), true, false},
		"sampled parent":      {parent(aParent), 0, w3c(), false, false},
		"unsampled parent":    {parent(unsampled), 0, w3c(), false, false},
		"an odd propagator":   {plain, 0, oddPropagator{}, true, false},
		"only trace context":  {plain, 0, propagation.TraceContext{}, true, true},
		"no trace context":    {plain, 0, propagation.Baggage{}, true, false},
		"nothing propagated":  {plain, 0, propagation.NewCompositeTextMapPropagator(), true, false},
		"unsampled, no ratio": {parent(unsampled), 1, w3c(), false, false},
	} {
		tr := newClientTracing([]Option{WithPropagator(c.propagator), WithSampleRatio(c.ratio)})
		if unsampled, skip := tr.decideEarly(c.ctx); unsampled != c.unsampled || skip != c.skip {
			t.Errorf("%s: unsampled %v, skipped %v", name, unsampled, skip)
		}
	}
}

// TestDecisionOverTwoHops: over the wire, alone and in batches, a handler and the calls that it
// makes follow the decision of the first client.
func TestDecisionOverTwoHops(t *testing.T) {
	t.Parallel()
	for kind, option := range map[string]func(...Option) amqpx.ClientOption{
		"option": TraceClient, "middleware": func(o ...Option) amqpx.ClientOption { return amqpx.WithMiddleware(Client(o...)) },
	} {
		for name, calls := range map[string]int{"alone": 1, "in batches": 100} {
			for _, ratio := range []float64{0, 1} {
				t.Run(kind+", "+name+map[float64]string{0: ", not drawn", 1: ", drawn"}[ratio], func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) { decisionOverTwoHops(t, option, calls, ratio) })
				})
			}
		}
	}
}

func decisionOverTwoHops(t *testing.T, option func(...Option) amqpx.ClientOption, calls int, ratio float64) {
	t.Helper()
	r := drawing(t, 1) // the server and the client of its handlers would draw all calls
	first := drawing(t, ratio)
	first.options = append(first.options, WithTracerProvider(newTracing(trace.SpanKindClient, r.options).provider))
	var unmarked sync.Map
	look := func(next amqpx.Handler) amqpx.Handler { // in the server, inside the tracing
		return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			if req.Unsampled != (ratio == 0) || (req.Header == nil) != (ratio == 0) || Unsampled(ctx) != (ratio == 0) {
				unmarked.Store(req.CorrelationID, req.Header)
			}
			return next(ctx, req)
		}
	}
	client := relayWith(t, 2*calls, option(first.options...), option(r.options...), amqpx.WithMiddleware(Server(r.options...), look))
	if _, err := client.Call(t.Context(), "inner", nil, amqpx.WaitForServer()); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	r.exporter.Reset()
	var all sync.WaitGroup
	for range calls {
		all.Go(func() {
			if response, err := client.Call(t.Context(), "outer", nil); string(response) != "hi" || err != nil {
				t.Errorf("got %q, %v", response, err)
			}
		})
	}
	all.Wait()
	synctest.Wait()
	if batched := client.Stats().Batched; (batched > 0) != (calls > 1) {
		t.Errorf("%d of the calls went in batches", batched)
	}
	unmarked.Range(func(id, header any) bool {
		t.Errorf("call %v has the wrong decision, and the headers %v", id, header)
		return true
	})
	if ratio == 1 {
		checkChains(t, r, calls)
	} else {
		r.noSpans("not drawn")
	}
}

// A call of Client.Go that is not drawn needs no goroutine; one that is drawn is traced.
func TestFuturesThatAreNotDrawn(t *testing.T) {
	t.Parallel()
	for _, ratio := range []float64{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			r := drawing(t, ratio)
			client := relayWith(t, 2, TraceClient(r.options...), TraceClient(r.options...), amqpx.WithMiddleware())
			response, err := client.Go(t.Context(), "inner", nil).Wait()
			if string(response) != "hi" || err != nil {
				t.Errorf("got %q, %v", response, err)
			}
			if n := len(r.exporter.GetSpans()); n != int(ratio) {
				t.Errorf("ratio %v: %d spans", ratio, n)
			}
		})
	}
}
