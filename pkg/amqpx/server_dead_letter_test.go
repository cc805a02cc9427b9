package amqpx

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// A dead letter that kills servers again after it was moved back is dead-lettered again, after as
// many deliveries as before, whoever moves it back, and also with servers that do not know users.
func TestDeadLetterThatKillsAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, user string // the user_id of the message that is moved back
		opts       []ServerOption
	}{
		{"without a user", "", nil},
		{"with another user", "b", nil},
		{"with the servers' user", "app", nil},
		{"to servers that do not know users", "", []ServerOption{WithUserID(false)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var kills atomic.Int64
				b := brokertest.New()
				supervised(t, b, func(kill func()) handlers { return handlers{"m": killing(&kills, kill)} },
					append(c.opts, WithDeliveryLimit(DefaultDeliveryLimit))...)
				dead := func() *brokertest.Queue { return b.Queues[DefaultQueue+deadSuffix] }
				putRequest(b, amqp.Publishing{AppId: "m", CorrelationId: "1"})
				for round := int64(1); round <= 3; round++ {
					for b.Ready(DefaultQueue+deadSuffix) == 0 && kills.Load() < 10*DefaultDeliveryLimit {
						pass(time.Second)
					}
					wantSame(t, "killed servers", kills.Load(), round*DefaultDeliveryLimit)
					b.With(func(b *brokertest.Broker) {
						letters := dead().Messages
						wantSame(t, "dead letters", len(letters), 1)
						wantSame(t, "deliveries", letters[0].Msg.Headers[wire.HeaderDeliveries], any(int64(DefaultDeliveryLimit)))
						letters[0].Msg.UserId = c.user
						b.Queues[DefaultQueue].Messages, dead().Messages = letters, nil
						b.Dispatch(b.Queues[DefaultQueue])
					})
				}
			})
		})
	}
}

// A draining server passes a dead letter that was moved back on as it is: its deliveries are counted
// anew by the next server.
func TestDeadLetterThatADrainingServerPassesOn(t *testing.T) {
	t.Parallel()
	for _, user := range []string{"", "app"} {
		d := amqp.Delivery{AppId: "m", CorrelationId: "1", UserId: user, Headers: amqp.Table{
			wire.HeaderDeliveries: int64(DefaultDeliveryLimit), wire.HeaderUser: "a", wire.HeaderDeadTime: time.Unix(1, 0),
		}}
		s, own := &Server{cfg: &serverConfig{config: config{userID: true}}}, "app"
		s.user.name.Store(&own)
		caller := s.callerOf(&d)
		msg, err := clonePublishing(&inboundRequest{delivery: &delivery{arrived: time.Now(), message: d}, in: decoded(&d)})
		if err != nil {
			t.Fatal(err)
		}
		s.sign(&msg, caller, false)
		next := amqp.Delivery{UserId: msg.UserId, Headers: msg.Headers}
		wantSame(t, "counted anew, user "+user, s.trustsCount(&next), false)
		wantSame(t, "caller, user "+user, s.callerOf(&next), caller)
	}
}
