package amqpx

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// TestShutdownWaitsForStreams: a client that shuts down opens no stream any more, and waits for those
// that are open.
func TestShutdownWaitsForStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"echo": echoStream})
		open := func() *ClientStream {
			s, err := r.client.Open(within(t, time.Minute), "echo")
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s, idle := open(), open()
		if err := s.Send([]byte("1")); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- r.client.Shutdown(context.Background()) }()
		synctest.Wait()
		if _, err := r.client.Open(within(t, time.Minute), "echo"); !errors.Is(err, ErrClosed) || OutcomeOf(err) != DidNotRun {
			t.Errorf("a stream after Shutdown: %v", err)
		}
		idle.Close()
		if item, err := s.Recv(); err != nil || string(item) != "1" {
			t.Errorf("item %q, %v", item, err)
		}
		if err := s.Send([]byte("2")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("Shutdown returned %v before the stream had ended", err)
		default:
		}
		_ = s.CloseSend()
		if err := <-done; err != nil {
			t.Error(err)
		}
		// What arrived before the end can be taken later, too.
		if item, err := s.Recv(); err != nil || string(item) != "2" {
			t.Errorf("item %q, %v", item, err)
		}
		if _, err := s.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("the end: %v", err)
		}
	})
}
