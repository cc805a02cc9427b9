//go:build fault

package fault

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/fault/internal/report"
)

const (
	// restartPause is the supervisor's pause before the restart of a server.
	restartPause = 100 * time.Millisecond
	// patience bounds the wait for an expected event.
	patience = 2 * time.Minute
)

// process is one client or server. For a server it includes a supervisor that restarts the
// process after its death, like a container's restart policy.
type process struct {
	t    testing.TB
	name string
	args []string
	dir  string

	mu       sync.Mutex
	cmd      *exec.Cmd
	restarts bool
	ok       uint64          // calls answered
	batched  uint64          // calls sent in batches
	streams  uint64          // streams that came to their end without an error
	ready    int             // number of times the process became ready
	ends     int             // number of ends
	summary  *report.Summary // the last one received
	changed  chan struct{}   // closed and replaced at every change
	over     chan struct{}   // closed after the final end
	err      error           // of the last run, valid after over is closed
}

func startProcess(t testing.TB, dir string, restarts bool, mode, name string, args ...string) *process {
	t.Helper()
	p := &process{
		t: t, name: name, dir: dir, restarts: restarts,
		args:    append([]string{mode, "-name", name, "-ledger", filepath.Join(dir, name+ledger.Suffix)}, args...),
		changed: make(chan struct{}), over: make(chan struct{}),
	}
	go p.supervise() // ends with the process, which the cleanup kills
	p.until("starts", func() bool { return p.cmd != nil })
	t.Cleanup(func() {
		p.change(func() { p.restarts = false })
		p.signal(syscall.SIGKILL)
		<-p.over
	})
	return p
}

// change makes a change and wakes its waiters.
func (p *process) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

// until waits until ok returns true after a change.
func (p *process) until(what string, ok func() bool) {
	p.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		p.mu.Lock()
		done, changed := ok(), p.changed
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-p.over:
			p.t.Fatalf("%s ended before it %s: %v", p.name, what, p.err)
		case <-timer.C:
			p.t.Fatalf("waited %v until %s %s", patience, p.name, what)
		}
	}
}

// supervise runs the process, and restarts it if configured.
func (p *process) supervise() {
	defer close(p.over)
	for {
		p.err = p.live()
		again := false
		p.change(func() { p.ends++; again = p.restarts })
		if !again {
			return
		}
		<-time.After(restartPause)
	}
}

// live runs the program until it ends.
func (p *process) live() error {
	const private = 0o600
	log, err := os.OpenFile(filepath.Join(p.dir, p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, private)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	p.mu.Lock()
	args := p.args
	p.mu.Unlock()
	cmd := exec.Command(set.node, args...) //nolint:noctx // ended by the cleanup, after the test's context.
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.change(func() { p.cmd = cmd })
	p.hear(out)
	err = cmd.Wait()
	return errors.Join(err, p.recordDeath(cmd))
}

// recordDeath records the end of a server that a signal killed.
func (p *process) recordDeath(cmd *exec.Cmd) error {
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || p.args[0] != "server" {
		return nil
	}
	w, err := ledger.Open(filepath.Join(p.dir, "deaths"+ledger.Suffix), p.name)
	if err != nil {
		return err
	}
	return errors.Join(w.Write(ledger.Entry{Kind: ledger.Dead, At: time.Now(), PID: cmd.ProcessState.Pid()}), w.Close())
}

// hear reads the program's lines until its end.
func (p *process) hear(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		switch word, rest, _ := strings.Cut(lines.Text(), " "); word {
		case "ready":
			p.change(func() { p.ready++ })
		case "ok":
			var ok, batched, streams uint64
			if _, err := fmt.Sscan(rest, &ok, &batched, &streams); err == nil {
				p.change(func() { p.ok, p.batched, p.streams = ok, batched, streams })
			}
		case "summary":
			s := new(report.Summary)
			if err := json.Unmarshal([]byte(rest), s); err == nil {
				p.change(func() { p.summary = s })
			}
		default:
			p.t.Errorf("%s says %q", p.name, lines.Text())
		}
	}
}

// signal sends a signal to the running process, if any.
func (p *process) signal(s os.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s)
	}
}

// pid returns the process ID of the running process.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// untilReady waits until the process has become ready n times.
func (p *process) untilReady(n int) {
	p.t.Helper()
	p.until("becomes ready", func() bool { return p.ready >= n })
}

// untilServed waits for n more responses to a client.
func (p *process) untilServed(n uint64) {
	p.t.Helper()
	p.mu.Lock()
	goal := p.ok + n
	p.mu.Unlock()
	p.until("is served", func() bool { return p.ok >= goal })
}

// untilStreamed waits for n more whole streams of a client.
func (p *process) untilStreamed(n uint64) {
	p.t.Helper()
	p.mu.Lock()
	goal := p.streams + n
	p.mu.Unlock()
	p.until("has whole streams", func() bool { return p.streams >= goal })
}

// untilBatched waits until a client has sent n more calls in batches.
func (p *process) untilBatched(n uint64) {
	p.t.Helper()
	goal := p.inBatches() + n
	p.until("sends batches", func() bool { return p.batched >= goal })
}

// inBatches returns the number of calls sent in batches.
func (p *process) inBatches() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.batched
}

// becomes ends a server gracefully and restarts it with the given flags after its previous
// flags.
func (p *process) becomes(flags ...string) {
	p.t.Helper()
	p.change(func() { p.args = slices.Concat(p.args, flags) })
	p.dies(syscall.SIGTERM)
}

// dies sends the signals, waits for the end of the running process, and then for the restarted
// process to be ready, if the process restarts.
func (p *process) dies(signals ...os.Signal) {
	p.t.Helper()
	p.mu.Lock()
	ends, ready, again := p.ends, p.ready, p.restarts
	p.mu.Unlock()
	for _, s := range signals {
		p.signal(s)
	}
	if !again {
		p.wait()
		return
	}
	p.until("ends", func() bool { return p.ends > ends })
	p.untilReady(ready + 1)
}

// stop ends the process gracefully and for good.
func (p *process) stop() error {
	p.t.Helper()
	p.change(func() { p.restarts = false })
	p.signal(syscall.SIGTERM)
	p.wait()
	return p.err
}

func (p *process) wait() {
	p.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.over:
	case <-timer.C:
		p.t.Fatalf("waited %v for %s to end", patience, p.name)
	}
}
