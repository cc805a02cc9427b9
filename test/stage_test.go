package test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// stage returns a command that runs a script as a stage of make test, in a process group of its own.
func stage(ctx context.Context, run, name, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "../deploy/stage.sh", name, "bash", "-c", script)
	cmd.Env = append(os.Environ(), "RPC_RUN_DIR="+run)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// failures returns the names of the stages that failed.
func failures(t *testing.T, run string) string {
	t.Helper()
	names, err := os.ReadFile(filepath.Join(run, "stages", "failed"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(names)
}

// TestStage: the output of a stage of make test appears at its end, under a heading with the result and
// the time; the result of a stage that failed also follows the output.
func TestStage(t *testing.T) {
	t.Parallel()
	run := t.TempDir()
	for _, c := range []struct {
		name, script, want, failed string
		code                       int
	}{
		{"good", "echo 1; echo 2 >&2", `^== good: started\n== good: passed in \d+ s\n1\n2\n$`, "", 0},
		{"bad", "echo 1; exit 3", `^== bad: started\n== bad: FAILED after \d+ s\n1\n== bad: FAILED after \d+ s; .* in \S+/bad\.log\n$`, "bad\n", 3},
	} {
		cmd := stage(t.Context(), run, c.name, c.script)
		out, err := cmd.CombinedOutput()
		if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != c.code || !regexp.MustCompile(c.want).Match(out) || failures(t, run) != c.failed {
			t.Errorf("%s: exit code %d, want %d; failed %q; it says\n%s", c.name, code, c.code, failures(t, run), out)
		}
	}
}

// TestInterruptedStage: a stage that is interrupted, with all its processes, shows its output so far.
func TestInterruptedStage(t *testing.T) {
	t.Parallel()
	run := t.TempDir()
	cmd := stage(t.Context(), run, "slow", "echo so far; exec sleep 60")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the stage has an output", func() bool {
		text, err := os.ReadFile(filepath.Join(run, "stages", "slow.log"))
		return err == nil && string(text) == "so far\n"
	})
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(out.String(), "FAILED after") || !strings.Contains(out.String(), "so far\n") {
		t.Errorf("%v, want exit code 130; it says\n%s", err, out.String())
	}
	if failed := failures(t, run); failed != "slow\n" {
		t.Errorf("failed: %q", failed)
	}
}

// TestEveryStageIsRun: make test runs these stages, and names them when all have passed.
func TestEveryStageIsRun(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "make", "-n", "-C", "..", "test")
	cmd.Env = append(os.Environ(), "MAKEFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"e2e", "lint", "unit", "module-short", "suite-3", "suite-4", "fault", "cluster-short"} {
		if n := strings.Count(string(out), "deploy/stage.sh "+name+" make "+name+"\n"); n != 1 {
			t.Errorf("make test runs %s %d times", name, n)
		}
	}
}
