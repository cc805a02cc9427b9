//go:build integration

// Package interop tests both sides of the wire against programs that are not ours:
// Python ones, in the shape that docs/protocol.md calls the core.
package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// python is Debian's, which has the package python3-pika.
const python = "/usr/bin/python3"

func TestMain(m *testing.M) { rig.Main(m) }

// script starts one of our Python programs.
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

// answered stops a Python server and returns how many requests it answered.
func answered(t *testing.T, p *rig.Program) int {
	t.Helper()
	p.Terminate()
	if err := p.Wait(); err != nil {
		t.Errorf("the Python server ended with %v", err)
	}
	for {
		if n, err := strconv.Atoi(p.Says("")); err == nil {
			return n
		}
	}
}

// callFromPython makes calls with the Python client and checks the answers.
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
		t.Errorf("the Python client's answer: %v", err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the Python client ended with %v", err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the Python client got %v, want %v", got, want)
	}
}

// letter answers what the server of this project answers: its own name.
func letter(_ context.Context, req *amqpx.Request) ([]byte, error) { return []byte(req.Method), nil }

// letters are the functions of the server of this project.
func letters() rig.Methods { return rig.Methods{"a": letter, "b": letter} }

// transient returns a rig whose queue is as a Python server declares it.
func transient(t *testing.T) *rig.Rig {
	t.Helper()
	r := rig.New(t)
	r.Queue.Durable = false
	return r
}
