package amqpx

import (
	"context"
	"slices"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/hook"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// init gives package amqpxtest the option to connect to a broker in memory, the constructor of
// errors, the request of a call with options, and the invocation of its handler.
//
//nolint:gochecknoinits // package amqpxtest cannot be imported here, because it imports this package.
func init() {
	hook.WithDialer = func(d transport.Dialer) any { return linkOption(func(c *linkConfig) { c.dialer = d }) }
	hook.NewError = func(p hook.ErrorParts) any {
		progress, _ := p.Progress.(*Progress)
		return &Error{
			code: Code(p.Code), message: p.Message, outcome: Outcome(p.Outcome), remote: p.Remote,
			retryAfter: max(p.RetryAfter, 0), causes: p.Causes, progress: progress,
		}
	}
	hook.NewRequest = newTestRequest
	hook.Invoke = invokeTest
}

// newTestRequest is hook.NewRequest. The request has an invocation without a server, and is its
// request.
func newTestRequest(ctx context.Context, method string, body []byte, opts any, oneWay bool) (any, time.Duration, error) {
	own, _ := opts.([]CallOption)
	if slices.ContainsFunc(own, func(o CallOption) bool { return o == nil }) {
		return &Request{Method: method, Body: body}, 0, errNilOption
	}
	client := &Client{cfg: &clientConfig{timeout: DefaultTimeout}}
	made, timeout, mistake := client.newRequest(method, body, own)
	if oneWay && mistake == nil {
		timeout = client.makeOneWay(ctx, &made, time.Now(), timeout)
	}
	made.identify()
	if _, bounded := ctx.Deadline(); timeout == 0 && !bounded {
		timeout = DefaultTimeout
	}
	x := &inboundRequest{in: &incoming{handed: made}}
	x.run.request = x
	x.in.AcceptEncoding = made.sent.acceptEncoding
	req := &x.in.handed
	req.run = &x.run
	return req, timeout, mistake
}

// invokeTest is hook.Invoke.
func invokeTest(ctx context.Context, made any) (handler context.Context, end func(body []byte, err error) (responded bool)) {
	req, _ := made.(*Request)
	r, sent := req.run, req.sent // the handler may change the request
	r.begun = time.Now()
	if sent.info != nil {
		*sent.info = CallInfo{CorrelationID: req.CorrelationID}
	}
	return context.WithValue(ctx, invocationKey{}, r), func(body []byte, err error) bool { return r.endTest(&sent, body, err) }
}

// endTest is the function end of hook.Invoke, for a request with these options.
func (r *invocation) endTest(sent *sentWith, body []byte, err error) (responded bool) {
	e := codedError(err)
	refused := e != nil && (e.refused || r.refusedWith(err) != nil)
	responded = e == nil || e.remote || e.outcome == Ran || refused
	response := &wire.Response{Body: body, Properties: r.response.Load()}
	if p := response.Properties; e != nil && p != nil { // an error has no content
		response.Properties = &wire.Properties{Header: p.Header, Trailer: p.Trailer}
	}
	if info := sent.info; info != nil {
		info.Attempts = 1
		if responded && !sent.oneWay {
			info.Response = newResponse(response)
		}
		if responded && !sent.oneWay && !refused {
			info.HandlerTime = time.Since(r.begun)
		}
	}
	if p := response.Properties; p != nil && sent.content != nil && responded {
		*sent.content = receivedContent{contentType: p.ContentType, contentEncoding: p.ContentEncoding}
	}
	return responded
}
