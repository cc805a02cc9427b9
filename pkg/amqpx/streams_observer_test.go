package amqpx

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// streamNotes are observerNotes with the ends of streams.
type streamNotes struct{ observerNotes }

func (o *streamNotes) StreamEnded(method string, code Code, took time.Duration, p Progress) {
	o.note("stream %s %s %v %d/%d/%d", method, code, took, p.Sent, p.Taken, p.Received)
}

func TestObserversAreToldOfStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var client, server streamNotes
		var plain observerNotes // is not told
		b := brokertest.New()
		s := startStreamServer(t, b, streamHandlers{
			"count": countStream,
			"slow": func(ctx context.Context, s *ServerStream) error {
				if err := s.Send(nil); err != nil {
					return err
				}
				<-ctx.Done()
				return ctx.Err()
			},
			"fails": func(context.Context, *ServerStream) error {
				pass(time.Second)
				return Errorf(CodeNotFound, "no")
			},
		}, WithServerObserver(&plain), WithServerObserver(&server), WithMiddleware(func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				if req.Header["forbidden"] != nil {
					return nil, Refuse(CodePermissionDenied, "no")
				}
				return next(ctx, req)
			}
		}))
		ready(t, s.WaitReady)
		c := startClient(t, b, WithClientObserver(&plain), WithClientObserver(&client))
		ready(t, c.WaitReady)
		told := func(name, ofClient, ofServer string) {
			t.Helper()
			t.Log(name)
			settle()
			client.want(t, ofClient)
			server.want(t, ofServer)
		}
		ctx := within(t, time.Hour)

		_, err := collect(t, c, ctx, "count", "3")
		wantSame(t, "error", err, nil)
		told("a whole stream", "stream count  0s 1/1/3", "stream count  0s 3/0/1")

		_, err = collect(t, c, ctx, "fails", "")
		wantSame(t, "code", CodeOf(err), CodeNotFound)
		told("a failed one", "stream fails not_found 1s 1/0/0", "stream fails not_found 1s 0/0/0")

		x, _ := c.Open(ctx, "slow")
		_, _ = x.Recv()
		pass(time.Minute)
		x.Close()
		told("a canceled one", "stream slow canceled 1m0s 0/0/1", "stream slow canceled 1m0s 1/1/0")

		_, _ = collect(t, c, ctx, "made up by the client", "")
		told("a refused one", "stream made up by the client unimplemented 0s 1/0/0", `refused "" unimplemented`)

		_, _ = collect(t, c, ctx, "count", "3", WithHeader(map[string]any{"forbidden": "yes"}))
		told("one that middleware refused", "stream count permission_denied 0s 1/0/0", `refused "count" permission_denied`)

		x, _ = c.Open(ctx, "slow")
		_, _ = x.Recv()
		settle() // the opening is acknowledged
		cutLinks(b, "server")
		pass(time.Minute)
		_, err = x.Recv()
		wantSame(t, "code", CodeOf(err), CodeUnavailable)
		client.mu.Lock()
		wantSame(t, "ends at the client", len(client.notes), 1)
		client.mu.Unlock()
		server.want(t, "stream slow unavailable 0s 1/0/0")

		unused, _ := c.Open(ctx, "slow")
		client.notes = nil
		unused.Close()
		settle()
		client.want(t)
		plain.want(t, `refused "" unimplemented`, `refused "count" permission_denied`)
	})
}

func TestObserverOfStreamsMayPanic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		s := startStreamServer(t, b, streamHandlers{"count": countStream}, WithServerObserver(panickingObserver{}))
		ready(t, s.WaitReady)
		c := startClient(t, b, WithClientObserver(panickingObserver{}))
		for range 2 {
			n, err := collect(t, c, within(t, time.Minute), "count", "3")
			wantSame(t, "stream", fmt.Sprint(n, err), "3 <nil>")
			settle()
		}
		wantSame(t, "open", [2]int64{c.Stats().Streams.Open, s.Stats().Streams.Open}, [2]int64{})
	})
}

// panickingObserver panics at the end of a stream.
type panickingObserver struct{ *observerNotes }

func (panickingObserver) StreamEnded(string, Code, time.Duration, Progress) { panic("observer") }
