//go:build e2e

package e2e

import (
	"cmp"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/test/internal/rig"
)

// TestMakeUpCluster starts a cluster with four servers, whose report names the nodes: one of
// RabbitMQ 3 with the installed Compose, v1.29 or v2, and one of RabbitMQ 4 with Compose v2. The first
// cluster is refused an upgrade that RabbitMQ cannot do.
func TestMakeUpCluster(t *testing.T) {
	t.Run("RabbitMQ 3, installed Compose", func(t *testing.T) {
		s := newStack(t)
		s.upCluster("3")
		if out, err := s.output(t.Context(), "make", "up"); err == nil || !strings.Contains(out, "a cluster is there") {
			t.Errorf("make up beside a cluster: %v\n%s", err, lastLines(out, 3))
		}
		if out, err := s.output(t.Context(), "make", "roll-cluster", "RABBITMQ_VERSION=4"); err == nil || !strings.Contains(out, "no node was touched") {
			t.Errorf("an upgrade from RabbitMQ 3.10 to 4: %v\n%s", err, lastLines(out, 3))
		}
	})
	t.Run("RabbitMQ 4, Compose v2", func(t *testing.T) {
		s := newStack(t)
		if s.containers {
			s.useComposeV2()
		}
		s.upCluster("4")
	})
}

// upCluster starts a cluster of that version of RabbitMQ, and checks the report of its client.
func (s *stack) upCluster(version string) {
	t := s.t
	t.Helper()
	if s.containers {
		t.Log(lastLines(s.compose("version"), 4))
	}
	t.Log(lastLines(s.must("make", "up-cluster", "SERVERS=4", "RABBITMQ_VERSION="+version), 30))
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
	rig.Eventually(t, "four servers consume the queue", func() bool { return s.consumers() == 4 })
}

// TestRollCluster restarts all nodes of a cluster under load, on the RabbitMQ of BROKER: make
// e2e-cluster. No call fails, and none waits longer than maxGap: calls start on a schedule, so a
// longer time without responses would be the latency of a call.
func TestRollCluster(t *testing.T) {
	const maxGap = 2 * time.Second
	s := newStack(t)
	version := "RABBITMQ_VERSION=" + cmp.Or(os.Getenv("BROKER"), "3")
	s.must("make", "up-cluster", "SERVERS=4", version)
	if out, err := s.output(t.Context(), "make", "upgrade-check", version); err != nil {
		t.Errorf("make upgrade-check of the same version: %v\n%s", err, lastLines(out, 6))
	}

	load := exec.CommandContext(t.Context(), "make", "up-cluster", "SERVERS=4", version, "RPC_CALLS=1000000", "RPC_DURATION=6m", "RPC_RATE=50")
	load.Dir, load.Env = s.root, s.env
	stderr, err := load.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	lines := follow(stderr)
	waitFor(t, lines, `"percent":1`)
	rolled := make(chan error, 1)
	go func() {
		begun := time.Now()
		out, err := s.output(t.Context(), "make", "roll-cluster", version)
		t.Logf("make roll-cluster took %v:\n%s", time.Since(begun).Round(time.Second), lastLines(out, 12))
		rolled <- err
	}()
	for range lines { // until the end of the load
	}
	if err := load.Wait(); err != nil {
		t.Errorf("the load over a rolling restart: %v", err)
	}
	select {
	case err := <-rolled:
		if err != nil {
			t.Errorf("make roll-cluster: %v", err)
		}
	default:
		t.Errorf("make roll-cluster took longer than the load: %v", <-rolled)
	}
	r := s.readReport()
	longest := time.Duration(r.LatencyMS.Max * float64(time.Millisecond)).Round(time.Millisecond)
	t.Logf("over a rolling restart: %d of %d calls ok, %d reconnects, longest call %v", r.OK, r.Calls, r.Reconnects, longest)
	if r.OK != r.Calls || r.Calls < 5000 {
		t.Errorf("%d of %d calls were ok", r.OK, r.Calls)
	}
	if longest > maxGap {
		t.Errorf("a call took %v, want at most %v", longest, maxGap)
	}
}
