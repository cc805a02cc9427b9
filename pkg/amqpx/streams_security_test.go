package amqpx

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// The authorization rules, and the reply prefixes, hold for streams.
func TestAuthorizationOfStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rules, err := NewAuthorizationRules(map[string][]string{"open": {"app"}, "closed": {"someone"}})
		if err != nil {
			t.Fatal(err)
		}
		ran := false
		handler := func(_ context.Context, s *ServerStream) error {
			ran = true
			return s.Send([]byte(s.Request().User))
		}
		b := brokertest.New()
		server := startStreamServer(t, b, streamHandlers{"open": handler, "closed": handler},
			WithMiddleware(Authorize(func() *AuthorizationRules { return rules }, nil)), WithReplyPrefix("{queue}.reply.{user}."))
		ready(t, server.WaitReady)
		client := startClient(t, b)
		_, err = collect(t, client, within(t, time.Minute), "closed", "")
		wantFailed(t, err, CodePermissionDenied, DidNotRun)
		wantSame(t, "ran", ran, false)
		for item, err := range client.Stream(within(t, time.Minute), "open", nil) {
			wantSame(t, "error", err, nil)
			wantSame(t, "user", string(item), "app")
		}
		anonymous := startClient(t, b, WithUserID(false))
		_, err = collect(t, anonymous, within(t, time.Second), "open", "")
		wantSame(t, "code", CodeOf(err), CodeDeadlineExceeded) // the reply prefix has refused it
		wantSame(t, "reply refused", server.Stats().ReplyRefused, 1)
	})
}

// Openings that no client of this package sends are dropped, and harm nobody.
func TestForgedOpenings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"echo": echoStream, "count": countStream})
		queue := DefaultQueue + ".streams"
		good := (&wire.Frame{Stream: 1, Open: true, Timeout: wire.NoBudget}).AppendTo(nil)
		for _, msg := range []amqp.Publishing{
			{ContentType: wire.ContentTypeFrames, ReplyTo: "nowhere", AppId: "echo", Body: []byte("noise")},
			{ContentType: wire.ContentTypeFrames, ReplyTo: "nowhere", AppId: "echo"},
			{ContentType: wire.ContentTypeFrames, AppId: "echo", Body: good},
			{ContentType: wire.ContentTypeFrames, ReplyTo: DefaultQueue, AppId: "echo", Body: good},
			{ContentType: wire.ContentTypeFrames, ReplyTo: queue, AppId: "echo", Body: good},
			{ContentType: wire.ContentTypeFrames, ReplyTo: wire.DirectReplyTo + ".x.y", AppId: "echo", Body: good},
			{ReplyTo: "nowhere", AppId: "echo", Body: good},
			{ContentType: wire.ContentTypeFrames, ReplyTo: "gone", AppId: "echo", Body: good}, // the client is gone
		} {
			r.broker.PutIn(queue, msg)
		}
		settle()
		wantSame(t, "unacknowledged", r.broker.Unacked(queue), 0)
		wantSame(t, "open", r.server.Stats().Streams.Open, 0)
		wantSame(t, "requests", r.server.Stats().Requests, 0)
		n, err := collect(t, r.client, within(t, time.Minute), "count", "3")
		wantSame(t, "items", n, 3)
		wantSame(t, "error", err, nil)
	})
}
