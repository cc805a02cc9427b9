package amqpx

import "context"

// Shutdown refuses new calls and streams with [CodeUnavailable], [DidNotRun] and [ErrClosed], waits
// until the calls under way, with the calls of their middleware, have results and the open streams have
// ended, and then closes the client like [Client.Close]. Shutdown also waits for an open stream that is
// not used any more. When ctx ends first, Shutdown ends calls and streams as Close does and returns
// ctx's error. Shutdown may be called several times.
func (c *Client) Shutdown(ctx context.Context) error {
	if err := c.check(ctx); err != nil {
		return err
	}
	select {
	case <-c.calls.Shut():
	case <-c.closing:
	case <-ctx.Done():
		_ = c.Close(ctx) // which can fail with ctx's error only
		return ctx.Err()
	}
	return c.Close(ctx)
}

// refused returns the error of a call after Shutdown.
func (c *Client) refused(method string) error {
	err := c.limitError(ErrClosed)
	c.recordCall(c.observe(method), err)
	return err
}
