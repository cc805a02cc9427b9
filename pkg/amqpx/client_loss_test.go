package amqpx

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

func TestEveryCallOfManySettlesWhileConnectionsBreak(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": func(ctx context.Context, req *Request) ([]byte, error) {
			xsync.Sleep(ctx, 10*time.Millisecond)
			return req.Body, nil
		}}, WithBackoff(time.Millisecond, 50*time.Millisecond))
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for j := range 25 {
					want := fmt.Sprint(i, " ", j)
					response, err := r.client.Call(within(t, time.Minute), "m", []byte(want), Idempotent())
					wantResponse(t, result{response: response, err: err}, want)
				}
			})
		}
		for i := range 20 {
			pass(time.Duration(i) * 7 * time.Millisecond)
			switch i % 3 {
			case 0:
				r.cutClient()
			case 1:
				r.broker.Restart()
			default:
				r.broker.Kick(nil)
			}
		}
		wg.Wait()
		st := r.client.Stats()
		wantSame(t, "answered", st.OK, 500)
		wantSame(t, "unknown responses", st.Unknown, 0)
		if st.Reconnects < 5 {
			t.Errorf("only %d reconnects", st.Reconnects)
		}
	})
}

func TestLateConfirmOfAnAttemptDoesNotCountForTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, c.WaitReady)
		b.HoldConfirms()
		done := goCall(c, within(t, time.Hour), "m", nil, WaitForServer())
		pass(time.Minute) // returned, perhaps several times, and never confirmed
		h := newStepped()
		ready(t, startServer(t, b, handlers{"m": h.handle}).WaitReady)
		pass(2 * time.Second)
		b.With(func(b *brokertest.Broker) {
			b.Held[0]()
			b.Held = b.Held[1:]
		})
		<-h.begun
		settle()
		(&rig{broker: b}).cutClient()
		got := <-done
		wantIs(t, got.err, ErrOutcomeUnknown)
		if got.took > 2*time.Minute {
			t.Errorf("took %v", got.took)
		}
	})
}
