//go:build e2e

package e2e

import (
	"bufio"
	"io"
	"strconv"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// follow returns the lines of r until its end.
func follow(r io.Reader) <-chan string {
	lines := make(chan string)
	go func() { // ends when the process closes its output
		defer close(lines)
		for scanner := bufio.NewScanner(r); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	return lines
}

// waitFor reads lines until one contains the text.
func waitFor(t *testing.T, lines <-chan string, text string) {
	t.Helper()
	for {
		line := rig.Recv(t, lines, "a line with "+text)
		if line == "" {
			t.Fatalf("the output ended without %s", text)
		}
		if strings.Contains(line, text) {
			return
		}
	}
}
