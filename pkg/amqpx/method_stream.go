package amqpx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// StreamMethod is a [Method] for streams: the items of a client are a Req, those of the handler a Res.
// It has the codec, the checks and the options of a Method, does not change, and is safe for
// concurrent use.
//
//	var WatchOrders = amqpx.NewStreamMethod[Filter, Order]("orders.watch", amqpx.JSON())
//
//	err := WatchOrders.Handle(server, service.Watch)                       // func(context.Context, *amqpx.TypedServerStream[Filter, Order]) error
//	for order, err := range WatchOrders.Stream(ctx, client, Filter{SKU: "tv"}) { … }
//
// A long call that tells its progress is a stream with one item of the client: each item of the
// handler has either the progress so far or, as the last, the result. A client that leaves the loop
// cancels the work; see the example.
type StreamMethod[Req, Res any] struct{ typedMethod }

// NewStreamMethod returns a method for streams with the types of the items of both sides. An invalid
// argument is reported by [StreamMethod.Handle] and by every stream.
func NewStreamMethod[Req, Res any](name string, codec Codec, opts ...MethodOption) *StreamMethod[Req, Res] {
	return &StreamMethod[Req, Res]{newTypedMethod("NewStreamMethod", name, codec, reflect.TypeFor[Req](), opts)}
}

// Name returns the name of the method.
func (m *StreamMethod[Req, Res]) Name() string { return m.name }

// TypedServerStream is the stream of a handler of a [StreamMethod]. Headers, trailers and progress are
// those of the ServerStream; its own Recv, All and Send are not for the handler.
type TypedServerStream[Req, Res any] struct {
	*ServerStream

	items typedItems
}

// TypedClientStream is a stream of a [StreamMethod] at a client. Headers, trailers and progress are
// those of the ClientStream; its own Recv, All, CloseAndRecv and Send are not for the caller.
type TypedClientStream[Req, Res any] struct {
	*ClientStream

	items typedItems
}

// Handle registers a function as the handler of the method, like [Server.HandleStream]; the options
// apply after those of the method. The function is not called for a stream with another content
// type or an unknown content encoding: its client gets [CodeInvalidArgument].
func (m *StreamMethod[Req, Res]) Handle(s *Server, handle func(ctx context.Context, stream *TypedServerStream[Req, Res]) error, opts ...HandleOption) error {
	if m.fault != nil {
		return m.mistake()
	}
	if handle == nil {
		return fmt.Errorf("amqpx: method %q: no handler", m.name)
	}
	h := func(ctx context.Context, x *ServerStream) error {
		req := x.Request()
		if err := m.checkContentType(req); err != nil {
			return err
		}
		items := typedItems{&m.typedMethod, req.ContentEncoding, x.server.cfg.maxMessageSize}
		if err := items.check(); err != nil {
			return err
		}
		return handle(ctx, &TypedServerStream[Req, Res]{x, items})
	}
	return s.HandleStream(m.name, h, append(slices.Clip(m.cfg.handle), opts...)...)
}

// Recv returns the next item of the client, like [ServerStream.Recv]. An item that cannot be decoded or
// is not valid is an [*Error] with [CodeInvalidArgument] for the client; the stream goes on if the
// handler does.
func (s *TypedServerStream[Req, Res]) Recv() (req Req, err error) {
	item, err := s.ServerStream.Recv()
	if err != nil {
		return req, err
	}
	body, err := s.items.unpack(item)
	if err != nil {
		return req, Errorf(CodeInvalidArgument, "item: %w", err)
	}
	return req, s.items.method.decode(body, &req)
}

// All returns the items of the client, like [ServerStream.All]. An error is the last element.
func (s *TypedServerStream[Req, Res]) All() iter.Seq2[Req, error] { return allOf(s.Recv) }

// Send sends an item, like [ServerStream.Send]. An item that cannot be encoded is an error and is not
// sent.
func (s *TypedServerStream[Req, Res]) Send(res Res) error {
	buffer := newItemBuffer()
	defer buffer.release()
	item, err := s.items.pack(res, buffer)
	if err != nil {
		return fmt.Errorf("item of method %q: %w", s.items.method.name, err)
	}
	return s.ServerStream.Send(item)
}

// Open opens a stream, like [Client.Open]; the options apply after those of the method.
func (m *StreamMethod[Req, Res]) Open(ctx context.Context, c *Client, opts ...CallOption) (*TypedClientStream[Req, Res], error) {
	return m.open(ctx, c, nil, opts)
}

// Stream sends one item and returns the items of the handler, like [Client.Stream]. An item that cannot
// be encoded is [CodeInvalidArgument] with [DidNotRun].
func (m *StreamMethod[Req, Res]) Stream(ctx context.Context, c *Client, req Req, opts ...CallOption) iter.Seq2[Res, error] {
	return func(yield func(Res, error) bool) {
		s, err := m.open(ctx, c, &req, opts)
		if err != nil {
			var none Res
			yield(none, err)
			return
		}
		s.All()(yield)
	}
}

// open opens a stream, with its only item unless first is nil.
func (m *StreamMethod[Req, Res]) open(ctx context.Context, c *Client, first *Req, opts []CallOption) (*TypedClientStream[Req, Res], error) {
	switch {
	case m.fault != nil:
		return nil, misused(m.mistake())
	case c == nil || c.cfg == nil:
		return nil, misused(errNoClient)
	}
	items := typedItems{method: &m.typedMethod, limit: c.cfg.maxMessageSize}
	if m.cfg.compressor != nil {
		items.encoding = m.cfg.compressor.Name()
	}
	content := func(cfg *callConfig) { cfg.contentType, cfg.contentEncoding = m.properties.ContentType, items.encoding }
	all := make([]CallOption, 0, len(m.cfg.call)+len(opts)+1)
	all = append(append(append(all, m.cfg.call...), opts...), content)
	var item []byte
	if first != nil {
		var err error
		if item, err = items.pack(*first, nil); err != nil {
			return nil, localError(CodeInvalidArgument, DidNotRun, nil, "item: "+err.Error(), err)
		}
	}
	s, err := c.openStream(ctx, m.name, item, first != nil, all)
	if err != nil {
		return nil, err
	}
	return &TypedClientStream[Req, Res]{s, items}, nil
}

// Send sends an item, like [ClientStream.Send]. An item that cannot be encoded is an error with
// [CodeInvalidArgument], and does not end the stream.
func (s *TypedClientStream[Req, Res]) Send(req Req) error {
	buffer := newItemBuffer()
	defer buffer.release()
	item, err := s.items.pack(req, buffer)
	if err != nil {
		return localError(CodeInvalidArgument, MayHaveRun, nil, "item: "+err.Error(), err)
	}
	return s.ClientStream.Send(item)
}

// Recv returns the next item, like [ClientStream.Recv]. An item that cannot be decoded ends the stream
// and is an error with [CodeInternal], or with [CodeResourceExhausted] and [ErrTooLarge] if it is too
// large after its decompression.
func (s *TypedClientStream[Req, Res]) Recv() (res Res, err error) {
	item, err := s.ClientStream.Recv()
	if err != nil {
		return res, err
	}
	return res, s.decode(item, &res)
}

// decode decodes an item of the handler.
func (s *TypedClientStream[Req, Res]) decode(item []byte, res *Res) error {
	body, err := s.items.unpack(item)
	if err == nil {
		err = s.items.method.codec.Unmarshal(body, res)
	}
	if err == nil {
		return nil
	}
	s.Close()
	code, text := CodeInternal, err.Error()
	if errors.Is(err, ErrTooLarge) {
		code = CodeResourceExhausted
	} else if coded := codedError(err); coded != nil {
		text = coded.Message()
	}
	e := localError(code, Ran, nil, "item: "+text, err)
	e.progress = new(s.Progress())
	return e
}

// All returns the items until the stream ends, like [ClientStream.All]: an error is the last element,
// and a loop that ends early cancels the stream.
func (s *TypedClientStream[Req, Res]) All() iter.Seq2[Res, error] {
	return func(yield func(Res, error) bool) {
		defer s.Close()
		allOf(s.Recv)(yield)
	}
}

// CloseAndRecv ends the items of the client and returns the only item of the handler, like
// [ClientStream.CloseAndRecv].
func (s *TypedClientStream[Req, Res]) CloseAndRecv() (res Res, err error) {
	item, err := s.ClientStream.CloseAndRecv()
	if err != nil {
		return res, err
	}
	return res, s.decode(item, &res)
}

// allOf returns the items of recv until an error, which is the last element, or io.EOF.
func allOf[T any](recv func() (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			v, err := recv()
			if err == io.EOF || !yield(v, err) || err != nil { //nolint:errorlint // as Recv returns it.
				return
			}
		}
	}
}

// typedItems encodes and decodes the items of one stream. With a content encoding the first byte of
// each item tells whether the rest is compressed.
type typedItems struct {
	method   *typedMethod
	encoding string
	limit    int // of an item after its decompression
}

// The first byte of an item in a stream with a content encoding.
const (
	itemPlain      = 0
	itemCompressed = 1
)

// errItemMark is the error of an item without itemPlain and itemCompressed.
var errItemMark = errors.New("the first byte is neither 0 (plain) nor 1 (compressed)")

// plain reports whether the stream has no content encoding.
func (t *typedItems) plain() bool {
	return t.encoding == "" || strings.EqualFold(t.encoding, "identity")
}

// check returns the error for the client of a stream with an unknown content encoding.
func (t *typedItems) check() error {
	if _, err := t.method.decompressorOf(t.encoding); err != nil {
		return Errorf(CodeInvalidArgument, "stream: %w", err)
	}
	return nil
}

// itemBuffer has memory for an item until the stream has copied the item.
type itemBuffer struct{ bytes []byte }

// itemBuffers has idle memory.
//
//nolint:gochecknoglobals // for any goroutine.
var itemBuffers = sync.Pool{New: func() any { return &itemBuffer{} }}

func newItemBuffer() *itemBuffer {
	b, _ := itemBuffers.Get().(*itemBuffer)
	return b
}

// release lets a later item use the memory.
func (b *itemBuffer) release() {
	if cap(b.bytes) <= maxReusedBody {
		itemBuffers.Put(b)
	}
}

// pack encodes an item, into buffer unless it is nil.
func (t *typedItems) pack(v any, buffer *itemBuffer) (body []byte, err error) {
	if t.method.appends != nil && buffer != nil {
		body, err = t.method.appends.MarshalAppend(buffer.bytes[:0], v)
		buffer.bytes = body
	} else {
		body, err = t.method.codec.Marshal(v)
	}
	if err != nil || t.plain() {
		return body, err
	}
	sent, encoding, err := t.method.compress(body, t.encoding)
	if err != nil {
		return nil, err
	}
	mark := byte(itemPlain)
	if encoding != "" {
		mark = itemCompressed
	}
	return append([]byte{mark}, sent...), nil
}

// unpack returns the body of an item.
func (t *typedItems) unpack(item []byte) ([]byte, error) {
	switch {
	case t.plain():
		return item, nil
	case len(item) == 0 || item[0] > itemCompressed:
		return nil, errItemMark
	case item[0] == itemPlain:
		return item[1:], nil
	default:
		return t.method.decompress(item[1:], t.encoding, t.limit)
	}
}
