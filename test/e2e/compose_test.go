//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/test/internal/rig"
)

// TestCompose runs the Compose file without make, like users and CI jobs, with Compose v2,
// which is built if missing. TestMakeUp uses the installed version.
func TestCompose(t *testing.T) {
	s := newStack(t)
	if !s.containers {
		t.Log("no Docker engine answers: there is no Compose")
		return
	}
	s.env = append(s.env, "DOCKER_CONFIG="+lastLines(s.must("deploy/compose-v2.sh"), 1))
	s.must("bash", "-c", `. deploy/lib.sh; load_env; export GOPROXY=${GOPROXY:-$(go env GOPROXY)}
		. deploy/up-engine.sh; choose_images; remember_images; compose build`)
	run := func(args ...string) (string, error) {
		return s.output(t.Context(), "docker", slices.Concat([]string{"compose", "--env-file", s.envFile()}, args)...)
	}
	begun := time.Now()
	out, err := s.outputWith(t.Context(), "RPC_QUEUE_TYPE=quorm", "docker", "compose", "--env-file", s.envFile(), "up", "--no-build")
	if err == nil || !strings.Contains(out, "RPC_QUEUE_TYPE") {
		t.Errorf("up with a bad setting: %v\n%s", err, out)
	}
	t.Logf("up with a bad setting ended after %v", time.Since(begun).Round(time.Second))
	if out, err := run("up", "-d", "--no-build", "--wait", "rabbitmq", "rpc-server"); err != nil {
		t.Errorf("up -d --wait: %v\n%s", err, out)
	}
	out, err = run("up", "--no-build", "--exit-code-from", "rpc-client")
	if err != nil || !strings.Contains(out, "every call was answered as expected") {
		t.Errorf("up --exit-code-from: %v\n%s", err, out)
	}
	s.threeReports(run)
}

// threeReports runs three clients concurrently and checks that each writes a separate report.
func (s *stack) threeReports(run func(args ...string) (string, error)) {
	t := s.t
	t.Helper()
	if out, err := run("up", "-d", "--no-build", "--scale", "rpc-client=3"); err != nil {
		t.Fatalf("up -d: %v\n%s", err, out)
	}
	ids, err := run("ps", "-a", "-q", "rpc-client")
	clients := strings.Fields(ids)
	if err != nil || len(clients) != 3 {
		t.Fatalf("clients %q (%v)", ids, err)
	}
	reports := 0
	for _, client := range clients {
		if code := strings.TrimSpace(s.must("docker", "wait", client)); code != "0" {
			t.Errorf("a client ended with %s", code)
		}
		dir := t.TempDir()
		s.must("docker", "cp", client+":/report/"+client[:12], dir)
		if _, err := os.Stat(filepath.Join(dir, client[:12], "report.json")); err == nil {
			reports++
		}
	}
	if reports != len(clients) {
		t.Errorf("%d reports of %d clients", reports, len(clients))
	}
	rig.Eventually(t, "the server still serves", func() bool { return s.consumers(requestQueue) == 1 })
}
