//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rabbitmq-rpc/test/internal/rig"
)

const (
	requestQueue = "rpc_queue"
	mostBytes    = 30_000_000 // of an image
)

func TestMakeUp(t *testing.T) {
	s := newStack(t)
	out := s.must("make", "up")
	t.Log(lastLines(out, 4))

	r := s.readReport()
	if r.Calls != 1000 || r.OK != 1000 || r.Lost != 0 || r.Mismatched != 0 || len(r.Errors) != 0 {
		t.Errorf("report: %+v, want 1000 calls and all of them ok", r)
	}
	last := lastLines(out, 3)
	for _, want := range []string{"http://" + s.management + " (guest/guest)", "make down"} {
		if !strings.Contains(last, want) {
			t.Errorf("the last lines do not say %q:\n%s", want, last)
		}
	}
	page, found := strings.CutPrefix(lastLines(out, 1), "report:")
	if page = strings.TrimSpace(page); !found || page != filepath.Join(s.report, "report.html") {
		t.Errorf("the last line names no page:\n%s", last)
	}
	if html, err := os.ReadFile(page); err != nil || !strings.Contains(string(html), "</html>") {
		t.Errorf("%s is no page: %v", page, err)
	}
	rig.Eventually(t, "one server consumes the queue", func() bool { return s.consumers() == 1 })

	s.must("make", "up") // again, beside what runs
	s.badSettings()
	s.otherVersion()
	if s.containers {
		t.Run("images", s.images)
		t.Run("scale", s.scale)
	} else {
		t.Run("drain", s.drain)
	}
}

// badSettings checks the early end of make up after wrong settings, with the variables' names
// on the screen and without the report of an earlier run.
func (s *stack) badSettings() {
	s.t.Helper()
	for _, settings := range [][]string{{"RPC_CALLS=none"}, {"RPC_QUEUE_TYPE=quorm", "RPC_PREFETCH=-1"}} { // of the client, of the server
		begun := time.Now()
		out, err := s.output(s.t.Context(), "make", slices.Concat([]string{"up"}, settings)...)
		for _, setting := range settings {
			variable, _, _ := strings.Cut(setting, "=")
			if err == nil || !strings.Contains(out, variable) || strings.Contains(out, "\nreport:") {
				s.t.Errorf("make up %s: %v, and its last lines are:\n%s", settings, err, lastLines(out, 4))
			}
		}
		s.t.Logf("make up %s ended after %v", settings, time.Since(begun).Round(time.Second))
	}
	if left, err := filepath.Glob(filepath.Join(s.report, "report.*")); err != nil || len(left) > 0 {
		s.t.Errorf("after it there is the report of an earlier run: %q (%v)", left, err)
	}
}

// otherVersion requests a RabbitMQ version other than the version of the existing broker and
// its data.
func (s *stack) otherVersion() {
	s.t.Helper()
	out, err := s.output(s.t.Context(), "make", "up", "RABBITMQ_VERSION=4", "RABBITMQ_IMAGE=rabbitmq:4-management")
	if err == nil || !strings.Contains(out, "the broker that is there, and its data, are of") {
		s.t.Errorf("make up with another version: %v, and its last lines are:\n%s", err, lastLines(out, 4))
	}
}

// images checks the size of the images and their unprivileged user.
func (s *stack) images(t *testing.T) {
	for _, image := range []string{"rabbitmq-rpc/server:latest", "rabbitmq-rpc/client:latest"} {
		var size int
		var user string
		fields := strings.Fields(s.must("docker", "image", "inspect", "-f", "{{.Size}} {{.Config.User}}", image))
		if len(fields) == 2 {
			size, user = atoi(t, fields[0]), fields[1]
		}
		if size == 0 || size > mostBytes {
			t.Errorf("%s has %d bytes, want at most %d", image, size, mostBytes)
		}
		if user != "65532:65532" {
			t.Errorf("%s runs as %q, want 65532:65532", image, user)
		}
		t.Logf("%s: %d bytes, user %s", image, size, user)
	}
}

// scale runs three servers and stops one of them during many calls: the server drains and
// exits with 0, and no call is lost.
func (s *stack) scale(t *testing.T) {
	s.compose("up -d --no-build --scale rpc-server=3 rpc-server")
	rig.Eventually(t, "three servers consume the queue", func() bool { return s.consumers() == 3 })
	s.fleet(t, 3)

	client := exec.CommandContext(t.Context(), "bash", "-c",
		". deploy/lib.sh; load_env; compose run --no-deps --rm -T -e RPC_CALLS=20000 -e RPC_CONCURRENCY=8 rpc-client")
	client.Dir, client.Env = s.root, s.env
	stdout, err := client.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	lines := follow(stdout)
	waitFor(t, lines, `"percent":20`)

	server := strings.Fields(s.compose("ps -q rpc-server"))[0]
	s.must("docker", "stop", server)
	waitFor(t, lines, `"client finished"`)
	for range lines { // the remaining lines must be read, but are not checked
	}
	if err := client.Wait(); err != nil {
		t.Errorf("the client, while one of three servers stopped: %v", err)
	}
	state := strings.TrimSpace(s.must("docker", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", server))
	if state != "exited 0" {
		t.Errorf("the stopped server is %q, want exited 0", state)
	}
}

// fleet lists the servers with the documented command, which starts and stops no server, and returns
// the list.
func (s *stack) fleet(t *testing.T, want int) (out string) {
	t.Helper()
	before := s.compose("ps -q rpc-server")
	for _, doc := range []string{"README.md", "docs/operations.md"} {
		content, err := os.ReadFile(filepath.Join(s.root, doc))
		if err != nil {
			t.Fatal(err)
		}
		command := regexp.MustCompile(`(?m)^\$ docker compose (run .*RPC_MODE=fleet.*)$`).FindSubmatch(content)
		if command == nil {
			t.Fatalf("%s does not say how to list the servers", doc)
		}
		out = s.compose(string(command[1]))
		if listed := serversListed(out); listed != want {
			t.Errorf("%s: %d servers are listed, want %d:\n%s", command[1], listed, want, out)
		}
	}
	if after := s.compose("ps -q rpc-server"); after != before {
		t.Errorf("servers before and after they were listed:\n%s\n%s", before, after)
	}
	return out
}

// serversListed counts the servers in the output of RPC_MODE=fleet, whose other lines tell the nodes
// of queues and connections.
func serversListed(out string) int {
	listed := 0
	for line := range strings.Lines(out) {
		if cells := strings.Fields(line); len(cells) > 2 && cells[0] != "connection" && cells[1] == "rpc-server" {
			listed++
		}
	}
	return listed
}

// drain stops a second server with SIGTERM, because without an engine the exit code of the
// first is not available.
func (s *stack) drain(t *testing.T) {
	server := exec.CommandContext(t.Context(), filepath.Join(s.run, "pair", "bin", "rpc-server"))
	server.Env = slices.Concat(s.env, []string{"AMQP_URL=amqp://guest:guest@" + s.amqp + "/", "HTTP_ADDR=127.0.0.1:0"})
	stderr, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	lines := follow(stderr)
	waitFor(t, lines, `"msg":"ready"`)
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, lines, `"msg":"server stopped"`)
	for range lines { // the remaining lines must be read, but are not checked
	}
	if err := server.Wait(); err != nil {
		t.Errorf("server after SIGTERM: %v, want exit code 0", err)
	}
}
