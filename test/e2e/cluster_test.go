//go:build e2e

package e2e

import (
	"os/exec"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// TestMakeUpCluster starts a cluster with four servers, is refused an upgrade that RabbitMQ cannot
// do, and restarts all nodes under load without a failed call.
func TestMakeUpCluster(t *testing.T) {
	s := newStack(t)
	t.Log(lastLines(s.must("make", "up-cluster", "SERVERS=4"), 30))
	r := s.readReport()
	if r.Calls != 1000 || r.OK != 1000 {
		t.Errorf("report: %+v, want 1000 calls and all of them ok", r)
	}
	if r.Placement == nil || !strings.Contains(r.Node, "@") {
		t.Fatalf("the report does not know the nodes: %q, %+v", r.Node, r.Placement)
	}
	for _, q := range r.Placement.Queues {
		if q.Name == requestQueue && (q.Type != "quorum" || len(q.Online) != 3 || q.Node == "") {
			t.Errorf("the request queue is %+v", q)
		}
	}
	rig.Eventually(t, "four servers consume the queue", func() bool { return s.consumers(requestQueue) == 4 })

	if out, err := s.output(t.Context(), "make", "up"); err == nil || !strings.Contains(out, "a cluster is there") {
		t.Errorf("make up beside a cluster: %v\n%s", err, lastLines(out, 3))
	}
	if out, err := s.output(t.Context(), "make", "roll-cluster", "RABBITMQ_VERSION=4"); err == nil || !strings.Contains(out, "no node was touched") {
		t.Errorf("an upgrade from RabbitMQ 3.10 to 4: %v\n%s", err, lastLines(out, 3))
	}

	load := exec.CommandContext(t.Context(), "make", "up-cluster", "SERVERS=4", "RPC_CALLS=1000000", "RPC_DURATION=4m", "RPC_RATE=50")
	load.Dir, load.Env = s.root, s.env
	stderr, err := load.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	lines := follow(stderr)
	waitFor(t, lines, `"percent":5`)
	rolled := make(chan error, 1)
	go func() {
		out, err := s.output(t.Context(), "make", "roll-cluster")
		t.Log(lastLines(out, 8))
		rolled <- err
	}()
	for range lines { // until the end of the load
	}
	if err := load.Wait(); err != nil {
		t.Errorf("the load over a rolling restart: %v", err)
	}
	if err := <-rolled; err != nil {
		t.Errorf("make roll-cluster: %v", err)
	}
	after := s.readReport()
	t.Logf("over a rolling restart: %d of %d calls ok, %d reconnects", after.OK, after.Calls, after.Reconnects)
	if after.OK != after.Calls || after.Calls < 5000 {
		t.Errorf("%d of %d calls were ok", after.OK, after.Calls)
	}
}
