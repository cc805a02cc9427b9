package rig

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Program is another process, started by a test. It is killed at the end of the test.
type Program struct {
	t     testing.TB
	cmd   *exec.Cmd
	lines chan string // of stdout and stderr

	done chan struct{}
	err  error // the process's result, valid after done is closed
}

// linesKept bounds the buffer of unread lines; further lines are dropped.
const linesKept = 1 << 16

// Run starts a program with variables added to its environment.
func Run(t testing.TB, env []string, name string, args ...string) *Program {
	t.Helper()
	reader, writer := io.Pipe()
	p := &Program{
		t:     t,
		cmd:   exec.CommandContext(context.WithoutCancel(t.Context()), name, args...),
		lines: make(chan string, linesKept),
		done:  make(chan struct{}),
	}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = writer, writer
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() { // ends with the program
		p.err = p.cmd.Wait()
		_ = writer.Close()
		close(p.done)
	}()
	go func() { // ends with the program's output
		defer close(p.lines)
		scanner := bufio.NewScanner(reader)
		for scanner.Scan() {
			t.Logf("%s: %s", filepath.Base(name), scanner.Text())
			select {
			case p.lines <- scanner.Text():
			default:
			}
		}
		_ = reader.Close()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		for range p.lines {
			// Wait until the reader has ended: it must not log after the test.
		}
	})
	return p
}

// Says waits for a line that contains text and returns it.
func (p *Program) Says(text string) string {
	p.t.Helper()
	timer := time.NewTimer(2 * patience)
	defer timer.Stop()
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("%s ended without saying %q", p.cmd.Path, text)
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-timer.C:
			p.t.Fatalf("waited %v for %s to say %q", 2*patience, p.cmd.Path, text)
		}
	}
}

// Running reports whether the program has not ended.
func (p *Program) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Terminate asks the program to end.
func (p *Program) Terminate() {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
}

// Signal sends the program a signal.
func (p *Program) Signal(signal os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %s: %v", p.cmd.Path, err)
	}
}

// Wait waits for the program's end and returns nil for exit code 0.
func (p *Program) Wait() error {
	p.t.Helper()
	timer := time.NewTimer(2 * patience)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.err
	case <-timer.C:
		p.t.Fatalf("%s does not end", p.cmd.Path)
		return nil
	}
}

// programs holds the programs compiled by Build and BuildExample.
//
//nolint:gochecknoglobals // tests that run at once share them.
var programs struct {
	sync.Mutex
	dir   string
	built map[string]bool
}

// Build compiles a service of the repository, once for all tests, and returns the program's
// path.
func Build(t testing.TB, service string) string {
	t.Helper()
	return build(t, service, "./services/"+service)
}

// BuildExample is Build for a program of the folder examples.
func BuildExample(t testing.TB, name string) string {
	t.Helper()
	return build(t, "example-"+name, "./examples/"+name)
}

func build(t testing.TB, name, folder string) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	if err := makeProgramsDir(); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(programs.dir, name)
	if programs.built[name] {
		return program
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, folder) // as make build does
	cmd.Dir = Root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", folder, err, out)
	}
	programs.built[name] = true
	return program
}

// makeProgramsDir creates the folder of the programs. Main removes the folder.
func makeProgramsDir() error {
	if programs.dir != "" {
		return nil
	}
	dir, err := os.MkdirTemp("", "services")
	if err != nil {
		return err
	}
	AtEnd(func(code int) int {
		_ = os.RemoveAll(dir)
		return code
	})
	programs.dir, programs.built = dir, map[string]bool{}
	return nil
}
