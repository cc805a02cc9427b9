package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal with the given number of columns and returns both ends.
func terminal(t *testing.T, columns uint16) (screenSide, programSide *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	resize(t, master, columns)
	return master, slave
}

func resize(t *testing.T, master *os.File, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

func TestScreenFollowsItsTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	master, slave := terminal(t, 100)
	defer func() { _, _ = master.Close(), slave.Close() }()
	s := OpenScreen(slave)
	for _, columns := range []uint16{100, 20, 5, 80} {
		resize(t, master, columns)
		want := int(columns)
		if columns < fewest {
			want = 0
		}
		if got := s.Columns(); got != want {
			t.Errorf("%d columns are taken for %d", columns, got)
		}
	}
	t.Setenv("TERM", "dumb")
	if OpenScreen(slave).Columns() != 0 {
		t.Error("a bar on a terminal that cannot go back")
	}
}

// A whole run on a terminal: the bar is as wide as the terminal and without colors, with or
// without NO_COLOR, and the log lines stand above the bar, each line whole.
//
//nolint:paralleltest // sets the environment
func TestRunOnATerminal(t *testing.T) {
	for _, c := range []struct {
		columns uint16
		noColor string
	}{{100, ""}, {100, "1"}, {20, "1"}} {
		columns := c.columns
		isolate(t)
		t.Setenv("NO_COLOR", c.noColor)
		if c.noColor == "" {
			_ = os.Unsetenv("NO_COLOR") // restored after the test
		}
		for name, value := range map[string]string{
			"TERM": "xterm", "AMQP_URL": "amqp://127.0.0.1:1/", "HTTP_ADDR": "127.0.0.1:0",
			"RPC_CALLS": "20", "RPC_CONCURRENCY": "4", "RPC_TIMEOUT": "250ms",
		} {
			t.Setenv(name, value)
		}
		master, slave := terminal(t, columns)
		var shown bytes.Buffer
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(&shown, master) }) // ends when the other side is closed
		code, _ := execute(t.Context(), slave)
		if err := slave.Close(); err != nil {
			t.Fatal(err)
		}
		reading.Wait()
		_ = master.Close()
		if code != 1 {
			t.Errorf("exit code %d", code)
		}
		text := strings.ReplaceAll(shown.String(), "\r\n", "\n")
		if bars := strings.Count(text, wipe); bars < 3 {
			t.Errorf("only %d bars in %q", bars, text)
		}
		if left := strings.ReplaceAll(text, "\x1b[K", ""); strings.Contains(left, "\x1b") {
			t.Errorf("NO_COLOR=%s: there are colors in %q", c.noColor, text)
		}
		for line := range strings.SplitSeq(text, "\n") {
			parts := strings.Split(line, wipe)
			for _, bar := range parts[:len(parts)-1] { // the erased bars
				if bar != "" && !strings.Contains(bar, "%") || utf8.RuneCountInString(bar) >= int(columns) {
					t.Errorf("%d columns: %q was wiped", columns, bar)
				}
			}
			last := parts[len(parts)-1]
			// A line of the log for people begins with the time.
			if year := time.Now().UTC().Format("2006-"); strings.HasPrefix(last, year) != strings.HasSuffix(last, "}") {
				t.Errorf("%d columns: not a whole line: %q", columns, last)
			}
		}
		first, _, _ := strings.Cut(text, "\n")
		if !strings.Contains(first, "client starts") || strings.Contains(first, "RPC_WORKERS") || len(first) > 400 {
			t.Errorf("%d columns: the first line is %q", columns, first)
		}
		if !strings.Contains(text, "100%") || !strings.Contains(text, "20 err") {
			t.Errorf("%d columns: the end is missing: %q", columns, text)
		}
	}
}
