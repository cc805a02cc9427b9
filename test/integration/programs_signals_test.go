//go:build integration

package integration

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// deaf starts a program, stops reading its output after the first line, and returns the
// program and its end.
func deaf(t *testing.T, program string, env ...string) (*os.Process, <-chan error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), append(env, "HTTP_ADDR=127.0.0.1:0", "LOG_LEVEL=debug")...)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	_ = w.Close()
	if _, err := bufio.NewReaderSize(r, 1).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the program
	return cmd.Process, ended
}

// TestProgramsWhoseOutputNobodyReads runs a server and a client with output to a pipe without
// a reader, as in `rpc-client | head -n 1`. The server must serve and drain; the client must
// make its calls, write its report and leave no queue behind.
func TestProgramsWhoseOutputNobodyReads(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	env := []string{"AMQP_URL=" + r.URL, "RPC_QUEUE=" + r.Queue.Name}
	server, served := deaf(t, rig.Build(t, "rpc-server"), env...)
	report := t.TempDir()
	_, called := deaf(t, rig.Build(t, "rpc-client"), append(env, "RPC_CALLS=200", "RPC_TIMEOUT=30s", "RPC_REPORT_DIR="+report)...)
	if err := rig.Recv(t, called, "the client's end"); err != nil {
		t.Errorf("client: %v", err)
	}
	if _, err := os.Stat(filepath.Join(report, "report.json")); err != nil {
		t.Error(err)
	}
	if err := server.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := rig.Recv(t, served, "the server's end"); err != nil {
		t.Errorf("server: %v", err)
	}
}

// TestSignalsOfWrappers sends a busy server the signals of terminals and GNU timeout, and
// shows that it drains.
func TestSignalsOfWrappers(t *testing.T) {
	t.Parallel()
	program := rig.Build(t, "rpc-server")
	for name, signals := range map[string][]os.Signal{
		"timeout":           {syscall.SIGTERM, syscall.SIGTERM},
		"Ctrl-C under make": {syscall.SIGINT, syscall.SIGINT, syscall.SIGINT},
		"terminal closed":   {syscall.SIGHUP, syscall.SIGHUP},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			server := rig.Run(t, []string{"AMQP_URL=" + r.URL, "RPC_QUEUE=" + r.Queue.Name, "HTTP_ADDR=127.0.0.1:0"}, program)
			server.Says(`"ready"`)
			for _, signal := range signals {
				server.Signal(signal)
			}
			if err := server.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}
