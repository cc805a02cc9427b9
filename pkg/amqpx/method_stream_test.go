package amqpx

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// orders sends an order for each request.
func orders(_ context.Context, s *TypedServerStream[orderRequest, order]) error {
	n := 0
	for r, err := range s.All() {
		if err != nil {
			return err
		}
		n++
		if err := s.Send(order{ID: n, SKU: r.SKU, Note: strings.Join(r.Notes, "")}); err != nil {
			return err
		}
	}
	return nil
}

// startStreamMethod starts a server with a method for streams, and a client.
func startStreamMethod(t *testing.T, m *StreamMethod[orderRequest, order], opts ...Option) *rig {
	t.Helper()
	r := &rig{t: t, broker: brokertest.New()}
	serverOpts, clientOpts := []ServerOption{onBroker(r.broker)}, []ClientOption(nil)
	for _, o := range opts {
		serverOpts, clientOpts = append(serverOpts, o), append(clientOpts, o)
	}
	s, err := NewServer(testURL, serverOpts...)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Handle(s, orders); err != nil {
		t.Fatal(err)
	}
	r.server = serveStreams(t, s)
	r.client = startClient(t, r.broker, clientOpts...)
	ready(t, r.server.WaitReady)
	ready(t, r.client.WaitReady)
	return r
}

func TestStreamMethod(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]MethodOption{
		"plain":            nil,
		"compressed":       {Compress(Gzip(), 100)},
		"compressed above": {Compress(Gzip(), 1<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := NewStreamMethod[orderRequest, order]("orders", JSON(), append(opts, Validate(orderRequest.check))...)
				r := startStreamMethod(t, m)
				ctx := within(t, time.Minute)
				long := strings.Repeat("x", 20_000)
				s, err := m.Open(ctx, r.client)
				wantSame(t, "error", err, nil)
				for i, note := range []string{"", long, "short"} {
					wantSame(t, "error", s.Send(orderRequest{SKU: "tv", Notes: []string{note}}), nil)
					got, err := s.Recv()
					wantSame(t, "error", err, nil)
					wantSame(t, "order", got, order{ID: i + 1, SKU: "tv", Note: note})
				}
				_ = s.CloseSend()
				_, err = s.Recv()
				wantSame(t, "end", err, io.EOF)

				var all []order
				for o, err := range m.Stream(ctx, r.client, orderRequest{SKU: "tv"}) {
					wantSame(t, "error", err, nil)
					all = append(all, o)
				}
				wantSame(t, "orders", len(all), 1)

				s, _ = m.Open(ctx, r.client)
				_ = s.Send(orderRequest{SKU: "tv", Notes: []string{long}})
				one, err := s.CloseAndRecv()
				wantSame(t, "error", err, nil)
				wantSame(t, "order", one.ID, 1)
				wantSame(t, "bytes", r.client.Stats().Streams.BytesSent < 20_000, name == "compressed")
			})
		})
	}
}

func TestStreamMethodRefusesItems(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewStreamMethod[orderRequest, order]("orders", StrictJSON(), Validate(orderRequest.check))
		r := startStreamMethod(t, m)
		ctx := within(t, time.Minute)
		for sku, code := range map[string]Code{"none": CodeInvalidArgument, "gone": CodeNotFound} {
			n := 0
			for _, err := range m.Stream(ctx, r.client, orderRequest{SKU: sku}) {
				wantFailed(t, err, code, Ran)
				n++
			}
			wantSame(t, "elements", n, 1)
		}
		for name, c := range map[string]struct {
			item string
			opts []CallOption
			text string
		}{
			"no JSON":       {`nothing`, nil, "not JSON"},
			"wrong type":    {`{"sku":7}`, nil, `field "sku"`},
			"unknown field": {`{"more":7}`, nil, `field "more"`},
			"content type":  {`{}`, []CallOption{WithContentType("text/plain", "")}, "text/plain"},
			"encoding":      {`{}`, []CallOption{WithContentType("application/json", "br")}, "br"},
			"no mark":       {``, []CallOption{WithContentType("application/json", "gzip")}, "first byte"},
			"wrong mark":    {"\x02{}", []CallOption{WithContentType("application/json", "gzip")}, "first byte"},
			"no gzip":       {"\x01{}", []CallOption{WithContentType("application/json", "gzip")}, "gzip"},
		} {
			_, err := collect(t, r.client, ctx, "orders", c.item, c.opts...)
			wantFailed(t, err, CodeInvalidArgument, Ran)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: error %v, want %q in it", name, err, c.text)
			}
		}
	})
}

// A few compressed bytes must not become more than the reader's limit.
func TestStreamMethodBoundsDecompression(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 10_000
		m := NewStreamMethod[orderRequest, order]("orders", JSON(), Compress(Gzip(), 0))
		r := startStreamMethod(t, m, WithMaxMessageSize(limit))
		ctx := within(t, time.Minute)
		for _, err := range m.Stream(ctx, r.client, orderRequest{Notes: []string{strings.Repeat("x", 2*limit)}}) {
			wantFailed(t, err, CodeInvalidArgument, Ran)
		}
		bomb := NewStreamMethod[[]byte, []byte]("bomb", Raw(""), Compress(Gzip(), 0))
		packed := typedItems{&bomb.typedMethod, "gzip", limit}
		item, err := packed.pack(bytes.Repeat([]byte("x"), 2*limit), nil)
		wantSame(t, "error", err, nil)
		_, err = packed.unpack(item)
		wantIs(t, err, ErrTooLarge)
	})
}

// unreadable is a codec whose values cannot be encoded, or decoded.
type unreadable struct{ Codec }

func (unreadable) Marshal(any) ([]byte, error) { return nil, errors.New("no such value") }

func TestStreamMethodWithAWrongCodec(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		good := NewStreamMethod[orderRequest, order]("orders", JSON())
		r := startStreamMethod(t, good)
		ctx := within(t, time.Minute)
		bad := NewStreamMethod[orderRequest, order]("orders", unreadable{JSON()})
		for _, err := range bad.Stream(ctx, r.client, orderRequest{}) {
			wantFailed(t, err, CodeInvalidArgument, DidNotRun)
		}
		s, err := bad.Open(ctx, r.client)
		wantSame(t, "error", err, nil)
		wantFailed(t, s.Send(orderRequest{}), CodeInvalidArgument, MayHaveRun)
		s.Close()

		other := NewStreamMethod[orderRequest, []int]("orders", JSON())
		n := 0
		for _, err := range other.Stream(ctx, r.client, orderRequest{}) {
			wantFailed(t, err, CodeInternal, Ran)
			wantSame(t, "received", ProgressOf(err).Received, 1)
			n++
		}
		wantSame(t, "elements", n, 1)
		settle()
		wantSame(t, "open", [2]int64{r.client.Stats().Streams.Open, r.server.Stats().Streams.Open}, [2]int64{})
	})
}

func TestMisuseOfStreamMethods(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]*StreamMethod[orderRequest, order]{
		"nil codec":  NewStreamMethod[orderRequest, order]("orders", nil),
		"nil option": NewStreamMethod[orderRequest, order]("orders", JSON(), nil),
		"call info":  NewStreamMethod[orderRequest, order]("orders", JSON(), WithCallInfo(new(CallInfo))),
		"key":        NewStreamMethod[orderRequest, order]("orders", JSON(), WithIdempotencyKey("fixed")),
		"validator":  NewStreamMethod[orderRequest, order]("orders", JSON(), Validate(func(int) error { return nil })),
	} {
		err := m.Handle(nil, orders)
		if err == nil || !strings.Contains(err.Error(), "NewStreamMethod") {
			t.Errorf("%s: error %v", name, err)
		}
		if _, err := m.Open(t.Context(), nil); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("%s: error %v", name, err)
		}
	}
	m := NewStreamMethod[orderRequest, order]("orders", JSON())
	wantSame(t, "name", m.Name(), "orders")
	if err := m.Handle(nil, nil); err == nil {
		t.Error("a method without a handler")
	}
	for _, err := range m.Stream(t.Context(), nil, orderRequest{}) {
		wantFailed(t, err, CodeInvalidArgument, DidNotRun)
	}
}

func FuzzStreamItem(f *testing.F) {
	m := NewStreamMethod[orderRequest, order]("m", JSON(), Compress(Gzip(), 10))
	for _, encoding := range []string{"", "gzip"} {
		items := typedItems{&m.typedMethod, encoding, 0}
		for _, note := range []string{"", "a long note, which is compressed, compressed, compressed"} {
			item, err := items.pack(orderRequest{SKU: "tv", Notes: []string{note}}, nil)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(item, encoding)
		}
	}
	f.Add([]byte{2}, "GZIP")
	f.Fuzz(func(t *testing.T, item []byte, encoding string) {
		const limit = 1 << 10
		items := typedItems{&m.typedMethod, encoding, limit}
		if items.check() != nil {
			return
		}
		body, err := items.unpack(item)
		if err == nil && len(body) > max(limit, len(item)) {
			t.Errorf("%d bytes, the limit is %d", len(body), limit)
		}
		var in orderRequest
		if err := m.decode(body, &in); err != nil && CodeOf(err) != CodeInvalidArgument {
			t.Errorf("%v", err)
		}
	})
}
