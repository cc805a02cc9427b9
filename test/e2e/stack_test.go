//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/internal/placement"
	"rabbitmq-rpc/test/internal/rig"
)

// stack is one run of make up.
type stack struct {
	t          *testing.T
	root       string
	env        []string
	project    string
	run        string // state of the running stack
	report     string // folder of report.json
	amqp       string // host:port
	amqps      string // host:port, with the overlay tls
	management string // host:port
	containers bool
}

// newStack prepares a run; nothing of the run may remain after the test.
func newStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{
		t: t, root: rig.Root(t), project: fmt.Sprintf("rpc-e2e-%d", os.Getpid()),
		run: filepath.Join(t.TempDir(), "run"), report: filepath.Join(t.TempDir(), "report"),
		amqp: rig.FreeAddress(t, "127.0.0.1"), amqps: rig.FreeAddress(t, "127.0.0.1"), management: rig.FreeAddress(t, "127.0.0.1"),
	}
	s.env = append(
		os.Environ(),
		"COMPOSE_PROJECT_NAME="+s.project, "AMQP_PORT="+port(s.amqp), "AMQPS_PORT="+port(s.amqps), "MANAGEMENT_PORT="+port(s.management),
		"RPC_RUN_DIR="+s.run, "REPORT_DIR="+s.report, "ENV_FILE="+filepath.Join(t.TempDir(), "env"),
	)
	_, err := s.output(t.Context(), "docker", "version")
	s.containers = err == nil
	if s.containers {
		t.Log("a Docker engine answers: the pair runs in containers")
	} else {
		t.Log("no Docker engine answers: the pair runs as plain processes")
	}
	t.Cleanup(s.down)
	return s
}

func port(addr string) string {
	_, p, _ := strings.Cut(addr, ":")
	return p
}

// output runs a program in the repository's root with the stack's settings.
func (s *stack) output(ctx context.Context, name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.root, s.env, &out, &out
	err := cmd.Run()
	return out.String(), err
}

// outputWith is output with a further variable.
func (s *stack) outputWith(ctx context.Context, variable, name string, args ...string) (string, error) {
	with := *s
	with.env = append(slices.Clone(s.env), variable)
	return with.output(ctx, name, args...)
}

// envFile returns the path of the stack's .env file, and creates the file if needed.
func (s *stack) envFile() string {
	s.t.Helper()
	for _, v := range slices.Backward(s.env) {
		if file, found := strings.CutPrefix(v, "ENV_FILE="); found {
			if _, err := os.Stat(file); err != nil {
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					s.t.Fatal(err)
				}
			}
			return file
		}
	}
	s.t.Fatal("no ENV_FILE")
	return ""
}

// must is output of a program that must succeed.
func (s *stack) must(name string, args ...string) string {
	s.t.Helper()
	out, err := s.output(s.t.Context(), name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// compose runs Compose v2 or v1, like the scripts.
func (s *stack) compose(args string) string {
	s.t.Helper()
	return s.must("bash", "-c", ". deploy/lib.sh; load_env; compose "+args)
}

// useComposeV2 makes "docker compose" Compose v2, which is built if it is missing.
func (s *stack) useComposeV2() {
	s.t.Helper()
	s.env = append(s.env, "DOCKER_CONFIG="+lastLines(s.must("deploy/compose-v2.sh"), 1))
}

// composeV2 runs "docker compose" as users do, without the scripts.
func (s *stack) composeV2(args ...string) (string, error) {
	s.t.Helper()
	return s.output(s.t.Context(), "docker", slices.Concat([]string{"compose", "--env-file", s.envFile()}, args)...)
}

// down runs make down and checks that nothing remains.
func (s *stack) down() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 2*time.Minute)
	defer cancel()
	if out, err := s.output(ctx, "make", "down"); err != nil {
		s.t.Errorf("make down: %v\n%s", err, out)
	}
	for _, addr := range []string{s.amqp, s.amqps, s.management} {
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr); err == nil {
			_ = conn.Close()
			s.t.Errorf("something still listens on %s", addr)
		}
	}
	if _, err := os.Stat(s.run); !os.IsNotExist(err) {
		s.t.Errorf("%s is still there (%v)", s.run, err)
	}
	if out, err := s.output(ctx, "pgrep", "-af", s.run); err == nil {
		s.t.Errorf("processes are left: %s", out)
	}
	if !s.containers {
		return
	}
	label := "label=com.docker.compose.project=" + s.project
	for _, list := range [][]string{{"ps", "-aq"}, {"volume", "ls", "-q"}, {"network", "ls", "-q"}} {
		if out, err := s.output(ctx, "docker", append(list, "--filter", label)...); err != nil || out != "" {
			s.t.Errorf("docker %s: left behind %q (%v)", list, out, err)
		}
	}
}

// result is the checked part of report.json.
type result struct {
	Calls, OK, Lost, Mismatched int64
	Errors                      map[string]int64
	Reconnects                  int64
	LatencyMS                   struct{ Max float64 } `json:"latency_ms"`
	Node                        string
	Placement                   *placement.Placement
}

func (s *stack) readReport() result {
	s.t.Helper()
	content, err := os.ReadFile(filepath.Join(s.report, "report.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(content, &r); err != nil {
		s.t.Fatalf("report.json: %v\n%s", err, content)
	}
	return r
}

// consumers asks the management API, as guest, for the number of the request queue's consumers.
func (s *stack) consumers() int {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet,
		"http://"+s.management+"/api/queues/%2F/"+requestQueue, http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	req.SetBasicAuth("guest", "guest")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatalf("management API: %v", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("management API: %s", resp.Status)
	}
	var queueInfo struct{ Consumers int }
	if err := json.NewDecoder(resp.Body).Decode(&queueInfo); err != nil {
		s.t.Fatalf("management API: %v", err)
	}
	return queueInfo.Consumers
}
