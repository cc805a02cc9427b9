//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// swarmPatience bounds each wait for the swarm on a busy machine.
const swarmPatience = 5 * time.Minute

// swarm is a stack on a swarm of one node.
type swarm struct {
	*stack

	secret string
}

// TestSwarm deploys the stack as docs/kubernetes.md tells, makes 1,000 calls, and then replaces
// every server, one by one, under a steady load: no call fails, and every old server drains.
func TestSwarm(t *testing.T) {
	s := newStack(t)
	if !s.containers {
		t.Log("no Docker engine answers: there is no swarm")
		return
	}
	s.buildImages()
	broker := lastLines(s.must("deploy/images.sh", "rabbitmq", "3"), 1)
	w := &swarm{stack: s, secret: s.project + "-broker-url"}
	s.env = append(s.env, "RABBITMQ_IMAGE="+broker, "BROKER_URL_SECRET="+w.secret, "RPC_TIMEOUT=5m") // the client waits for the broker
	w.begin()

	w.deploy()
	w.converge("rpc-server", "2/2")
	if got := w.clientFinished(w.follow("rpc-client")); got.Calls != 1000 || got.OK != got.Calls {
		t.Errorf("the client of the stack: %+v, want 1000 calls and all of them ok", got)
	}
	w.must("docker", "service", "rm", w.name("rpc-client"))

	before := w.containers("rpc-server", "status=running")
	load := w.load()
	waitFor(t, load, `"msg":"ready"`) // the first line of progress comes after a tenth of RPC_DURATION
	begun := time.Now()
	w.must("docker", "service", "update", "--detach=false", "--force", w.name("rpc-server"))
	took := time.Since(begun)
	w.converge("rpc-server", "2/2")
	for _, server := range before {
		state := strings.TrimSpace(w.must("docker", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", server))
		if state != "exited 0" {
			t.Errorf("a replaced server is %q, want exited 0", state)
		}
	}
	if after := w.containers("rpc-server", "status=running"); len(after) != len(before) || slices.Equal(after, before) {
		t.Errorf("the update replaced no server: %q before, %q after", before, after)
	}
	running := w.containers("load", "status=running")
	if len(running) != 1 {
		t.Fatalf("the load ended before the update: %q, %+v", running, w.clientFinished(load))
	}
	w.must("docker", "kill", "-s", "TERM", running[0])
	got := w.clientFinished(load)
	t.Logf("the update of %d servers took %v; %+v", len(before), took.Round(time.Second), got)
	if least := int64(took.Seconds()) * loadRate / 2; got.OK != got.Calls || got.Calls < least {
		t.Errorf("the client, while the servers were replaced: %+v, want at least %d calls and all of them ok", got, least)
	}
}

// loadRate is the calls per second during the update.
const loadRate = 50

// buildImages builds the images of the Compose file with the base images and the version of make up,
// so that the engine compiles them once for all tests.
func (s *stack) buildImages() {
	s.t.Helper()
	s.must("bash", "-c", `. deploy/lib.sh; load_env; export GOPROXY=${GOPROXY:-$(go env GOPROXY)}
		export VERSION=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
		. deploy/up-engine.sh; choose_images; remember_images; compose build`)
}

// begin makes a swarm of this engine, unless the engine is in one, and the stack's secret.
func (w *swarm) begin() {
	t := w.t
	t.Helper()
	if state := w.state("{{.Swarm.LocalNodeState}}"); state != "active" {
		bridged := w.must("docker", "network", "ls", "-q", "--filter", "name=docker_gwbridge") != ""
		w.must("docker", "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
		t.Cleanup(func() {
			w.cleanup("docker", "swarm", "leave", "--force")
			if !bridged {
				w.cleanup("docker", "network", "rm", "docker_gwbridge")
			}
		})
	}
	node := w.state("{{.Swarm.NodeID}}")
	w.must("docker", "node", "update", "--label-add", "rabbitmq=true", node)
	w.must("bash", "-c", "printf %s amqp://guest:guest@rabbitmq:5672 | docker secret create "+w.secret+" -")
	t.Cleanup(func() {
		w.cleanup("docker", "stack", "rm", w.project) // with the load, which has the stack's label
		label := "label=com.docker.stack.namespace=" + w.project
		w.waitUntil("the containers of the stack have ended", func() bool {
			out, err := w.afterwards("docker", "ps", "-q", "--filter", label)
			return err == nil && out == ""
		})
		w.cleanup("bash", "-c", "docker ps -aq --filter "+label+" | xargs -r docker rm -fv") // those of the jobs
		w.cleanup("docker", "secret", "rm", w.secret)
		w.cleanup("docker", "volume", "rm", w.name("rabbitmq"))
	})
}

func (w *swarm) state(format string) string {
	w.t.Helper()
	return strings.TrimSpace(w.must("docker", "info", "-f", format))
}

// afterwards is output that also runs after the end of the test's context.
func (w *swarm) afterwards(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), swarmPatience)
	defer cancel()
	return w.output(ctx, name, args...)
}

// cleanup runs a command that removes what the test has made.
func (w *swarm) cleanup(name string, args ...string) {
	w.t.Helper()
	if out, err := w.afterwards(name, args...); err != nil {
		w.t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func (w *swarm) name(service string) string { return w.project + "_" + service }

func (w *swarm) deploy() {
	w.t.Helper()
	w.must("docker", "stack", "deploy", "--resolve-image", "never", "-c", "deploy/swarm/stack.yml", w.project)
}

// converge waits until a service has the number of tasks that run, and are healthy.
func (w *swarm) converge(service, want string) {
	w.t.Helper()
	w.waitUntil(service+" has "+want+" tasks", func() bool {
		out, err := w.afterwards("docker", "service", "ls", "--filter", "name="+w.name(service), "--format", "{{.Replicas}}")
		return err == nil && strings.TrimSpace(out) == want
	})
}

// waitUntil polls the engine; when time is up, it shows the tasks with their errors.
func (w *swarm) waitUntil(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.NewTimer(swarmPatience)
	defer deadline.Stop()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			tasks, _ := w.afterwards("docker", "stack", "ps", "--no-trunc", w.project)
			w.t.Fatalf("waited %v until %s:\n%s", swarmPatience, what, tasks)
		}
	}
}

// containers lists the containers of a service.
func (w *swarm) containers(service, filter string) []string {
	w.t.Helper()
	ids := strings.Fields(w.must("docker", "ps", "-aq", "--no-trunc", "--filter", filter,
		"--filter", "label=com.docker.swarm.service.name="+w.name(service)))
	slices.Sort(ids)
	return ids
}

// load starts a client beside the stack that calls at a constant rate until a signal, and returns
// the lines of its log.
func (w *swarm) load() <-chan string {
	w.t.Helper()
	w.must("docker", "service", "create", "--detach", "--no-resolve-image", "--name", w.name("load"), "--mode", "replicated-job",
		"--restart-condition", "none", "--network", w.name("rpc"), "--secret", "source="+w.secret+",target=broker-url,uid=65532,mode=0400",
		"--env", "AMQP_URL_FILE=/run/secrets/broker-url", "--env", "RPC_DURATION=1h", "--env", "RPC_RATE="+strconv.Itoa(loadRate), "--env", "RPC_REPORT_DIR=",
		"--label", "com.docker.stack.namespace="+w.project, "--container-label", "com.docker.stack.namespace="+w.project,
		"--endpoint-mode", "dnsrr", "--read-only", "--cap-drop", "ALL", "rabbitmq-rpc/client:latest")
	return w.follow("load")
}

// follow returns the lines of the log of a job's first container, until the container ends.
func (w *swarm) follow(service string) <-chan string {
	w.t.Helper()
	var found []string
	w.waitUntil(service+" has started", func() bool {
		found = w.containers(service, "status=running")
		return len(found) > 0 || len(w.containers(service, "status=exited")) > 0
	})
	if len(found) == 0 {
		found = w.containers(service, "status=exited")
	}
	logs := exec.CommandContext(w.t.Context(), "docker", "logs", "-f", found[0])
	reader, writer, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	logs.Stdout, logs.Stderr = writer, writer
	if err := logs.Start(); err != nil {
		w.t.Fatal(err)
	}
	_ = writer.Close()   // the process has its own
	w.t.Cleanup(func() { // the test's context has ended the process
		_ = logs.Wait()
		_ = reader.Close()
	})
	return follow(reader)
}

// finished is the last line of a client.
type finished struct{ Calls, OK int64 }

// clientFinished reads the log of a client to its end.
func (w *swarm) clientFinished(lines <-chan string) finished {
	w.t.Helper()
	var last finished
	timer := time.NewTimer(swarmPatience)
	defer timer.Stop()
	for {
		select {
		case line, more := <-lines:
			if !more {
				return last
			}
			if strings.Contains(line, `"msg":"client finished"`) {
				if err := json.Unmarshal([]byte(line), &last); err != nil {
					w.t.Errorf("%v: %s", err, line)
				}
			}
		case <-timer.C:
			w.t.Fatalf("the client has not ended after %v", swarmPatience)
		}
	}
}
