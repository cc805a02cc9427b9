//go:build integration

package integration

import (
	"sync"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestHundredClientsLeaveNothing: a hundred clients leave no queue behind. TestMain checks for
// goroutines after the last test.
func TestHundredClientsLeaveNothing(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"b": letter})
	var all sync.WaitGroup
	places := make(chan struct{}, 8)
	for i := range 100 {
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			mode := amqpx.ReplyQueue
			if i%4 == 0 {
				mode = amqpx.ReplyDirect
			}
			client, err := amqpx.NewClient(r.URL, amqpx.WithQueue(r.Queue), amqpx.WithReplyMode(mode))
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			if i%2 == 0 {
				if _, err := client.Call(rig.Patience(t), "b", nil); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
			} else if err := client.WaitReady(rig.Patience(t)); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
			if err := client.Close(rig.Patience(t)); err != nil {
				t.Errorf("close client %d: %v", i, err)
			}
		})
	}
	all.Wait()
	if left := rig.Manage(t).Queues(r.URL, r.Queue.Name+".reply."); len(left) != 0 {
		t.Errorf("reply queues are left: %v", left)
	}
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

// TestClientsClosedAtOnce: clients closed during their first connection attempt end, too.
func TestClientsClosedAtOnce(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	for range 20 {
		client, err := amqpx.NewClient(r.URL, amqpx.WithQueue(r.Queue))
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Close(rig.Patience(t)); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if left := rig.Manage(t).Queues(r.URL, r.Queue.Name+".reply."); len(left) != 0 {
		t.Errorf("reply queues are left: %v", left)
	}
}
