package main

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/services/rpc-client/internal/terminal/terminaltest"
)

// wipe returns to the start of a terminal's line and erases the line.
const wipe = "\r\x1b[K"

// endOfRun matches the last bar and what follows the bar: the whole summary, and only then a line
// of the log. On a slow machine the run may be given up before all calls were made.
var endOfRun = regexp.MustCompile(`^ *\d+% .*?(\d+) err.*\nFAILED: .*\n  calls +(\d+)\n(?:  .*\n){5,}(?:given up: .*\n)?\S+Z\tINFO\tclient finished\t`)

// A whole run on a terminal, which shows both outputs: the bar is as wide as the terminal and
// without colors, with or without NO_COLOR, and the log lines stand above the bar, each line
// whole. The summary follows the bar at once.
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
		for variable, value := range map[string]string{
			"TERM": "xterm", "AMQP_URL": "amqp://127.0.0.1:1/", "HTTP_ADDR": "127.0.0.1:0",
			"RPC_CALLS": "8", "RPC_CONCURRENCY": "4", "RPC_TIMEOUT": "250ms",
		} {
			t.Setenv(variable, value)
		}
		master, slave, err := terminaltest.Open(columns)
		if err != nil {
			t.Fatal(err)
		}
		var shown bytes.Buffer
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(&shown, master) }) // ends when the other side is closed
		code := lifecycle.Finish(slave, name, run(t.Context(), nil, slave, slave))
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
		last := text[strings.LastIndex(text, wipe)+len(wipe):]
		if end := endOfRun.FindStringSubmatch(last); end == nil || end[1] != end[2] {
			t.Errorf("%d columns: the last bar is wrong, or something else than the summary follows the bar: %q", columns, last)
		}
		first, _, _ := strings.Cut(text, "\n")
		// Only the settings that differ from the defaults.
		const changed = `{"AMQP_URL":"amqp://guest@127.0.0.1:1","HTTP_ADDR":"127.0.0.1:0","RPC_CALLS":"8","RPC_CONCURRENCY":"4","RPC_TIMEOUT":"250ms"}`
		if !strings.Contains(first, "client starts") || !strings.Contains(first, `"config": `+changed) || len(first) > 400 {
			t.Errorf("%d columns: the first line is %q", columns, first)
		}
	}
}
