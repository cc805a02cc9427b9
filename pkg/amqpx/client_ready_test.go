package amqpx

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// A call leaves only after the connection counts as ready: a caller that gets its response and
// then closes the client needs the connection to delete the reply queue.
func TestCallWaitsUntilTheConnectionCountsAsReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
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
		wantSame(t, "responses while the connection comes up", len(call), 0)
		close(connecting)
		wantResponse(t, <-call, "x")
		wantSame(t, "state", c.Status().State, StateReady)
	})
}
