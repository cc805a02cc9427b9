package contender

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// pair measures the shipped programs, rpc-client and rpc-server, with their default settings
// except for those in settings. A process of the contender starts a program and waits for the
// program's end.
type pair struct {
	settings []string // NAME=value, of both programs
	text     string   // describes the settings

	cpu atomic.Int64 // processor time of the programs that have ended, in nanoseconds
	pid atomic.Int64 // process ID of the running program; 0: none runs
}

func (p *pair) Settings() string {
	return "the shipped rpc-server and rpc-client, each turn a client of its own, with default settings" + p.text +
		"; calls/s and latencies are those of the client's report, and its processor time includes its start and its report"
}

// Used implements meter.
func (p *pair) Used() (ended time.Duration, running int) {
	return time.Duration(p.cpu.Load()), int(p.pid.Load())
}

// keptVariables are the variables of this process that the programs get too. All others are
// left out, so that the settings are the defaults.
var keptVariables = []string{"PATH", "HOME", "TMPDIR", "GOMAXPROCS", "GOGC", "GOMEMLIMIT", "GODEBUG"} //nolint:gochecknoglobals // a constant list.

// command returns the command for a program of env's directory.
func (p *pair) command(ctx context.Context, env Environment, program string, settings ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(env.Programs, program)) //nolint:gosec // the user of this tool named the directory, or it was built just now.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = EndTimeout
	for _, name := range keptVariables {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Env = append(cmd.Env, "AMQP_URL="+env.URL, "RPC_QUEUE="+env.Queue, "HTTP_ADDR=127.0.0.1:0", "LOG_FORMAT=json")
	cmd.Env = slices.Concat(cmd.Env, p.settings, settings)
	return cmd
}

// start starts a program, whose usage counts from now on.
func (p *pair) start(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	p.pid.Store(int64(cmd.Process.Pid))
	return nil
}

// wait waits for the end of a program.
func (p *pair) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	p.pid.Store(0)
	if s := cmd.ProcessState; s != nil {
		p.cpu.Add(int64(s.UserTime() + s.SystemTime()))
	}
	return err
}

// Serve implements native.
func (p *pair) Serve(ctx context.Context, env Environment, _ *Handler, ready func(string)) error {
	settings := []string{}
	if env.Workers > 0 {
		settings = append(settings, fmt.Sprintf("RPC_WORKERS=%d", env.Workers))
	}
	if env.Sleep > 0 {
		return errors.New("the functions of rpc-server do not sleep")
	}
	cmd := p.command(ctx, env, "rpc-server", settings...)
	log, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := p.start(cmd); err != nil {
		return err
	}
	last := readLog(log, func() { ready("") })
	err = p.wait(cmd)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the requested end.
	}
	return errors.Join(err, fmt.Errorf("rpc-server ended early: %s", last))
}

// readLog reads the log of a program to its end, calls ready at the first line that says that
// the program is ready, and returns the last line.
func readLog(log io.Reader, ready func()) (last string) {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if last = lines.Text(); ready != nil && strings.Contains(last, `"msg":"ready"`) {
			ready()
			ready = nil
		}
	}
	_, _ = io.Copy(io.Discard, log) // after a line that is too long
	return last
}
