package amqpx

import (
	"context"
	"errors"
	"slices"
	"time"
)

// WithHedge makes an idempotent call twice if it has no response after delay, more than 0: the
// second request mostly reaches another server, the first response counts, and the other request
// is canceled. Slow servers then cost the caller little more than delay, which should be about
// the 95th to 99th percentile of the call's latency; a shorter delay loads the servers without
// use. A second request uses the budget of [WithRetryBudget], so hedges do not overload a slow
// service.
//
// Both requests have the same idempotency key. A server that receives both runs one, and responds
// to both with the result ([WithDedup]); two servers run one each, except that the second refuses
// the request if the method is [AtMostOnce]. Calls that are not idempotent ([Idempotent],
// [WithIdempotencyKey]), one-way requests and streams are never made twice. A failure counts like
// a result, except [CodeUnavailable], [CodeResourceExhausted] and [CodeAborted]: while the other
// request is under way, the call then waits for that response. With [WithRetry] each retry is
// hedged too. The default is no hedge; of several delays, the last counts.
func WithHedge(delay time.Duration) CallOption {
	return func(c *callConfig) {
		if c.hedge = delay; delay <= 0 {
			c.hedge = -1
		}
	}
}

var errHedge = errors.New("WithHedge: want more than 0")

// leg is one of the two requests of a hedged call.
type leg struct {
	req  Request
	body []byte
	err  *Error
}

// hedge makes one try of a call: a round trip, or two if the call is hedged.
func (c *Client) hedge(ctx context.Context, req *Request) ([]byte, error) {
	if req.sent.hedge <= 0 || !req.Idempotent || req.sent.oneWay {
		return c.tryOnce(ctx, req)
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	ended, started := make(chan *leg, 2), 0
	start := func(next *Request) {
		l := &leg{req: *next}
		l.req.ownResults()
		if !c.pending.unlessClosed(func() { c.futures.Go(func() { l.run(both, c, ended) }) }) { // ends with both, at the latest by Close
			l.err = localError(CodeUnavailable, DidNotRun, ErrClosed, "")
			ended <- l
		}
		started++
	}
	start(req)
	timer := time.NewTimer(req.sent.hedge)
	defer timer.Stop()
	var other *leg // which has ended and does not count
	for {
		select {
		case <-timer.C:
			if c.budget.spend() {
				c.counts.hedged.Add(1)
				start(req.again(true))
			}
		case l := <-ended:
			if started--; started > 0 && l.isInconclusive() {
				other = l
				continue
			}
			if cancel(); started > 0 { // no leg uses the body of the request after the return
				other = <-ended
			}
			return l.result(req, other)
		}
	}
}

// run makes the round trip of the leg.
func (l *leg) run(ctx context.Context, c *Client, ended chan<- *leg) {
	body, err := c.tryOnce(ctx, &l.req)
	if l.body = body; err != nil {
		l.err = codedError(err)
	}
	ended <- l
}

// isInconclusive reports whether the response to the other leg may be better.
func (l *leg) isInconclusive() bool {
	return l.err != nil && !errors.Is(l.err, ErrClosed) &&
		slices.Contains([]Code{CodeUnavailable, CodeResourceExhausted, CodeAborted}, l.err.Code())
}

// ownResults lets a request store what its caller wants to know beside the results of other
// requests of the call.
func (req *Request) ownResults() {
	if req.sent.info != nil {
		req.sent.info = new(CallInfo)
	}
	if req.sent.content != nil {
		req.sent.content = new(receivedContent)
	}
}

// result returns the result of a call whose leg l counts, and stores what its caller wants to know.
// other is the other leg, or nil.
func (l *leg) result(of *Request, other *leg) ([]byte, error) {
	if info := of.sent.info; info != nil {
		*info = *l.req.sent.info
		if other != nil {
			info.Attempts += other.req.sent.info.Attempts
		}
	}
	if content := of.sent.content; content != nil {
		*content = *l.req.sent.content
	}
	if l.err == nil {
		return l.body, nil
	}
	return nil, l.err.after(other != nil && (other.err == nil || other.err.Outcome() != DidNotRun))
}
