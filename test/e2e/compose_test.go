//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
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
	s.useComposeV2()
	s.buildImages()
	s.badSettingsWithoutMake("docker", "compose")
	if _, err := exec.LookPath("docker-compose"); err == nil {
		s.badSettingsWithoutMake("docker-compose")
	}
	if out, err := s.composeV2("up", "-d", "--no-build", "--wait", "rabbitmq", "rpc-server"); err != nil {
		t.Errorf("up -d --wait: %v\n%s", err, out)
	}
	out, err := s.composeV2("up", "--no-build", "--exit-code-from", "rpc-client")
	if err != nil || !strings.Contains(out, "every call was answered as expected") {
		t.Errorf("up --exit-code-from: %v\n%s", err, out)
	}
	s.threeReports()
}

// neverHealthy is a Compose file with a broker that starts and never becomes healthy.
const neverHealthy = `
services:
  rabbitmq:
    command: [sleep, infinity]
    healthcheck: {test: [CMD, "false"], start_period: 1h}
    stop_grace_period: 1s
`

// badSettingsWithoutMake checks that Compose ends after wrong settings without waiting for the
// broker. Compose v1 shows the log of no container until all of them have started, so it shows the
// variable only with the command check.
func (s *stack) badSettingsWithoutMake(compose ...string) {
	t := s.t
	t.Helper()
	broker := filepath.Join(t.TempDir(), "never-healthy.yml")
	if err := os.WriteFile(broker, []byte(neverHealthy), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		all := slices.Concat(compose, []string{"--env-file", s.envFile(), "-f", "docker-compose.yml", "-f", broker}, args)
		begun := time.Now()
		out, err := s.outputWith(ctx, "RPC_QUEUE_TYPE=quorm", all[0], all[1:]...)
		if err == nil || ctx.Err() != nil {
			t.Errorf("%s %s with a bad setting: %v, %v\n%s", compose, args, err, ctx.Err(), out)
		}
		t.Logf("%s %s with a bad setting ended after %v", compose, args, time.Since(begun).Round(time.Second))
		return out
	}
	const fault = `RPC_QUEUE_TYPE: "quorm" is not one of: classic, quorum`
	if out := run("up", "--no-build"); len(compose) > 1 && !strings.Contains(out, fault) {
		t.Errorf("up does not name the variable:\n%s", out)
	}
	if out := run("run", "--rm", "--no-deps", "-T", "rpc-server", "check"); !strings.Contains(out, fault) {
		t.Errorf("check does not name the variable:\n%s", out)
	}
	s.must(compose[0], slices.Concat(compose[1:], []string{"--env-file", s.envFile(), "-f", "docker-compose.yml", "-f", broker, "down", "-v"})...)
}

// threeReports runs three clients concurrently and checks that each writes a separate report.
func (s *stack) threeReports() {
	t := s.t
	t.Helper()
	if out, err := s.composeV2("up", "-d", "--no-build", "--scale", "rpc-client=3"); err != nil {
		t.Fatalf("up -d: %v\n%s", err, out)
	}
	ids, err := s.composeV2("ps", "-a", "-q", "rpc-client")
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
	rig.Eventually(t, "the server still serves", func() bool { return s.consumers() == 1 })
}
