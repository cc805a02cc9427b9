package amqpx

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// A call leaves once the link counts as ready, not before: a caller that has its answer
// and closes the client must find the link, to delete the reply queue over it.
func TestCallWaitsUntilTheLinkCountsAsReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBroker()
		ready(t, startServer(t, b, handlers{"m": echo}).WaitReady)
		connecting := make(chan struct{})
		log, _ := observed(zap.InfoLevel)
		log = log.WithOptions(zap.Hooks(func(e zapcore.Entry) error {
			if e.Message == "ready" {
				<-connecting
			}
			return nil
		}))
		c := startClient(t, b, WithLogger(log))
		call := goCall(c, within(t, time.Minute), "m", []byte("x"))
		settle()
		wantSame(t, "answers while the link comes up", len(call), 0)
		close(connecting)
		wantAnswer(t, <-call, "x")
		wantSame(t, "state", c.Status().State, StateReady)
	})
}
