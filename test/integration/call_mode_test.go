//go:build integration

package integration

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// TestCallMode makes single calls with the program, as people do on a command line: the response is
// the whole output, and an error is the last line, with the code and the outcome.
func TestCallMode(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Serve(rig.Methods{"b": letter})
	program := rig.Build(t, "rpc-client")
	for _, c := range []struct {
		settings []string
		output   string
		exit     int
		last     []string // parts of the last line of the log
	}{
		{nil, "b", 0, nil},
		{[]string{"RPC_METHOD=unknown"}, "", 1, []string{"rpc-client: unimplemented:", "(did not run)"}},
		{[]string{"RPC_QUEUE=" + r.Queue.Name + ".missing"}, "", 1, []string{"rpc-client: unavailable:", "(did not run)"}},
	} {
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Env = append(os.Environ(), append([]string{"AMQP_URL=" + r.URL, "RPC_QUEUE=" + r.Queue.Name, "RPC_MODE=call", "LOG_LEVEL=error"}, c.settings...)...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() != c.exit || err == nil && c.exit != 0 {
			t.Errorf("%q: %v, want the exit code %d", c.settings, err, c.exit)
		}
		if stdout.String() != c.output {
			t.Errorf("%q: output %q, want %q", c.settings, stdout.String(), c.output)
		}
		for _, part := range c.last {
			if !strings.Contains(stderr.String(), part) {
				t.Errorf("%q: %q is not in %q", c.settings, part, stderr.String())
			}
		}
	}
}
