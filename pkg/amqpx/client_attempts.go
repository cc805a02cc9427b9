package amqpx

import "time"

// attemptCheckMin and attemptCheckMax bound the pause between two checks of the time that
// attempts have had, an eighth of their time limit.
const (
	attemptCheckMin = 5 * time.Millisecond
	attemptCheckMax = time.Second
)

// attemptDoublings bounds how often the time limit of a call's attempts doubles.
const attemptDoublings = 10

// WithAttemptTimeout has an idempotent call sent again under the same ids, marked as re-sent,
// when the broker confirmed its request and no answer has come for d, as when a server
// acknowledged the request and lost it. Each further attempt of the call gets twice the time
// of the one before, so that slow servers are not flooded; the call's deadline bounds them
// all. The first answer counts, whichever attempt it belongs to. Calls that are not
// idempotent are not affected. The default, 0, sets no limit; a negative one is an error. The
// limit is kept to an eighth of d, at best to 5 ms.
func WithAttemptTimeout(d time.Duration) ClientOption {
	return clientOption(func(c *clientConfig) { c.attemptTimeout = d })
}

// checkAttempts sends calls again whose attempts have had their time, while a session lasts.
func (c *Client) checkAttempts(s *session) {
	limit := c.cfg.attemptTimeout
	tick := time.NewTicker(min(max(limit/8, attemptCheckMin), attemptCheckMax))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.done:
			return
		}
		now := time.Now().UnixNano()
		for _, k := range c.pending.snapshot() {
			doublings := min(max(k.sent.Load()-1, 0), attemptDoublings)
			if k.req.Idempotent && now-k.sentAt.Load() >= int64(limit)<<doublings && k.move(stageConfirmed, stageLost) {
				k.tell(event{fate: fateLost})
			}
		}
	}
}
