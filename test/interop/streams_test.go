//go:build integration

package interop

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// The program of docs/protocol.md reads a server stream: items, order, credit and the end.
func TestPythonReadsAServerStream(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(rig.Root(t), "docs/protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(page), "### A client in Python\n\n```python\n")
	program, _, ok := strings.Cut(program, "```")
	if !ok {
		t.Fatal("docs/protocol.md has no program")
	}
	r := rig.New(t)
	s, err := amqpx.NewServer(r.URL, amqpx.WithQueue(r.Queue))
	if err != nil {
		t.Fatal(err)
	}
	const n = 50_000
	err = s.HandleStream("count", func(_ context.Context, x *amqpx.ServerStream) error {
		request, err := x.Recv()
		for i := 0; i < n && err == nil; i++ {
			err = x.Send(fmt.Append(nil, i))
		}
		if err == nil && string(request) == "fail" {
			err = amqpx.Errorf(amqpx.CodeNotFound, "no more")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Log("the server:", err)
		}
	}()
	if err := s.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	for request, want := range map[string]string{"succeed": "", "fail": "not_found: no more\n"} {
		cmd := exec.CommandContext(rig.Patience(t), python, "-c", program, r.Queue.Name, "count", request, r.URL)
		var says strings.Builder
		cmd.Stderr = &says
		out, err := cmd.Output()
		if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); len(lines) != n || lines[n-1] != fmt.Sprint(n-1) {
			t.Errorf("%s: %d lines, the last is %q", request, len(lines), lines[len(lines)-1])
		}
		if (err == nil) != (want == "") || says.String() != want {
			t.Errorf("%s: error %v, %q", request, err, says.String())
		}
	}
}
