package amqpx

import (
	"slices"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/hook"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// init gives package amqpxtest the option to connect to a broker in memory, the constructor of
// errors, and the request of a call with options.
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
	hook.NewRequest = func(method string, body []byte, opts any) (any, time.Duration, error) {
		own, _ := opts.([]CallOption)
		if slices.ContainsFunc(own, func(o CallOption) bool { return o == nil }) {
			return &Request{Method: method, Body: body}, 0, errNilOption
		}
		req, timeout, mistake := (&Client{cfg: &clientConfig{}}).newRequest(method, body, own)
		req.identify()
		return &req, timeout, mistake
	}
}
