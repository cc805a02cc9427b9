package amqpx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Response is a response as a client received it; see [CallInfo] and [WithResponseCheck].
type Response struct {
	// Body is the result; nil for a failure, whose text is in the error.
	Body []byte
	// ContentType and ContentEncoding describe the body; "" when the server did not say.
	ContentType, ContentEncoding string
	// Type is the property type, which this package's servers do not set. "error" is read as
	// a failure.
	Type string
	// Header holds the application's headers, with values as in [Request.Header]. It may be
	// nil.
	Header map[string]any
}

// properties are what a message says beside its body and what this package needs. A value
// is not changed once it is shared.
type properties struct {
	contentType, contentEncoding string
	kind                         string // the property type
	header                       map[string]any
}

// typeError is the property type of responses with which some libraries tell a failure.
const typeError = "error"

// errNoResponse is returned where a context is not that of a handler.
var errNoResponse = errors.New("amqpx: the context is not that of a server's handler")

// SetResponseContentType sets the content type and the content encoding of the response to
// the request that the handler with context ctx answers; "" is none. Responses that are
// errors have none. Each is at most 255 bytes long. It may be called until the handler
// returns, by any goroutine; the error says that ctx is not a handler's, or what cannot be
// sent.
func SetResponseContentType(ctx context.Context, contentType, contentEncoding string) error {
	if err := checkContent(contentType, contentEncoding); err != nil {
		return err
	}
	return changeResponse(ctx, func(p *properties) error {
		p.contentType, p.contentEncoding = contentType, contentEncoding
		return nil
	})
}

// SetResponseHeader sets a header of the response to the request that the handler with
// context ctx answers, also if that is an error. Names and values are bound as those of
// [WithHeader]. It may be called until the handler returns, by any goroutine; the error says
// that ctx is not a handler's, or what cannot be sent. The caller gets headers by
// [WithCallInfo].
func SetResponseHeader(ctx context.Context, name string, value any) error {
	sent, err := encodeHeader(map[string]any{name: value})
	if err != nil {
		return err
	}
	return changeResponse(ctx, func(p *properties) error {
		header := maps.Clone(p.header)
		if header == nil {
			header = make(map[string]any, 1)
		}
		header[name] = sent[name]
		p.header = header
		return checkHeader(header)
	})
}

// changeResponse replaces the properties of a handler's response by a changed copy.
func changeResponse(ctx context.Context, change func(*properties) error) error {
	r, ok := ctx.Value(invocationKey{}).(*invocation)
	if !ok {
		return errNoResponse
	}
	for {
		before := r.response.Load()
		var changed properties
		if before != nil {
			changed = *before
		}
		if err := change(&changed); err != nil {
			return err
		}
		if r.response.CompareAndSwap(before, &changed) {
			return nil
		}
	}
}

// ownProperties is the room in a frame for what this package adds to a response.
const ownProperties = 4 << 10

// checkResponse refuses properties that do not fit a frame of the connection beside what
// this package adds.
func (r *invocation) checkResponse(p *properties) error {
	var msg amqp.Publishing
	p.addTo(&msg, false)
	size := r.job.from.sess.pub.frameSize()
	if size == 0 {
		return nil // no limit
	}
	if err := checkFrame(&msg, max(size-ownProperties, ownProperties/2)); err != nil {
		return Errorf(CodeResourceExhausted, "the response's %w", err)
	}
	return nil
}

// checkContent refuses a content type, or encoding, that cannot be sent.
func checkContent(contentType, contentEncoding string) error {
	switch {
	case len(contentType) > maxShortString || len(contentEncoding) > maxShortString:
		return fmt.Errorf("content type of %d bytes, content encoding of %d: want at most %d", len(contentType), len(contentEncoding), maxShortString)
	case contentType == contentTypeCalls || contentType == contentTypeAnswers:
		return fmt.Errorf("content type %q is reserved for batches", contentType)
	default:
		return nil
	}
}

// addTo adds the properties to a response that travels alone.
func (p *properties) addTo(msg *amqp.Publishing, failed bool) {
	if p == nil {
		return
	}
	if !failed {
		msg.ContentType, msg.ContentEncoding = p.contentType, p.contentEncoding
	}
	for name, v := range p.header {
		setHeader(msg, name, v)
	}
}

// batchable reports whether the properties can travel in a batch: headers are text there.
func (p *properties) batchable() bool { return p == nil || allText(p.header) }

// allText reports whether all values of headers are text.
func allText(header map[string]any) bool {
	for _, v := range header {
		if _, ok := v.(string); !ok {
			return false
		}
	}
	return true
}

// size estimates the memory of the properties.
func (p *properties) size() int {
	if p == nil {
		return 0
	}
	n, _ := headerSize(amqp.Table(p.header), 0)
	return n + len(p.contentType) + len(p.contentEncoding)
}

// receivedProperties returns the properties of a response that came alone, or nil.
func receivedProperties(d *amqp.Delivery) *properties {
	header := applicationHeader(d.Headers)
	if header == nil && d.ContentType == "" && d.ContentEncoding == "" && d.Type == "" {
		return nil
	}
	return &properties{contentType: d.ContentType, contentEncoding: d.ContentEncoding, kind: d.Type, header: header}
}

// response returns what a client tells of the response to a call.
func (p *properties) response(body []byte) *Response {
	r := &Response{Body: body}
	if p != nil {
		r.ContentType, r.ContentEncoding, r.Type, r.Header = p.contentType, p.contentEncoding, p.kind, p.header
	}
	return r
}

// WithResponseCheck sets a function that is called with every response that would be a
// result, and turns it into an error by returning one: for servers that tell a failure in
// the body, as {"error": …}. An [*Error] reaches the caller with its code and message,
// another error with [CodeUnknown] and its text; the outcome is [Ran] either way. The
// function runs on the goroutine of the call and must be safe for concurrent use; its panic
// is [CodeInternal]. Given twice, the last one counts; nil is none, the default.
func WithResponseCheck(check func(*Response) error) ClientOption {
	return clientOption(func(c *clientConfig) { c.responseCheck = check })
}

// check asks the client's check about a response that would be a result.
func (k *call) check(a *reply) (failed *Error) {
	defer func() {
		if v := recover(); v != nil {
			failed = localError(CodeInternal, Ran, nil, "the response check panicked: "+panicText(v))
		}
	}()
	err := k.route.check(a.props.response(a.body))
	if err == nil {
		return nil
	}
	if coded := codedError(err); coded != nil {
		own := *coded
		own.outcome = Ran
		return &own
	}
	return localError(CodeUnknown, Ran, nil, strings.ToValidUTF8(err.Error(), "\uFFFD"), err)
}
