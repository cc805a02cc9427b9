//go:build e2e

package e2e

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/internal/placement"
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

// clusterServers is the number of servers of TestMakeUpCluster.
const clusterServers = 4

// upCluster starts a cluster of that version of RabbitMQ, and checks the report of its client and the
// list of its servers.
func (s *stack) upCluster(version string) {
	t := s.t
	t.Helper()
	if s.containers {
		t.Log(lastLines(s.compose("version"), 4))
	}
	t.Log(lastLines(s.must("make", "up-cluster", "SERVERS="+strconv.Itoa(clusterServers), "RABBITMQ_VERSION="+version), 30))
	r := s.readReport()
	if r.Calls != 1000 || r.OK != 1000 {
		t.Errorf("report: %+v, want 1000 calls and all of them ok", r)
	}
	if r.Placement == nil || !strings.Contains(r.Node, "@") {
		t.Fatalf("the report does not know the nodes: %q, %+v", r.Node, r.Placement)
	}
	s.checkPlacement(r.Placement)
	rig.Eventually(t, "every server consumes the queue", func() bool { return s.consumers() == clusterServers })
	s.checkClusterFleet(r.Placement)
}

// checkPlacement checks that a report tells the nodes of the request queue, of the client's reply
// queue, and of the connections of client and servers, and that the report page shows all of them.
func (s *stack) checkPlacement(p *placement.Placement) {
	t := s.t
	t.Helper()
	i := slices.IndexFunc(p.Queues, func(q placement.Queue) bool { return q.Name == requestQueue })
	if i < 0 || p.Queues[i].Type != "quorum" || len(p.Queues[i].Online) != 3 {
		t.Fatalf("the report knows no request queue with three members: %+v", p.Queues)
	}
	nodes := p.Queues[i].Online
	found := map[string]int{"reply queue": 0, "rpc-client": 0, "rpc-server": 0}
	note := func(what, on string) {
		if found[what]++; !slices.Contains(nodes, on) {
			t.Errorf("%s is on %q, want one of %q", what, on, nodes)
		}
	}
	note("the request queue", p.Queues[i].Node)
	for _, q := range p.Queues {
		if strings.HasPrefix(q.Name, requestQueue+".reply.") {
			note("reply queue", q.Node)
		}
	}
	for _, c := range p.Connections {
		program, _, _ := strings.Cut(c.Name, " ")
		note(program, c.Node)
	}
	for what, n := range found {
		if n == 0 {
			t.Errorf("the report does not know the node of any %s: %+v", what, p)
		}
	}
	page := string(read(t, filepath.Join(s.report, "report.html")))
	for _, line := range p.Lines() {
		if !strings.Contains(page, `<th scope="row">`+line.Name+"</th><td>"+line.Where+"</td>") {
			t.Errorf("the report page does not show %q, %q", line.Name, line.Where)
		}
	}
}

// checkClusterFleet lists the servers of the cluster, and checks that the list names the leader of the
// request queue that the report knows.
func (s *stack) checkClusterFleet(p *placement.Placement) {
	t := s.t
	t.Helper()
	var out string
	if s.containers {
		overlay := *s
		overlay.env = append(slices.Clone(s.env), "COMPOSE_FILE=docker-compose.yml:compose/cluster.yml")
		out = overlay.fleet(t, clusterServers)
	} else {
		out = s.must("bash", "-c", `. deploy/lib.sh; eval "$("$DEPLOY/cluster.sh" env pair)"
			export AMQP_URL=$AMQPX_TEST_CLUSTER_URLS RPC_MANAGEMENT_URL=$AMQPX_TEST_CLUSTER_MANAGEMENT_URLS
			RPC_MODE=fleet HTTP_ADDR=127.0.0.1:0 "$RUN/pair/bin/rpc-client"`)
		if listed := serversListed(out); listed != clusterServers {
			t.Errorf("%d servers are listed, want %d", listed, clusterServers)
		}
	}
	t.Log(out)
	lines := p.Lines()
	i := slices.IndexFunc(lines, func(l placement.Line) bool { return l.Name == "queue "+requestQueue })
	want := lines[i].Name + " " + lines[i].Where // quorum, leader NODE, 3 of 3 members online
	for line := range strings.Lines(out) {
		if strings.Join(strings.Fields(line), " ") == want {
			return
		}
	}
	t.Errorf("the list of the servers does not say %q", want)
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
