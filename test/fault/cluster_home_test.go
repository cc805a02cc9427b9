//go:build fault

package fault

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestClusterReturnHome restarts every node of a cluster in turn under load: the processes that
// lost their nodes return to them at different moments, and no idempotent call fails. Once all
// nodes are back, no call fails at all.
func TestClusterReturnHome(t *testing.T) {
	const clients, after = 6, 10 * time.Second
	nodes := rig.TheCluster(t)
	var urls []string
	for _, n := range nodes {
		urls = append(urls, n.URL)
	}
	r := rig.Beyond(t, strings.Join(urls, ","))
	r.Queue.Type = amqpx.QueueQuorum
	slow := func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		<-time.After(20 * time.Millisecond)
		return req.Body, nil
	}
	status := make(map[string]func() amqpx.Status)
	for _, name := range []string{"server 1", "server 2", "server 3"} {
		status[name] = r.Start(rig.Methods{"b": slow}, amqpx.WithReturnHome(after)).Status
	}
	var failed, again, calls atomic.Int64
	var restarted atomic.Bool
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	for i := range clients {
		client := r.Ready(amqpx.WithReturnHome(after), amqpx.WithCallOptions(amqpx.WaitForServer()))
		status["client "+string(rune('1'+i))] = client.Status
		load.Go(func() {
			pace := time.NewTicker(50 * time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				<-pace.C
				// Calls that are not idempotent show that a return is no loss.
				var idempotent []amqpx.CallOption
				if late := restarted.Load(); !late {
					idempotent = []amqpx.CallOption{amqpx.Idempotent()}
				}
				calls.Add(1)
				if _, err := client.Call(context.WithoutCancel(ctx), "b", []byte("x"), idempotent...); err != nil {
					t.Log(err)
					if failed.Add(1); len(idempotent) == 0 {
						again.Add(1)
					}
				}
			}
		})
	}
	home := make(map[string]string)
	for name, of := range status {
		home[name] = of().Broker
		if node := of().Node; !strings.Contains(node, "@localhost") {
			t.Errorf("%s does not know the name of its node: %q", name, node)
		}
	}
	for _, n := range nodes {
		n.Do("restart")
	}
	restarted.Store(true)
	back := func() (n int) {
		for name, of := range status {
			if st := of(); st.Ready() && st.Broker == home[name] {
				n++
			}
		}
		return n
	}
	at := back()
	t.Logf("after the restarts %d of %d processes are at home", at, len(home))
	begun := time.Now()
	rig.Eventually(t, "every process is at home", func() bool {
		if n := back(); n != at {
			t.Logf("after %v: %d", time.Since(begun).Round(time.Second), n)
			at = n
		}
		return at == len(home)
	})
	stop()
	load.Wait()
	t.Logf("%d calls, %d failed, of these %d after the restarts", calls.Load(), failed.Load(), again.Load())
	if failed.Load() > 0 {
		t.Error("calls failed")
	}
}
