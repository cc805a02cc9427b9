package amqpx

import (
	"context"
	"fmt"
)

// Consumers asks the broker how many consumers the request queue has: servers of any kind,
// in any language. A queue that does not exist has none. The error is an [*Error]: that ctx
// ended first, that the queue's node is down, or that the broker does not tell this user of
// the queue. The answer is at most as old as the call. It is for health checks and reports
// at a low rate.
func (c *Client) Consumers(ctx context.Context) (int, error) {
	if err := c.check(ctx); err != nil {
		return 0, err
	}
	select {
	case <-c.watch.next():
	case <-ctx.Done():
		return 0, contextError(ctx.Err(), DidNotRun, nil, "")
	}
	switch st := c.watch.last(); {
	case st.missing:
		return 0, nil
	case st.away:
		return 0, localError(CodeUnavailable, DidNotRun, ErrQueueUnavailable, fmt.Sprintf("queue %q", c.route.queue))
	case !st.known:
		return 0, localError(CodePermissionDenied, DidNotRun, nil, fmt.Sprintf("the broker does not tell of queue %q", c.route.queue))
	default:
		return st.consumers, nil
	}
}
