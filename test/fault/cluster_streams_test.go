//go:build fault

package fault

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestClusterStreamsWait kills the only node of the queue of openings: streams that wait for a server
// wait for the node. At most the first fails, whose opening the broker nacks.
func TestClusterStreamsWait(t *testing.T) {
	nodes := rig.TheCluster(t)
	near, home := nodes[0], nodes[2]
	r := rig.On(t, home.URL)
	server, err := amqpx.NewServer(home.URL, amqpx.WithQueue(r.Queue), amqpx.WithBackoff(10*time.Millisecond, 300*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	err = server.HandleStream("echo", func(_ context.Context, s *amqpx.ServerStream) error {
		item, err := s.Recv()
		if err != nil {
			return err
		}
		return s.Send(item)
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }() // ends with the cleanup
	t.Cleanup(func() {
		stop()
		server.Close()
		if err := <-served; err != nil {
			t.Log("the server:", err)
		}
	})
	if err := server.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	client := r.ClientAt(near.URL)
	rig.Connected(t, client)
	stream := func(opts ...amqpx.CallOption) (err error) {
		for _, failed := range client.Stream(rig.Patience(t), "echo", []byte("x"), opts...) {
			err = errors.Join(err, failed)
		}
		return err
	}
	if err := stream(); err != nil {
		t.Fatal(err)
	}
	home.Do("kill")
	t.Cleanup(func() { home.Do("start") })
	begin := func(opts ...amqpx.CallOption) <-chan error {
		ended := make(chan error, 1)
		go func() { ended <- stream(opts...) }() // ends with the stream
		return ended
	}
	failed := 0
	note := func(err error) {
		t.Helper()
		t.Logf("a stream that waits ended in: %v", err)
		if failed++; !errors.Is(err, amqpx.ErrQueueUnavailable) {
			t.Errorf("a stream that waits ended in %v", err)
		}
	}
	first := begin(amqpx.WaitForServer())
	select {
	case err := <-first:
		note(err)
		first = nil
	case <-time.After(2 * time.Second):
	}
	const streams = 20
	var waiting []<-chan error
	if first != nil {
		waiting = append(waiting, first)
	}
	for range streams {
		waiting = append(waiting, begin(amqpx.WaitForServer()))
	}
	err = rig.Recv(t, begin(), "a stream that does not wait")
	t.Logf("a stream that does not wait ended in: %v", err)
	if !errors.Is(err, amqpx.ErrUnroutable) && !errors.Is(err, amqpx.ErrQueueUnavailable) {
		t.Errorf("a stream that does not wait ended in %v", err)
	}
	<-time.After(away)
	waiting = slices.DeleteFunc(waiting, func(ended <-chan error) bool {
		select {
		case err := <-ended:
			note(err)
			return true
		default:
			return false
		}
	})
	if failed > 1 {
		t.Errorf("%d streams that wait have failed", failed)
	}
	back := time.Now()
	home.Do("start")
	for _, ended := range waiting {
		if err := rig.Recv(t, ended, "a stream that waits"); err != nil {
			t.Errorf("a stream that waits ended in %v", err)
		}
	}
	t.Logf("all streams had their items %v after the start of the node", time.Since(back))
}
