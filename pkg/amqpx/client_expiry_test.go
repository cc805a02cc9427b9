package amqpx

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

func TestCallsExpireAtTheClientsDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo, "hangs": pastDeadline})
		var waiting []<-chan result
		for range 5 {
			waiting = append(waiting, goCall(r.client, t.Context(), "hangs", nil))
			wantResponse(t, <-goCall(r.client, t.Context(), "m", nil), "") // starts and ends between the waiting calls
			pass(time.Second)
		}
		for _, done := range waiting {
			got := <-done
			wantIs(t, got.err, context.DeadlineExceeded)
			wantSame(t, "took", got.took, DefaultTimeout)
		}
		pass(2 * DefaultTimeout)
		got := <-goCall(r.client, t.Context(), "hangs", nil) // the first in an empty list
		wantSame(t, "took", got.took, DefaultTimeout)
	})
}

// Middleware that waits before it sends a request registers calls out of the order of their
// deadlines. The calls still expire in time.
func TestCallsOutOfOrderExpireInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"hangs": pastDeadline}).WaitReady)
		c := startClient(t, b, WithMiddleware(func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				if string(req.Body) == "late" {
					xsync.Sleep(ctx, 10*time.Second)
				}
				return next(ctx, req)
			}
		}))
		ready(t, c.WaitReady)
		late := goCall(c, t.Context(), "hangs", []byte("late"))
		pass(time.Second)
		other := goCall(c, t.Context(), "hangs", nil)
		for _, done := range []<-chan result{late, other} {
			wantSame(t, "took", (<-done).took, DefaultTimeout)
		}
	})
}

func TestDeadlinesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := deadlineList{expire: func() {}}
		begun := time.Now()
		var calls []*call
		for i := range 6 {
			k := pendingCall(fmt.Sprint(i))
			k.deadline = begun.Add(time.Duration(i) * time.Second)
			wantSame(t, "added", l.add(k), true)
			calls = append(calls, k)
		}
		out := pendingCall("out of order")
		out.deadline = begun
		wantSame(t, "added out of order", l.add(out), false)
		l.remove(calls[0])
		l.remove(calls[2])
		l.remove(calls[5])
		l.remove(calls[5]) // a second removal does no harm
		var ids []string
		for _, k := range l.expired(begun.Add(time.Hour)) {
			ids = append(ids, k.req.text())
		}
		wantSame(t, "expired", fmt.Sprint(ids), "[1 3 4]")
		wantSame(t, "left", l.oldest == nil && l.newest == nil, true)
		l.stop()
	})
}

// Deadlines may pass while calls are being registered.
func TestCallsWithNextToNoTime(t *testing.T) {
	t.Parallel()
	c := startClient(t, brokertest.New(), WithTimeout(time.Nanosecond), WithCallOptions(WaitForServer()))
	var waiting []<-chan result
	for range 200 {
		waiting = append(waiting, goCall(c, t.Context(), "m", nil), goResult(c, t.Context(), "m"))
	}
	for _, done := range waiting {
		wantIs(t, (<-done).err, context.DeadlineExceeded)
	}
}

// goResult makes a call with Go and waits in a goroutine.
func goResult(c *Client, ctx context.Context, method string) <-chan result { //nolint:revive // the client is the subject.
	done := make(chan result, 1)
	go func() { done <- resultOf(c.Go(ctx, method, nil)) }()
	return done
}
