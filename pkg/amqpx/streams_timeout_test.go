package amqpx

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestCallTimeoutBoundsAStream: the option holds for streams as for calls, at both sides.
func TestCallTimeoutBoundsAStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		r := startStreams(t, streamHandlers{"waits": func(ctx context.Context, _ *ServerStream) error {
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}})
		begun := time.Now()
		s, err := r.client.Open(context.Background(), "waits", CallTimeout(3*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); CodeOf(err) != CodeDeadlineExceeded || time.Since(begun) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		if err := <-ended; err == nil {
			t.Error("the handler's context has not ended")
		}
		if _, err := r.client.Open(context.Background(), "waits", CallTimeout(0)); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("a timeout of nothing: %v", err)
		}
	})
}
