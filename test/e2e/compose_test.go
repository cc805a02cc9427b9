//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/test/internal/rig"
)

// composes are the commands of Compose's two versions that this machine has; the second is
// built where it is missing.
func (s *stack) composes() map[string][]string {
	s.t.Helper()
	found := make(map[string][]string)
	if out, err := s.output(s.t.Context(), "docker-compose", "version", "--short"); err == nil {
		found[strings.TrimSpace(out)] = []string{"docker-compose"}
	}
	s.env = append(s.env, "DOCKER_CONFIG="+lastLines(s.must("deploy/compose-v2.sh"), 1))
	found[strings.TrimSpace(s.must("docker", "compose", "version", "--short"))] = []string{"docker", "compose"}
	return found
}

// TestCompose uses the Compose file as users and CI jobs do, without make.
func TestCompose(t *testing.T) {
	s := newStack(t)
	if !s.containers {
		t.Log("no Docker engine answers: there is no Compose")
		return
	}
	s.must("bash", "-c", `. deploy/lib.sh; load_env; export GOPROXY=${GOPROXY:-$(go env GOPROXY)}
		. deploy/up-engine.sh; choose_images; compose build`)
	for version, command := range s.composes() {
		t.Run(version, func(t *testing.T) { s.composeUp(t, version, command) })
	}
}

// composeUp has one version of Compose bring the pair up.
func (s *stack) composeUp(t *testing.T, version string, command []string) {
	t.Helper()
	command = append(command, "--env-file", s.envFile())
	run := func(args ...string) (string, error) {
		return s.outputWith(t.Context(), nil, command, args...)
	}
	t.Cleanup(func() {
		if out, err := run("down", "-v", "--remove-orphans"); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	begun := time.Now()
	out, err := s.outputWith(t.Context(), []string{"RPC_QUEUE_TYPE=quorm"}, command, "up", "--no-build")
	if took := time.Since(begun); err == nil {
		t.Errorf("up with a bad setting ended without an error after %v:\n%s", took, out)
	} else {
		t.Logf("up with a bad setting ended after %v; it names the variable: %v", took.Round(time.Second), strings.Contains(out, "RPC_QUEUE_TYPE"))
	}
	two := strings.HasPrefix(version, "2.")
	if two && !strings.Contains(out, "RPC_QUEUE_TYPE") { // version 1 shows no log before all have started
		t.Errorf("up does not name the variable:\n%s", out)
	}
	if two {
		if out, err := run("up", "-d", "--no-build", "--wait", "rabbitmq", "rpc-server"); err != nil {
			t.Errorf("up -d --wait: %v\n%s", err, out)
		}
	}
	if out, err := run("up", "--no-build", "--exit-code-from", "rpc-client"); err != nil || !strings.Contains(out, "every call was answered as expected") {
		t.Errorf("up --exit-code-from: %v\n%s", err, out)
	}
	s.threeReports(t, run)
}

// threeReports has three clients at once, each of which writes a report of its own.
func (s *stack) threeReports(t *testing.T, run func(args ...string) (string, error)) {
	t.Helper()
	if out, err := run("up", "-d", "--no-build", "--scale", "rpc-client=3"); err != nil {
		t.Fatalf("up -d: %v\n%s", err, out)
	}
	ids, err := run("ps", "-a", "-q", "rpc-client")
	if err != nil {
		ids, err = run("ps", "-q", "rpc-client") // of version 1, which lists all
	}
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
