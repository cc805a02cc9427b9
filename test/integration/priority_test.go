//go:build integration

package integration

import (
	"strconv"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestUrgentCallInTheQueue: in a queue with priorities a call overtakes the calls that wait in the
// broker, in another queue it does not.
func TestUrgentCallInTheQueue(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		queue     amqpx.Queue
		overtakes bool
	}{
		"classic":                 {amqpx.Queue{Type: amqpx.QueueClassic}, false},
		"classic with priorities": {amqpx.Queue{Type: amqpx.QueueClassic, MaxPriority: 5}, true},
		"quorum":                  {amqpx.Queue{Type: amqpx.QueueQuorum}, rig.Major() != "3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			c.queue.Name = r.Queue.Name
			r.Queue = c.queue
			busy := hold()
			r.Serve(rig.Methods{"run": busy.handle}, amqpx.WithWorkers(1), amqpx.WithPrefetch(1), amqpx.WithBatch(amqpx.BatchOff))
			client := r.Ready(amqpx.WithBatch(amqpx.BatchOff))
			calls := []<-chan outcome{begin(rig.Patience(t), client, "run", []byte("first"))}
			rig.Recv(t, busy.entered, "the worker to be busy")
			for i := range 5 {
				calls = append(calls, begin(rig.Patience(t), client, "run", []byte(strconv.Itoa(i))))
			}
			rig.Eventually(t, "the calls wait in the queue", func() bool { return r.Inspect().Messages == 5 })
			calls = append(calls, begin(rig.Patience(t), client, "run", []byte("urgent"), amqpx.WithPriority(5)))
			rig.Eventually(t, "the urgent call waits too", func() bool { return r.Inspect().Messages == 6 })
			close(busy.release)
			place := 0
			for i := range 6 {
				req := rig.Recv(t, busy.entered, "a call")
				if string(req.Body) == "urgent" {
					place = i
				}
				if want := map[bool]uint8{true: 5}[string(req.Body) == "urgent"]; req.Priority != want {
					t.Errorf("call %q has priority %d, want %d", req.Body, req.Priority, want)
				}
			}
			// A quorum queue delivers every third message from those without a priority.
			if got := place <= 1; got != c.overtakes || !got && place != 5 {
				t.Errorf("%d of five calls ran before the urgent one", place)
			}
			for _, call := range calls {
				if got := rig.Recv(t, call, "the response"); got.err != nil {
					t.Error(got.err)
				}
			}
		})
	}
}

// TestUrgentCallInTheServer: a call overtakes the calls that wait in the server, in batches or alone,
// whatever the queue is.
func TestUrgentCallInTheServer(t *testing.T) {
	t.Parallel()
	for _, mode := range []amqpx.BatchMode{amqpx.BatchAuto, amqpx.BatchOff} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			busy := hold()
			server := r.Serve(rig.Methods{"run": busy.handle}, amqpx.WithWorkers(1), amqpx.WithPrefetch(500))
			client := r.Ready(amqpx.WithBatch(mode))
			const others = 300
			var calls []<-chan outcome
			for range others {
				calls = append(calls, begin(rig.Patience(t), client, "run", nil))
			}
			rig.Recv(t, busy.entered, "the worker to be busy")
			rig.Eventually(t, "all others wait in the server", func() bool { return server.Stats().Waiting == others-1 })
			calls = append(calls, begin(rig.Patience(t), client, "run", []byte("urgent"), amqpx.WithPriority(1)))
			rig.Eventually(t, "the urgent call waits too", func() bool { return server.Stats().Waiting == others })
			close(busy.release)
			if next := rig.Recv(t, busy.entered, "the next call"); string(next.Body) != "urgent" {
				t.Errorf("the next call is %q", next.Body)
			}
			for _, call := range calls {
				if got := rig.Recv(t, call, "the response"); got.err != nil {
					t.Error(got.err)
				}
			}
		})
	}
}

// TestPriorityOfAnotherProgram: the priority of any program's request counts, and a draining server
// returns the request to the queue with its priority.
func TestPriorityOfAnotherProgram(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	busy := hold()
	server := r.Serve(rig.Methods{"run": busy.handle}, amqpx.WithWorkers(1), amqpx.WithPrefetch(10))
	inbox := r.Inbox()
	send := func(id string, priority uint8) {
		r.Request(amqp.Publishing{AppId: "run", CorrelationId: id, ReplyTo: inbox.Name, Priority: priority, Body: []byte(id)})
	}
	send("first", 0)
	rig.Recv(t, busy.entered, "the worker to be busy")
	send("plain", 0)
	send("urgent", 3)
	rig.Eventually(t, "both wait in the server", func() bool { return server.Stats().Waiting == 2 })
	busy.release <- struct{}{}
	if next := rig.Recv(t, busy.entered, "the next request"); string(next.Body) != "urgent" || next.Priority != 3 {
		t.Errorf("the next request is %q, with priority %d", next.Body, next.Priority)
	}
	send("later", 7)
	rig.Eventually(t, "two wait again", func() bool { return server.Stats().Waiting == 2 })
	server.Stop()
	rig.Eventually(t, "the server drains", func() bool { return server.Status().State == amqpx.StateDraining })
	close(busy.release)
	if err := server.Wait(); err != nil {
		t.Error(err)
	}
	returned, err := r.Raw().Consume(r.Queue.Name, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint8{}
	for range 2 {
		d := rig.Recv(t, returned, "a request that was not started")
		got[string(d.Body)] = d.Priority
	}
	if got["plain"] != 0 || got["later"] != 7 || len(got) != 2 {
		t.Errorf("the queue has requests with priorities %v", got)
	}
}
