package amqpx

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

type orderRequest struct {
	SKU      string         `json:"sku"`
	Count    int8           `json:"count"`
	Customer orderCustomer  `json:"customer"`
	Notes    []string       `json:"notes,omitempty"`
	Extra    map[string]int `json:"extra,omitempty"`
}

type orderCustomer struct {
	Age *int `json:"age"`
}

// check is a validation hook.
func (r orderRequest) check() error {
	switch r.SKU {
	case "none":
		return errors.New("sku is empty")
	case "gone":
		return Errorf(CodeNotFound, "no such sku")
	}
	return nil
}

type order struct {
	ID   int    `json:"id"`
	SKU  string `json:"sku"`
	Note string `json:"note,omitempty"`
}

// createOrder is the handler of the tests' method.
func createOrder(ctx context.Context, r orderRequest) (order, error) {
	if r.SKU == "fail" {
		return order{}, Errorf(CodeAborted, "no")
	}
	return order{ID: 1, SKU: r.SKU, Note: strings.Join(r.Notes, "")}, SetResponseHeader(ctx, "h", "v")
}

// startMethod starts a server with a method, and a client.
func startMethod[Req, Res any](t *testing.T, m *Method[Req, Res], h func(context.Context, Req) (Res, error), opts ...Option) *rig {
	t.Helper()
	r := &rig{t: t, broker: brokertest.New()}
	var clientOpts []ClientOption
	serverOpts := []ServerOption{onBroker(r.broker)}
	for _, o := range opts {
		clientOpts, serverOpts = append(clientOpts, o), append(serverOpts, o)
	}
	s, err := NewServer(testURL, serverOpts...)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Handle(s, h), s.Handle("start batching", echo)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.server = &running{Server: s, stop: stop, result: make(chan error, 1)}
	go func() { r.server.result <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		_ = r.server.wait(t)
	})
	r.client = startClient(t, r.broker, clientOpts...)
	ready(t, s.WaitReady)
	ready(t, r.client.WaitReady)
	return r
}

func TestMethodCarriesTypesAndContentType(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var seen Request
		m := NewMethod[orderRequest, order]("orders.create", JSON(), Idempotent(), Validate(orderRequest.check), AtMostOnce(), CallTimeout(5*time.Second))
		wantSame(t, "name", m.Name(), "orders.create")
		r := startMethod(t, m, func(ctx context.Context, in orderRequest) (order, error) {
			req, _ := RequestFromContext(ctx)
			seen = *req
			deadline, _ := ctx.Deadline()
			wantSame(t, "budget", time.Until(deadline).Round(time.Second), 5*time.Second)
			return createOrder(ctx, in)
		})
		var info CallInfo
		got, err := m.Call(t.Context(), r.client, orderRequest{SKU: "tv", Notes: []string{"a", "b"}}, WithCallInfo(&info))
		if want := (order{1, "tv", "ab"}); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		wantSame(t, "content type of the request", seen.ContentType, "application/json")
		wantSame(t, "body", string(seen.Body), `{"sku":"tv","count":0,"customer":{"age":null},"notes":["a","b"]}`)
		wantSame(t, "idempotent", seen.Idempotent, true)
		wantSame(t, "at most once", r.server.methods["orders.create"].atMostOnce, true)
		if want := (&Response{Body: []byte(`{"id":1,"sku":"tv","note":"ab"}`), ContentType: "application/json", Header: map[string]any{"h": "v"}}); !reflect.DeepEqual(info.Response, want) {
			t.Errorf("got %+v, want %+v", info.Response, want)
		}
		_, err = m.Call(t.Context(), r.client, orderRequest{SKU: "fail"})
		wantSame(t, "code", CodeOf(err), CodeAborted)
		_, err = m.Call(t.Context(), r.client, orderRequest{SKU: "none"})
		wantSame(t, "code of an invalid request", CodeOf(err), CodeInvalidArgument)
		wantSame(t, "text", codedError(err).Message(), "sku is empty")
		_, err = m.Call(t.Context(), r.client, orderRequest{SKU: "gone"})
		wantSame(t, "code of the hook", CodeOf(err), CodeNotFound)
	})
}

// A request that cannot be decoded names its wrong field; the handler does not run.
func TestRequestThatIsWrong(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		codec                 Codec
		contentType, encoding string
		body                  string
		field, text           string // of the error; text "": no error
	}{
		"good":                   {body: `{"sku":"tv"}`},
		"unknown field":          {body: `{"sku":"tv","new":{"x":1}}`},
		"other content type":     {contentType: "text/plain", body: `{}`, text: `content type "text/plain": method "m" takes "application/json"`},
		"charset":                {contentType: "Application/JSON; charset=utf-8", body: `{}`},
		"malformed content type": {contentType: "application/json; =", body: `{}`},
		"unknown encoding":       {encoding: "br", body: `{}`, text: `request: content encoding "br": want none or gzip`},
		"identity":               {encoding: "identity", body: `{}`},
		"not gzip":               {encoding: "gzip", body: `{}`, text: `request: content encoding "gzip": unexpected EOF`},
		"string for a number":    {body: `{"count":"3"}`, field: "count", text: `field "count": want a whole number of 8 bits, got string`},
		"fraction":               {body: `{"count":1.5}`, field: "count", text: `field "count": want a whole number of 8 bits, got number 1.5`},
		"overflow":               {body: `{"count":300}`, field: "count", text: `field "count": want a whole number of 8 bits, got number 300`},
		"inner field":            {body: `{"customer":{"age":true}}`, field: "customer.age", text: `field "customer.age": want a whole number of 64 bits, got bool`},
		"object for an array":    {body: `{"notes":{}}`, field: "notes", text: `field "notes": want an array, got object`},
		"array for an object":    {body: `{"customer":[]}`, field: "customer", text: `field "customer": want an object, got array`},
		"number for a string":    {body: `{"sku":7}`, field: "sku", text: `field "sku": want a string, got number`},
		"not an object":          {body: `7`, text: `the value: want an object, got number`},
		"not JSON":               {body: `{"sku":`, text: `not JSON at byte 7: unexpected end of JSON input`},
		"text behind it":         {body: `{} x`, text: `not JSON at byte 4: invalid character 'x' after top-level value`},
		"empty":                  {text: `the body is empty: want JSON`},
		"strict, good":           {codec: StrictJSON(), body: `{"sku":"tv"}`},
		"strict, unknown field":  {codec: StrictJSON(), body: `{"sku":"tv","new":1}`, field: "new", text: `field "new": is unknown`},
		"strict, wrong type":     {codec: StrictJSON(), body: `{"sku":7}`, field: "sku", text: `field "sku": want a string, got number`},
		"strict, text behind it": {codec: StrictJSON(), body: `{} {}`, text: `not JSON: there is text after the value`},
		"strict, not JSON":       {codec: StrictJSON(), body: `{`, text: `unexpected EOF`},
		"deeply nested":          {body: strings.Repeat(`[`, 20000), text: "not JSON at byte 10001: invalid character '[' exceeded max depth"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.codec == nil {
				c.codec = JSON()
			}
			runs := 0
			h := NewMethod[orderRequest, order]("m", c.codec).Handler(func(context.Context, orderRequest) (order, error) {
				runs++
				return order{}, nil
			})
			_, err := h(context.Background(), &Request{Method: "m", Body: []byte(c.body), ContentType: c.contentType, ContentEncoding: c.encoding})
			if c.text == "" {
				if err != nil || runs != 1 {
					t.Fatalf("%v, %d runs", err, runs)
				}
				return
			}
			wantSame(t, "runs", runs, 0)
			wantSame(t, "code", CodeOf(err), CodeInvalidArgument)
			wantSame(t, "text", codedError(err).Message(), c.text)
			var bad BadRequest
			if found := Detail(err, &bad); found != (c.field != "") || found && bad.FieldViolations[0].Field != c.field {
				t.Errorf("detail %+v, want field %q", bad, c.field)
			}
		})
	}
}

// A caller refuses a response that is not the method's.
func TestResponseThatIsWrong(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		contentType, encoding string
		body                  []byte
		code                  Code
		text                  string
	}{
		"good":               {body: []byte(`{"id":5}`)},
		"with content type":  {contentType: "application/json", body: []byte(`{"id":5}`)},
		"other content type": {contentType: "text/html", body: []byte(`{"id":5}`), code: CodeInternal, text: `response: content type "text/html", want "application/json"`},
		"wrong type":         {body: []byte(`{"id":"5"}`), code: CodeInternal, text: `response: field "id": want a whole number of 64 bits, got string`},
		"empty":              {code: CodeInternal, text: "response: the body is empty: want JSON"},
		"other encoding":     {encoding: "br", body: []byte("x"), code: CodeInternal, text: `response: content encoding "br": want none or gzip`},
		"bomb":               {encoding: "gzip", body: zipped(t, make([]byte, 2<<20)), code: CodeResourceExhausted, text: "response: content encoding \"gzip\": message exceeds the size limit: more than 1048576 bytes after gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, handlers{"m": func(ctx context.Context, _ *Request) ([]byte, error) {
					return c.body, SetResponseContentType(ctx, c.contentType, c.encoding)
				}}, WithMaxMessageSize(1<<20))
				got, err := NewMethod[orderRequest, order]("m", JSON()).Call(within(t, time.Minute), r.client, orderRequest{})
				if c.code == "" {
					if err != nil || got.ID != 5 {
						t.Errorf("got %+v, %v", got, err)
					}
					return
				}
				wantSame(t, "code", CodeOf(err), c.code)
				wantSame(t, "outcome", OutcomeOf(err), Ran)
				wantSame(t, "text", codedError(err).Message(), c.text)
				wantSame(t, "too large", errors.Is(err, ErrTooLarge), c.code == CodeResourceExhausted)
			})
		})
	}
}

func zipped(t *testing.T, body []byte) []byte {
	t.Helper()
	out, err := Gzip().Compress(body)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Compression is used above its size, alone and in batches, in both directions, if both ends want it.
func TestCompression(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long ", 1000)
	for name, c := range map[string]struct {
		client, server []MethodOption
		request, note  string
		want           [2]string // the content encodings of request and response
	}{
		"small":                 {client: []MethodOption{Compress(Gzip(), 500)}, server: []MethodOption{Compress(Gzip(), 500)}, request: "tv"},
		"both large":            {client: []MethodOption{Compress(Gzip(), 500)}, server: []MethodOption{Compress(Gzip(), 500)}, request: long, want: [2]string{"gzip", "gzip"}},
		"response large":        {client: []MethodOption{Compress(Gzip(), 500)}, server: []MethodOption{Compress(Gzip(), 500)}, request: "tv", note: long, want: [2]string{"", "gzip"}},
		"only the caller":       {client: []MethodOption{Compress(Gzip(), 0)}, request: long, want: [2]string{"gzip", ""}},
		"only the server":       {server: []MethodOption{Compress(Gzip(), 0)}, request: long},
		"not worth it":          {client: []MethodOption{Compress(Gzip(), 0)}, server: []MethodOption{Compress(Gzip(), 0)}, request: "a"},
		"another of the caller": {client: []MethodOption{Compress(reversing{}, 0)}, server: []MethodOption{Compress(Gzip(), 0)}, note: long},
		"of the program itself": {client: []MethodOption{Compress(reversing{}, 0)}, server: []MethodOption{Compress(reversing{}, 0)}, request: "x", note: long, want: [2]string{"reverse", "reverse"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				client := NewMethod[orderRequest, order]("m", JSON(), c.client...)
				server := NewMethod[orderRequest, order]("m", JSON(), c.server...)
				var seen string
				r := startMethod(t, server, func(ctx context.Context, in orderRequest) (order, error) {
					req, _ := RequestFromContext(ctx)
					seen = req.ContentEncoding
					if c.note != "" {
						return order{SKU: in.SKU, Note: c.note}, nil
					}
					return order{SKU: in.SKU}, nil
				}, WithBatch(BatchAuto))
				r.awaitBatching()
				check := func(what string) <-chan result {
					done := make(chan result, 1)
					go func() {
						var info CallInfo
						got, err := client.Call(within(t, time.Minute), r.client, orderRequest{SKU: c.request}, WithCallInfo(&info))
						if c.want[0] == "" && name == "another of the caller" {
							wantSame(t, what+": code", CodeOf(err), CodeInvalidArgument)
							done <- result{}
							return
						}
						if err != nil || got.SKU != c.request || got.Note != c.note {
							t.Errorf("%s: got %+v, %v", what, got, err)
						} else {
							wantSame(t, what+": encoding of the response", info.Response.ContentEncoding, c.want[1])
						}
						wantSame(t, what+": encoding of the request", seen, c.want[0])
						done <- result{}
					}()
					return done
				}
				<-check("alone")
				for _, end := range r.together(func() []<-chan result {
					one := check("in a batch")
					settle()
					return []<-chan result{one, goCall(r.client, within(t, time.Minute), "start batching", nil)}
				}) {
					<-end
				}
			})
		})
	}
}

// reversing is a compressor of a program: it claims to save a byte.
type reversing struct{}

func (reversing) Name() string { return "reverse" }

func (reversing) Compress(body []byte) ([]byte, error) {
	if len(body) == 0 {
		return nil, errors.New("nothing to reverse")
	}
	return reversed(body[:len(body)-1]), nil
}

func (reversing) Decompress(body []byte, _ int) ([]byte, error) {
	return append(reversed(body), '}'), nil
}

func reversed(body []byte) []byte {
	out := make([]byte, len(body))
	for i, b := range body {
		out[len(body)-1-i] = b
	}
	return out
}

func TestMethodsThatAreWrong(t *testing.T) {
	t.Parallel()
	client, server := startClient(t, brokertest.New()), func() *Server {
		s, err := NewServer(testURL)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}()
	for name, c := range map[string]struct {
		m    *Method[orderRequest, order]
		text string
	}{
		"no codec":            {NewMethod[orderRequest, order]("m", nil), "the codec is nil"},
		"nil option":          {NewMethod[orderRequest, order]("m", JSON(), nil), "option 1 is nil"},
		"nil CallOption":      {NewMethod[orderRequest, order]("m", JSON(), CallOption(nil)), "option 1 is nil"},
		"info of every call":  {NewMethod[orderRequest, order]("m", JSON(), WithCallInfo(new(CallInfo))), `NewMethod("m"): WithCallInfo: `},
		"key of every call":   {NewMethod[orderRequest, order]("m", JSON(), WithIdempotencyKey("fixed")), `NewMethod("m"): WithIdempotencyKey("fixed")`},
		"no time":             {NewMethod[orderRequest, order]("m", JSON(), CallTimeout(0)), `NewMethod("m"): CallTimeout(0s)`},
		"nil hook":            {NewMethod[orderRequest, order]("m", JSON(), Validate[any](nil)), "the function is nil"},
		"hook of another":     {NewMethod[orderRequest, order]("m", JSON(), Validate(func(int) error { return nil })), "takes a int, requests are a amqpx.orderRequest"},
		"nil compressor":      {NewMethod[orderRequest, order]("m", JSON(), Compress(nil, 0)), "the compressor is nil"},
		"negative size":       {NewMethod[orderRequest, order]("m", JSON(), Compress(Gzip(), -1)), "above -1 bytes"},
		"reserved type":       {NewMethod[orderRequest, order]("m", Raw(wire.ContentTypeRequests)), "reserved for batches"},
		"handler options":     {NewMethod[orderRequest, order]("m", JSON(), MaxConcurrent(0)), "max concurrent 0"},
		"empty method's name": {NewMethod[orderRequest, order]("", JSON()), "method name of 0 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := c.m.Handle(server, createOrder); err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Handle: %v, want %q", err, c.text)
			}
			if name == "handler options" {
				return
			}
			if _, err := c.m.Call(t.Context(), client, orderRequest{}); CodeOf(err) != CodeInvalidArgument || OutcomeOf(err) != DidNotRun || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Call: %v, want %q", err, c.text)
			}
		})
	}
	good := NewMethod[orderRequest, order]("m", JSON())
	if err := good.Handle(server, nil); err == nil {
		t.Error("Handle accepts a nil function")
	}
	if err := good.Handle(nil, createOrder); err == nil {
		t.Error("Handle accepts a nil server")
	}
	for _, c := range []Caller{nil, (*Client)(nil), new(Client)} {
		if _, err := good.Call(t.Context(), c, orderRequest{}); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("Call with %v: %v", c, err)
		}
	}
	if _, err := good.Call(t.Context(), client, orderRequest{}, nil); CodeOf(err) != CodeInvalidArgument {
		t.Errorf("Call with a nil option: %v", err)
	}
	if _, err := NewMethod[chan int, order]("m", JSON()).Call(t.Context(), client, nil); CodeOf(err) != CodeInvalidArgument || OutcomeOf(err) != DidNotRun {
		t.Errorf("a request that cannot be encoded: %v", err)
	}
}

func TestResponseThatCannotBeEncoded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewMethod[struct{}, chan int]("m", JSON())
		r := startMethod(t, m, func(context.Context, struct{}) (chan int, error) { return make(chan int), nil })
		got := <-goCall(r.client, within(t, time.Minute), "m", nil)
		wantSame(t, "code", CodeOf(got.err), CodeInternal)
		wantSame(t, "text", codedError(got.err).Message(), "internal error")
	})
}

// fakeCaller is a Caller of a test.
type fakeCaller func(method string, body []byte) ([]byte, error)

func (f fakeCaller) Call(_ context.Context, method string, body []byte, _ ...CallOption) ([]byte, error) {
	return f(method, body)
}

// A test of a caller needs no client, and a test of a handler no server.
func TestMethodsWithoutABroker(t *testing.T) {
	t.Parallel()
	m := NewMethod[[]byte, string]("m", Raw("text/plain"), Compress(Gzip(), 0))
	h := m.Handler(func(_ context.Context, in []byte) (string, error) { return strings.ToUpper(string(in)), nil })
	got, err := m.Call(t.Context(), fakeCaller(func(method string, body []byte) ([]byte, error) {
		return h(context.Background(), &Request{Method: method, Body: body})
	}), []byte("x"))
	if err != nil || got != "X" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := NewMethod[int, string]("m", Raw("")).Call(t.Context(), fakeCaller(nil), 5); CodeOf(err) != CodeInvalidArgument {
		t.Errorf("a number with Raw: %v", err)
	}
}

func FuzzMethodRequest(f *testing.F) {
	f.Add([]byte(`{"sku":"tv","count":3}`), "application/json", "", false)
	f.Add(func() []byte { b, _ := Gzip().Compress([]byte(`{"notes":["a"]}`)); return b }(), "", "gzip", true)
	f.Add(func() []byte { b, _ := Gzip().Compress(make([]byte, 1<<16)); return b }(), "", "gzip", false)
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0}, "a/b", "GZIP", true)
	f.Fuzz(func(t *testing.T, body []byte, contentType, encoding string, strict bool) {
		codec := JSON()
		if strict {
			codec = StrictJSON()
		}
		m := NewMethod[orderRequest, order]("m", codec, Validate(orderRequest.check))
		_, err := m.Handler(func(_ context.Context, in orderRequest) (order, error) { return order{SKU: in.SKU}, nil })(
			context.Background(), &Request{Method: "m", Body: body, ContentType: contentType, ContentEncoding: encoding})
		if err != nil && CodeOf(err) != CodeInvalidArgument && CodeOf(err) != CodeNotFound {
			t.Errorf("%v", err)
		}
		if got, err := m.decompress(body, encoding, 1<<10); err == nil && len(got) > 1<<10 && !bytes.Equal(got, body) {
			t.Errorf("%d bytes, the limit is %d", len(got), 1<<10)
		}
		var o order
		_ = m.decodeResponse(body, &receivedContent{contentType: contentType, contentEncoding: encoding}, &o)
	})
}

func FuzzGzip(f *testing.F) {
	f.Add([]byte("text"), 3)
	f.Add(make([]byte, 5000), 5000)
	f.Fuzz(func(t *testing.T, body []byte, limit int) {
		limit = max(limit%10000, 0)
		small, err := Gzip().Compress(body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Gzip().Decompress(small, limit)
		if fits := len(body) <= limit; fits != (err == nil) || fits && !bytes.Equal(got, body) || !fits && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes, limit %d: %d bytes, %v", len(body), limit, len(got), err)
		}
	})
}

func BenchmarkMethodJSON(b *testing.B) {
	m := NewMethod[orderRequest, order]("m", JSON())
	body := []byte(`{"sku":"tv","count":3,"customer":{"age":4}}`)
	h := m.Handler(func(_ context.Context, in orderRequest) (order, error) {
		return order{ID: int(in.Count), SKU: in.SKU}, nil
	})
	caller := fakeCaller(func(string, []byte) ([]byte, error) { return h(context.Background(), &Request{Body: body}) })
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Call(context.Background(), caller, orderRequest{SKU: "tv"}); err != nil {
			b.Fatal(err)
		}
	}
}
