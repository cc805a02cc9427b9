package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestDrawable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		columns int
		term    string
		bar     bool
	}{
		{100, "xterm", true},
		{80, "xterm-256color", true},
		{60, "xterm", false},
		{20, "xterm", false},
		{0, "xterm", false},
		{100, "dumb", false},
		{100, "", false},
	} {
		s := &screen{w: &bytes.Buffer{}, columns: drawable(c.columns, c.term)}
		_, isBar := newProgress(s, 10, zap.NewNop()).(*bar)
		if isBar != c.bar {
			t.Errorf("%d columns of %q: bar %v, want %v", c.columns, c.term, isBar, c.bar)
		}
	}
}

func TestScreenOfNoTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	file, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if openScreen(file).columns != 0 || openScreen(&bytes.Buffer{}).columns != 0 {
		t.Error("a file is taken for a terminal")
	}
}

func TestLinesEveryTenth(t *testing.T) {
	t.Parallel()
	for calls, want := range map[int]int{1000: 10, 10: 10, 7: 7, 1: 1, 25: 10} {
		core, logs := observer.New(zap.InfoLevel)
		p := newProgress(&screen{}, calls, zap.New(core))
		count := newTally()
		for range calls {
			count.add(result{})
			p.step(count)
		}
		p.finish()
		if logs.Len() != want {
			t.Errorf("%d calls: %d lines, want %d", calls, logs.Len(), want)
		}
		last := logs.All()[logs.Len()-1].ContextMap()
		if last["percent"] != int64(100) || last["done"] != int64(calls) || last["errors"] != int64(0) {
			t.Errorf("%d calls: the last line is %v", calls, last)
		}
	}
}

// drawn runs a bar up to done of calls and returns what the terminal got.
func drawn(done, calls int) string {
	var out bytes.Buffer
	s := &screen{w: &out, columns: 80}
	p := newProgress(s, calls, zap.NewNop())
	count := newTally()
	for range done {
		count.add(result{})
		p.step(count)
	}
	p.finish()
	return out.String()
}

func TestBarHasNoColors(t *testing.T) {
	t.Parallel()
	got := drawn(20, 20)
	if strings.Contains(got, "\x1b") {
		t.Errorf("the bar has escape sequences: %q", got)
	}
	if !strings.Contains(got, "100%") || !strings.Contains(got, "(20/20") {
		t.Errorf("the bar does not show the end: %q", got)
	}
}

func TestBarEndsItsLine(t *testing.T) {
	t.Parallel()
	for _, done := range []int{3, 20} {
		if got := drawn(done, 20); !strings.HasSuffix(got, "\n") || strings.Count(got, "\n") != 1 {
			t.Errorf("after %d of 20: %q", done, got)
		}
	}
	if got := drawn(0, 20); got != "" {
		t.Errorf("a bar without a step: %q", got)
	}
}

func TestBarFitsItsTerminal(t *testing.T) {
	t.Parallel()
	for columns := 60; columns < 120; columns++ {
		for _, calls := range []int{10, 1000, 1_000_000, 1_000_000_000} {
			if barWidth(columns, calls) >= shortestBar {
				synctest.Test(t, func(t *testing.T) { fits(t, columns, calls) })
			}
		}
	}
	if barWidth(80, 1_000_000) < shortestBar {
		t.Error("a million calls get no bar in 80 columns")
	}
}

// fits draws a run of calls in 80 minutes, in steps of a quarter.
func fits(t *testing.T, columns, calls int) {
	t.Helper()
	var out bytes.Buffer
	p := newBar(&screen{w: &out, columns: columns}, calls)
	count := newTally()
	for quarter := range 5 {
		count.ok = int64(calls) * int64(quarter) / 4
		p.step(count)
		<-time.After(20 * time.Minute)
	}
	if !strings.Contains(out.String(), "100%") {
		t.Errorf("no end is drawn: %q", out.String())
	}
	for part := range strings.SplitSeq(out.String(), "\r") {
		if width := len([]rune(part)); width >= columns {
			t.Errorf("%d columns, %d calls: the bar takes %d: %q", columns, calls, width, part)
		}
	}
}

func TestScreenWipesTheBarForALine(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := &screen{w: &out, columns: 80}
	write := func(text string) {
		t.Helper()
		if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	write("one\n")
	if _, err := (barWriter{s}).Write([]byte("bar")); err != nil {
		t.Fatal(err)
	}
	write("two\n")
	write("three\n")
	s.endBar()
	if want := "one\nbar\r\x1b[Ktwo\nthree\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
