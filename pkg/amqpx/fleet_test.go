package amqpx

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Whoever answers without end, in the name of servers that are not there, keeps nobody.
func TestFleetEndsThoughAnswersGoOn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		id   func(i int) string
		took time.Duration
		more int // than the one server that is there
	}{
		"of one":        {func(int) string { return "made up" }, fleetQuiet, 1},
		"of ever other": {func(i int) string { return fmt.Sprint(i) }, DefaultTimeout, 300},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startControlled(t, handlers{"m": echo})
				over := make(chan struct{})
				defer close(over)
				go r.answerAll(over, c.id)
				begun := time.Now()
				fleet, err := r.client.Fleet(t.Context())
				if took := time.Since(begun); took < c.took || took > c.took+time.Second/2 {
					t.Errorf("took %v, want about %v", took, c.took)
				}
				if n := len(fleet) - 1; n < c.more*9/10 || n > c.more*11/10 {
					t.Errorf("%d made up servers, want about %d", n, c.more)
				}
				wantSame(t, "error", err, nil)
			})
		})
	}
}

// answerAll answers whoever asks the servers, ten times a second.
func (r *rig) answerAll(over <-chan struct{}, id func(i int) string) {
	tick := time.NewTicker(time.Second / 10)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-over:
			return
		case <-tick.C:
		}
		r.broker.with(func(b *fakeBroker) {
			for name, q := range b.queues {
				if strings.HasPrefix(name, "amq.gen-") {
					msg := amqp.Publishing{CorrelationId: controlStats, Body: fmt.Appendf(nil, `{"id":%q}`, id(i))}
					q.messages = append(q.messages, &fakeMessage{msg: msg})
					b.dispatch(q)
				}
			}
		})
	}
}
