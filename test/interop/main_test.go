//go:build integration

// Package interop tests both sides of the protocol against foreign programs: Python programs
// that implement the core of docs/protocol.md.
package interop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// python is Debian's interpreter, for the package python3-pika.
const python = "/usr/bin/python3"

func TestMain(m *testing.M) { rig.Main(m) }

// script starts a Python program of this project.
func script(t *testing.T, name string, args ...string) *rig.Program {
	t.Helper()
	return rig.Run(t, []string{"PYTHONUNBUFFERED=1"}, python, append([]string{filepath.Join("testdata", name)}, args...)...)
}

// pythonServer starts a Python server on the rig's queue.
func pythonServer(t *testing.T, r *rig.Rig) *rig.Program {
	t.Helper()
	p := script(t, "server.py", r.URL, r.Queue.Name)
	p.Says("ready")
	return p
}

// terminated is the exit code of a Java program after SIGTERM.
const terminated = 128 + int(syscall.SIGTERM)

// answered stops a server in another language and returns the number of requests it answered.
func answered(t *testing.T, p *rig.Program) int {
	t.Helper()
	p.Terminate()
	err := p.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != terminated) {
		t.Errorf("the server ended with %v", err)
	}
	for {
		if n, err := strconv.Atoi(p.Says("")); err == nil {
			return n
		}
	}
}

// callFromPython makes calls with the Python client and checks the responses.
func callFromPython(t *testing.T, r *rig.Rig, plan map[string]int) {
	t.Helper()
	args := []string{r.URL, r.Queue.Name}
	want := map[string]map[string]int{}
	for method, calls := range plan {
		args = append(args, fmt.Sprintf("%s=%d", method, calls))
		want[method] = map[string]int{method: calls}
	}
	p := script(t, "client.py", args...)
	var got map[string]map[string]int
	if err := json.Unmarshal([]byte(p.Says("{")), &got); err != nil {
		t.Errorf("the Python client's response: %v", err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the Python client ended with %v", err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the Python client got %v, want %v", got, want)
	}
}

// letter responds like this project's server: with the method's name.
func letter(_ context.Context, req *amqpx.Request) ([]byte, error) { return []byte(req.Method), nil }

// letters returns the methods of this project's server.
func letters() rig.Methods { return rig.Methods{"a": letter, "b": letter} }

// transient returns a rig with a queue as declared by a Python server.
func transient(t *testing.T) *rig.Rig {
	t.Helper()
	r := rig.New(t)
	r.Queue.Transient = true
	return r
}
