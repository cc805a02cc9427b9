package amqpx

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"reflect"
	"slices"
	"strings"
	"sync"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Caller makes calls: a [Client], or a fake in the tests of callers.
type Caller interface {
	// Call is like [Client.Call].
	Call(ctx context.Context, method string, body []byte, opts ...CallOption) ([]byte, error)
}

// Sender sends one-way requests: a [Client], or a fake in the tests of senders.
type Sender interface {
	// Send is like [Client.Send].
	Send(ctx context.Context, method string, body []byte, opts ...CallOption) error
}

// Method is a method with types: server and callers share one value, mostly a variable of a
// package which both import. It does not change, and is safe for concurrent use.
//
//	var CreateOrder = amqpx.NewMethod[CreateRequest, Order]("orders.create", amqpx.JSON(), amqpx.CallTimeout(2*time.Second))
//
//	err := CreateOrder.Handle(server, service.Create)                          // func(context.Context, CreateRequest) (Order, error)
//	order, err := CreateOrder.Call(ctx, client, CreateRequest{SKU: "tv"})
//
// The content type of the codec travels with every message, and both ends refuse another one; a
// message without a content type, as from a program in another language, is accepted.
type Method[Req, Res any] struct{ typedMethod }

// typedMethod is what a [Method] and a [StreamMethod] share.
type typedMethod struct {
	kind  string // the name of the constructor
	name  string
	codec Codec
	cfg   methodConfig
	fault error // of the constructor

	appends    appendCodec      // codec, if it can append; else nil
	properties *wire.Properties // of responses without compression, shared by all of them
	mediaType  string           // of the codec, without parameters
}

// MethodOption configures a [Method] or a [StreamMethod]. Every [HandleOption] is a MethodOption, and
// so is every [CallOption] except [WithIdempotencyKey] and [WithCallInfo], which are of one call. Call
// options apply to the calls after the options of the client.
type MethodOption interface{ applyMethod(m *methodConfig) }

type methodConfig struct {
	call       []CallOption
	handle     []HandleOption
	validate   []validator
	compressor Compressor // nil: nothing is compressed
	above      int        // the size of bodies that are not compressed
	fault      error
}

func (o CallOption) applyMethod(m *methodConfig)   { m.call = append(m.call, o) }
func (o HandleOption) applyMethod(m *methodConfig) { m.handle = append(m.handle, o) }

type methodOption func(*methodConfig)

func (o methodOption) applyMethod(m *methodConfig) { o(m) }

// validator is a function of Validate.
type validator struct {
	accepts reflect.Type
	check   func(v any) error
}

// Validate adds a check of requests, which the server calls with each decoded request before the
// handler gets it. The requests of a [StreamMethod] are the items of the client. An [*Error] reaches
// the caller unchanged, the text of any other error with [CodeInvalidArgument]. T is the type of the
// method's requests, or an interface that this type implements. Several checks run in their order; the
// first error counts:
//
//	amqpx.Validate(CreateRequest.Check)                                   // func (r CreateRequest) Check() error
//	amqpx.Validate(func(v any) error { return validate.Struct(v) })       // github.com/go-playground/validator
func Validate[T any](check func(T) error) MethodOption {
	return methodOption(func(m *methodConfig) {
		if check == nil {
			m.fault = errors.Join(m.fault, errors.New("Validate: the function is nil"))
			return
		}
		m.validate = append(m.validate, validator{reflect.TypeFor[T](), func(v any) error {
			t, _ := v.(T)
			return check(t)
		}})
	})
}

// NewMethod returns a method with the types of its requests and responses. An invalid argument,
// such as an option that is nil, is reported by [Method.Handle] and by every call.
func NewMethod[Req, Res any](name string, codec Codec, opts ...MethodOption) *Method[Req, Res] {
	return &Method[Req, Res]{newTypedMethod("NewMethod", name, codec, reflect.TypeFor[Req](), opts)}
}

// newTypedMethod returns a method whose requests have a type.
func newTypedMethod(kind, name string, codec Codec, requests reflect.Type, opts []MethodOption) typedMethod {
	m := typedMethod{kind: kind, name: name, codec: codec}
	for i, o := range opts {
		if o == nil || reflect.ValueOf(o).Kind() == reflect.Func && reflect.ValueOf(o).IsNil() {
			m.fault = errors.Join(m.fault, fmt.Errorf("option %d is nil", i+1))
			continue
		}
		o.applyMethod(&m.cfg)
	}
	for _, v := range m.cfg.validate {
		if !requests.AssignableTo(v.accepts) {
			m.fault = errors.Join(m.fault, fmt.Errorf("Validate: the function takes a %v, requests are a %v", v.accepts, requests))
		}
	}
	m.fault = errors.Join(m.fault, m.cfg.fault, errors.Join(sharedMistakes(m.cfg.call)...))
	if codec == nil {
		m.fault = errors.Join(m.fault, errors.New("the codec is nil"))
		return m
	}
	m.appends, _ = codec.(appendCodec)
	contentType := codec.ContentType()
	m.fault = errors.Join(m.fault, wire.CheckContent(contentType, ""))
	m.mediaType = mediaTypeOf(contentType)
	m.properties = &wire.Properties{ContentType: contentType}
	return m
}

// Name returns the name of the method.
func (m *Method[Req, Res]) Name() string { return m.name }

// mistake returns the error for a faulty method.
func (m *typedMethod) mistake() error {
	return fmt.Errorf("amqpx: %s(%q): %w", m.kind, m.name, m.fault)
}

// Handle registers a function as the handler of the method, like [Server.Handle]. The function is
// not called for a request that cannot be decoded or is not valid: its caller gets
// [CodeInvalidArgument], and where the codec knows the wrong field, a text and a [BadRequest] that
// name it. A response that cannot be encoded is [CodeInternal], with the reason in the server's
// log. The options apply after those of the method.
func (m *Method[Req, Res]) Handle(s *Server, handle func(ctx context.Context, req Req) (Res, error), opts ...HandleOption) error {
	if m.fault != nil {
		return m.mistake()
	}
	if handle == nil {
		return fmt.Errorf("amqpx: method %q: no handler", m.name)
	}
	return s.Handle(m.name, m.Handler(handle), append(slices.Clip(m.cfg.handle), opts...)...)
}

// Handler returns the function as a [Handler], for tests of the function with encoded requests, and
// for servers that need a Handler. The options of the method do not apply to it.
func (m *Method[Req, Res]) Handler(handle func(ctx context.Context, req Req) (Res, error)) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		if m.fault != nil {
			return nil, m.mistake()
		}
		var in Req
		if err := m.decodeRequest(ctx, req, &in); err != nil {
			return nil, err
		}
		out, err := handle(ctx, in)
		if err != nil {
			return nil, err
		}
		body, err := m.codec.Marshal(out)
		if err != nil {
			return nil, fmt.Errorf("response of method %q: %w", m.name, err)
		}
		return m.respond(ctx, body)
	}
}

// decodeRequest decodes a request into the value to which in points, or returns the error for its
// caller.
func (m *typedMethod) decodeRequest(ctx context.Context, req *Request, in any) error {
	if err := m.checkContentType(req); err != nil {
		return err
	}
	limit := DefaultMaxMessageSize
	if r, ok := ctx.Value(invocationKey{}).(*invocation); ok {
		limit = r.maxMessageSize()
	}
	body, err := m.decompress(req.Body, req.ContentEncoding, limit)
	if err != nil {
		return Errorf(CodeInvalidArgument, "request: %w", err)
	}
	return m.decode(body, in)
}

// checkContentType returns the error for the caller of a request with another content type.
func (m *typedMethod) checkContentType(req *Request) error {
	if m.accepts(req.ContentType) {
		return nil
	}
	return Errorf(CodeInvalidArgument, "content type %q: method %q takes %q", req.ContentType, m.name, m.codec.ContentType())
}

// decode decodes the body of a request into the value to which in points, and checks it.
func (m *typedMethod) decode(body []byte, in any) error {
	if err := m.codec.Unmarshal(body, in); err != nil {
		if coded := codedError(err); coded != nil {
			return err
		}
		return Errorf(CodeInvalidArgument, "request: %w", err)
	}
	for _, v := range m.cfg.validate {
		if err := v.check(reflect.ValueOf(in).Elem().Interface()); err != nil {
			if codedError(err) != nil {
				return err
			}
			return Errorf(CodeInvalidArgument, "%w", err)
		}
	}
	return nil
}

// respond compresses the body of a response if its caller wants that, and sets its content type.
func (m *typedMethod) respond(ctx context.Context, body []byte) ([]byte, error) {
	r, ok := ctx.Value(invocationKey{}).(*invocation)
	if !ok {
		return body, nil // a test of the handler
	}
	body, encoding, err := m.compress(body, r.request.in.AcceptEncoding)
	if err != nil {
		return nil, fmt.Errorf("response of method %q: %w", m.name, err)
	}
	if encoding == "" && r.response.CompareAndSwap(nil, m.properties) {
		return body, nil
	}
	return body, SetResponseContentType(ctx, m.properties.ContentType, encoding)
}

// Call calls the method, like [Client.Call]; the options apply after those of the method. A request
// that cannot be encoded is [CodeInvalidArgument] with [DidNotRun]; a response that cannot be
// decoded, or has another content type, is [CodeInternal] with [Ran].
func (m *Method[Req, Res]) Call(ctx context.Context, c Caller, req Req, opts ...CallOption) (res Res, err error) {
	switch {
	case m.fault != nil:
		return res, misused(m.mistake())
	case c == nil:
		return res, misused(errNoClient)
	}
	t := newTypedCall(c)
	if m.cfg.compressor != nil {
		t.acceptEncoding = m.cfg.compressor.Name()
	}
	body, err := m.encodeRequest(req, t, opts)
	if err != nil {
		return res, err
	}
	response, err := c.Call(ctx, m.name, body, t.options...)
	if err == nil {
		to, ok := t.result.(*Res)
		if !ok {
			to = new(Res)
			t.result = to
		}
		err = m.decodeResponse(response, &t.got, to)
		var none Res
		res, *to = *to, none
	}
	t.release()
	return res, err
}

// Send sends a request without a response, like [Client.Send]; the options apply after those of the
// method. A request that cannot be encoded is [CodeInvalidArgument] with [DidNotRun].
func (m *Method[Req, Res]) Send(ctx context.Context, s Sender, req Req, opts ...CallOption) error {
	switch {
	case m.fault != nil:
		return misused(m.mistake())
	case s == nil:
		return misused(errNoClient)
	}
	t := newTypedCall(s)
	t.oneWay = true
	body, err := m.encodeRequest(req, t, opts)
	if err != nil {
		return err
	}
	err = s.Send(ctx, m.name, body, t.options...)
	t.release()
	return err
}

// encodeRequest returns the body of a request, which is valid until t is released, and sets the
// options of its call: those of the method, opts and that of t.
func (m *Method[Req, Res]) encodeRequest(req Req, t *typedCall, opts []CallOption) (body []byte, err error) {
	if m.appends == nil {
		body, err = m.codec.Marshal(req)
	} else if body, err = m.appends.MarshalAppend(t.buffer[:0], req); cap(body) <= maxReusedBody {
		t.buffer = body
	}
	if err == nil {
		body, t.contentEncoding, err = m.compress(body, anyEncoding)
	}
	if err != nil {
		return nil, localError(CodeInvalidArgument, DidNotRun, nil, "request: "+err.Error(), err)
	}
	t.contentType = m.properties.ContentType
	t.options = append(append(append(t.options, m.cfg.call...), opts...), t.option)
	return body, nil
}

// decodeResponse decodes the body of a response into res.
func (m *Method[Req, Res]) decodeResponse(body []byte, got *receivedContent, res *Res) error {
	if !m.accepts(got.contentType) {
		return localError(CodeInternal, Ran, nil, fmt.Sprintf("response: content type %q, want %q", got.contentType, m.codec.ContentType()))
	}
	body, err := m.decompress(body, got.contentEncoding, got.limit)
	if errors.Is(err, ErrTooLarge) {
		return localError(CodeResourceExhausted, Ran, nil, "response: "+err.Error(), err)
	}
	if err == nil {
		err = m.codec.Unmarshal(body, res)
	}
	if err == nil {
		return nil
	}
	text := err.Error()
	if coded := codedError(err); coded != nil {
		text = coded.Message()
	}
	return localError(CodeInternal, Ran, nil, "response: "+text, err)
}

// typedCall has the options of a call by a Method.
type typedCall struct {
	contentType, contentEncoding string
	acceptEncoding               string
	oneWay                       bool // there is no response
	got                          receivedContent

	option  CallOption   // the method apply
	options []CallOption // of the method and the call
	buffer  []byte       // of the request, or of an earlier one
	result  any          // a pointer to an empty result, of this or an earlier call
	reused  bool         // a later call may use the memory
}

// typedCalls has idle memory for the calls of methods.
//
//nolint:gochecknoglobals // every caller may use every element.
var typedCalls sync.Pool

// newTypedCall returns an empty typedCall for a call or a one-way request by c, a [Caller] or a
// [Sender]. A client without middleware forgets the options and the body when its method returns, so
// that the memory can be used again, unless the call makes several tries; anything else may go on with
// them.
func newTypedCall(c any) *typedCall {
	if client, ok := c.(*Client); ok && client != nil && client.handler == nil && client.traced == nil {
		if t, ok := typedCalls.Get().(*typedCall); ok {
			return t
		}
		t := &typedCall{reused: true}
		t.option = t.apply
		return t
	}
	t := &typedCall{}
	t.option = t.apply
	return t
}

// release lets a later call use the memory, if that is possible.
func (t *typedCall) release() {
	if !t.reused {
		return
	}
	clear(t.options)
	*t = typedCall{reused: true, option: t.option, options: t.options[:0], buffer: t.buffer, result: t.result}
	typedCalls.Put(t)
}

func (t *typedCall) apply(c *callConfig) {
	t.reused = t.reused && c.retry == nil && c.hedge == 0 // a try may go on after the call
	if c.contentType, c.contentEncoding = t.contentType, t.contentEncoding; !t.oneWay {
		c.acceptEncoding, c.content = t.acceptEncoding, &t.got
	}
}

// accepts reports whether a content type is that of the codec, or absent. Parameters, such as a
// charset, do not matter.
func (m *typedMethod) accepts(contentType string) bool {
	return contentType == "" || contentType == m.properties.ContentType || mediaTypeOf(contentType) == m.mediaType
}

// mediaTypeOf returns a content type without its parameters, in lower case.
func mediaTypeOf(contentType string) string {
	if t, _, err := mime.ParseMediaType(contentType); err == nil {
		return t
	}
	t, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(t))
}
