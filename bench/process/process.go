package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"rabbitmq-rpc/bench/contender"
)

// process is a child process, seen from the benchmark.
type process struct {
	name string // for errors
	cmd  *exec.Cmd
	in   io.WriteCloser
	send *json.Encoder
	recv *json.Decoder

	endpoint string // the address it listens on; empty if it does not listen
}

// startProcess starts one process of a contender and waits until the process is ready. An empty
// program starts this program as a child. The process has the environment of this process, with
// the given variables.
func startProcess(ctx context.Context, b childConfig, program []string, variables ...string) (_ *process, err error) {
	if len(program) == 0 {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		program = []string{exe, ChildArg}
	}
	s := &process{name: fmt.Sprintf("%s %s", b.Contender, b.Role), cmd: exec.CommandContext(ctx, program[0], program[1:]...)} //nolint:gosec // this very program, or what the user named.
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(os.Interrupt) }
	s.cmd.WaitDelay = contender.EndTimeout
	s.cmd.Stderr = os.Stderr
	s.cmd.Env = append(os.Environ(), variables...)
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.send, s.recv = json.NewEncoder(s.in), json.NewDecoder(out)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	r, err := s.ask(b)
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	s.endpoint = r.Endpoint
	return s, nil
}

// ask sends a configuration or a command and waits for the reply.
func (s *process) ask(question any) (reply, error) {
	var r reply
	if err := s.send.Encode(question); err != nil {
		return r, s.named(err)
	}
	if err := s.recv.Decode(&r); err != nil {
		return r, s.named(fmt.Errorf("ended early: %w", err))
	}
	if r.Error != "" {
		return r, s.named(errors.New(r.Error))
	}
	return r, nil
}

func (s *process) named(err error) error {
	return fmt.Errorf("%s: %w", s.name, err)
}

// stop closes the process's input, which ends the process, and kills the process if it does
// not end in time.
func (s *process) stop() error {
	_ = s.in.Close() // the end of its input ends the process
	timer := time.AfterFunc(2*contender.EndTimeout, func() { _ = s.cmd.Process.Kill() })
	defer timer.Stop()
	if err := s.cmd.Wait(); err != nil {
		return s.named(err)
	}
	return nil
}
