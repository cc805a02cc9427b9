//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"net/url"
	"sync"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

func TestThousandCallsOneByOne(t *testing.T) {
	t.Parallel()
	const calls = 1000
	r := rig.New(t)
	server := r.Serve(rig.Methods{"b": letter})
	client := r.Ready()
	for i := range calls {
		if got := rig.Call(t, client, "b", []byte("request")); string(got) != "b" {
			t.Fatalf("call %d: got %q, want %q", i, got, "b")
		}
	}
	if got, want := client.Stats(), (amqpx.ClientStats{OK: calls}); got != want {
		t.Errorf("client counted %+v, want %+v", got, want)
	}
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if got, want := server.Stats(), (amqpx.ServerStats{Requests: calls, DefaultExchange: calls, OK: calls, Workers: amqpx.DefaultWorkers}); got != want {
		t.Errorf("server counted %+v, want %+v", got, want)
	}
	if left := r.Inspect().Messages; left != 0 {
		t.Errorf("%d requests were not acknowledged", left)
	}
}

func TestManyCallersAtOnce(t *testing.T) {
	t.Parallel()
	persistent := amqpx.WithPersistent(true)
	for _, c := range []struct {
		name   string
		queue  amqpx.QueueType
		client []amqpx.ClientOption
		server []amqpx.ServerOption
	}{
		{name: "reply queue"},
		{name: "direct reply-to", client: []amqpx.ClientOption{amqpx.WithReplyMode(amqpx.ReplyDirect)}},
		{name: "persistent", client: []amqpx.ClientOption{persistent}, server: []amqpx.ServerOption{persistent}},
		{name: "quorum queue", queue: amqpx.QueueQuorum},
		{name: "one worker", server: []amqpx.ServerOption{amqpx.WithWorkers(1)}},
		{name: "no more in flight than callers", client: []amqpx.ClientOption{amqpx.WithMaxInFlight(64)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Queue.Type = c.queue
			server := r.Serve(rig.Methods{"echo": echo}, c.server...)
			client := r.Ready(c.client...)
			const callers, each = 64, 30
			everyResponseIsMine(t, client, callers, each)
			got := client.Stats()
			if want := (amqpx.ClientStats{OK: callers * each, Batched: got.Batched}); got != want {
				t.Errorf("client counted %+v, want %+v", got, want)
			}
			if err := server.Drain(); err != nil {
				t.Errorf("drain: %v", err)
			}
			if left := r.Inspect().Messages; left != 0 {
				t.Errorf("%d requests were not acknowledged", left)
			}
		})
	}
}

// everyResponseIsMine makes calls from many concurrent callers and checks each response against
// its call.
func everyResponseIsMine(t testing.TB, client *amqpx.Client, callers, each int) {
	t.Helper()
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for i := range each {
				want := fmt.Appendf(nil, "call %d of caller %d", i, caller)
				got, err := client.Call(rig.Patience(t), "echo", want)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("got %q, %v, want %q", got, err, want)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestOneOfSeveralBrokersIsDead(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Serve(rig.Methods{"b": letter})
	dead := rig.Rewrite(t, r.URL, func(u *url.URL) { u.Host = deadAddress })
	// The order is shuffled for each attempt: eight clients hardly ever all try the living
	// broker first.
	const clients = 8
	for range clients {
		client := r.ClientAt(dead + ", " + r.URL)
		rig.Connected(t, client)
		if got := rig.Call(t, client, "b", nil); string(got) != "b" {
			t.Errorf("got %q, want %q", got, "b")
		}
		if g := client.Status().Generation; g != 1 {
			t.Errorf("link number %d, want the first", g)
		}
	}
}

// deadAddress is an address without a listener; the system never assigns its port.
const deadAddress = "127.0.0.1:1"
