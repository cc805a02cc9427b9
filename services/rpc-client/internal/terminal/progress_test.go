package terminal

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/internal/loadgen"
)

// wide returns a screen with the given number of columns.
func wide(columns int) (*Screen, *bytes.Buffer) {
	var out bytes.Buffer
	return &Screen{w: &out, size: func() int { return columns }}, &out
}

func counting(calls int64) loadgen.Workload { return loadgen.Workload{Calls: calls, InFlight: 1} }

func TestBarOnlyWhereItCanBeDrawn(t *testing.T) {
	t.Parallel()
	for columns, want := range map[int]bool{100: true, 80: true, 20: true, 12: true, 11: false, 0: false} {
		s, _ := wide(columns)
		if _, isBar := NewProgress(s, counting(10), zap.NewNop()).(*bar); isBar != want {
			t.Errorf("%d columns: bar %v, want %v", columns, isBar, want)
		}
	}
	if _, isBar := NewProgress(&Screen{}, counting(10), zap.NewNop()).(*bar); isBar {
		t.Error("a bar without a terminal")
	}
	for kind, want := range map[string]bool{"xterm": true, "xterm-256color": true, "dumb": false, "": false} {
		if canMove(kind) != want {
			t.Errorf("TERM=%q: %v, want %v", kind, !want, want)
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
	if OpenScreen(file).Columns() != 0 || OpenScreen(&bytes.Buffer{}).Columns() != 0 {
		t.Error("a file is taken for a terminal")
	}
}

func TestLinesEveryTenth(t *testing.T) {
	t.Parallel()
	for calls, want := range map[int]int{1000: 10, 10: 10, 7: 7, 1: 1, 25: 10} {
		core, logs := observer.New(zap.InfoLevel)
		p := NewProgress(&Screen{}, counting(int64(calls)), zap.New(core))
		if p.Every() != 0 {
			t.Errorf("a run by number ticks every %v", p.Every())
		}
		count := loadgen.NewResults()
		for range calls {
			count.Add(loadgen.Result{Latency: 2 * time.Millisecond})
			p.Step(count)
		}
		p.Finish(count)
		if logs.Len() != want {
			t.Errorf("%d calls: %d lines, want %d", calls, logs.Len(), want)
		}
		last := logs.All()[logs.Len()-1].ContextMap()
		if last["percent"] != int64(100) || last["done"] != int64(calls) || last["calls"] != int64(calls) || last["errors"] != int64(0) {
			t.Errorf("%d calls: the last line is %v", calls, last)
		}
		for _, name := range []string{"p50_ms", "p99_ms"} {
			if ms, ok := last[name].(float64); !ok || ms < 1.99 || ms > 2.01 {
				t.Errorf("%s is %v, want 2", name, last[name])
			}
		}
	}
}

func TestLinesByTime(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		workload loadgen.Workload
		want     time.Duration
	}{
		{"ten minutes", loadgen.Workload{Calls: loadgen.NoLimit, Duration: 10 * time.Minute}, time.Minute},
		{"ten seconds", loadgen.Workload{Calls: loadgen.NoLimit, Duration: 10 * time.Second}, 5 * time.Second},
		{"open, by number", loadgen.Workload{Calls: 6000, Rate: 10}, time.Minute},
		{"open, ends by number", loadgen.Workload{Calls: 6000, Rate: 10, Duration: time.Hour}, time.Minute},
		{"open, ends by time", loadgen.Workload{Calls: 6000, Rate: 1, Duration: 10 * time.Minute}, time.Minute},
	} {
		if got := (&lines{workload: c.workload}).Every(); got != c.want {
			t.Errorf("%s: a line every %v, want %v", c.name, got, c.want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		p := &lines{workload: loadgen.Workload{Calls: loadgen.NoLimit, Duration: 20 * time.Second}, logger: zap.New(core)}
		count := loadgen.NewResults()
		for second := range 3 {
			<-time.After(5 * time.Second)
			for range (second + 1) * 100 {
				count.Add(loadgen.Result{Latency: time.Millisecond})
				p.Step(count)
			}
			p.Tick(count)
		}
		p.Finish(count) // logs no further line
		all := logs.All()
		if len(all) != 3 {
			t.Fatalf("%d lines, want 3", len(all))
		}
		last := all[2].ContextMap()
		if last["percent"] != int64(75) || last["done"] != int64(600) || last["calls_per_second"] != 40.0 || last["recent_calls_per_second"] != 60.0 {
			t.Errorf("the last line is %v", last)
		}
		if _, told := last["calls"]; told {
			t.Error("a number of calls is told that there is not")
		}
	})
}

// drawn draws a bar for done of calls, in as many tenths of a second, and returns the output
// to the terminal.
func drawn(t *testing.T, columns, done, calls int) string {
	t.Helper()
	s, out := wide(columns)
	synctest.Test(t, func(*testing.T) {
		p, count := newBar(s, counting(int64(calls))), loadgen.NewResults()
		for range done {
			<-time.After(p.Every())
			count.Add(loadgen.Result{Latency: 1500 * time.Microsecond})
			p.Step(count)
			p.Tick(count)
		}
		p.Finish(count)
	})
	return out.String()
}

func TestBarShowsEverything(t *testing.T) {
	t.Parallel()
	got := drawn(t, 100, 30, 40)
	parts := strings.Split(strings.TrimSuffix(got, "\n"), wipe)
	if len(parts) != 32 { // the text before the first bar, and the last bar twice
		t.Errorf("drawn %d times: %q", len(parts)-1, got)
	}
	last := parts[len(parts)-1]
	for _, want := range []string{" 75%", "|███", "10/s", "p50 1.5 p99 1.5 ms", "0 errors", "3s, 1s left"} {
		if !strings.Contains(last, want) {
			t.Errorf("no %q in %q", want, last)
		}
	}
	if strings.Contains(strings.ReplaceAll(got, "\x1b[K", ""), "\x1b") {
		t.Errorf("the bar has colors: %q", got)
	}
	if end := drawn(t, 80, 20, 20); !strings.Contains(end, "100%") || strings.Contains(end[strings.LastIndex(end, wipe):], "left") {
		t.Errorf("the end is %q", end)
	}
}

func TestBarEndsItsLine(t *testing.T) {
	t.Parallel()
	for _, done := range []int{0, 3, 20} {
		if got := drawn(t, 80, done, 20); !strings.HasSuffix(got, "\n") || strings.Count(got, "\n") != 1 {
			t.Errorf("after %d of 20: %q", done, got)
		}
	}
}

// The rate is averaged over the last two seconds, so that a stall is visible.
func TestBarShowsTheRecentRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, out := wide(80)
		p, count := newBar(s, counting(1000)), loadgen.NewResults()
		for i := range 60 {
			<-time.After(p.Every())
			if i < 30 {
				count.OK += 10
			}
			p.Tick(count)
		}
		parts := strings.Split(out.String(), wipe)
		if before, after := parts[30], parts[60]; !strings.Contains(before, "100/s") || !strings.Contains(after, " 0/s") {
			t.Errorf("before the stall %q, after it %q", before, after)
		}
	})
}

func TestBarFitsItsTerminal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for columns := fewest; columns < 140; columns++ {
			for _, calls := range []int64{1, 10, 1000, 1_000_000, 1_000_000_000} {
				fits(t, columns, loadgen.Workload{Calls: calls})
			}
			fits(t, columns, loadgen.Workload{Calls: loadgen.NoLimit, Duration: 168 * time.Hour, Rate: 10_000_000})
		}
	})
}

// fits draws the run in steps of a quarter.
func fits(t *testing.T, columns int, g loadgen.Workload) {
	t.Helper()
	s, out := wide(columns)
	p, count := newBar(s, g), loadgen.NewResults()
	count.Errors["unavailable"] = 123_456
	for quarter := range int64(5) {
		count.OK = min(g.Calls, 1e9) * quarter / 4
		p.Tick(count)
		<-time.After(20 * time.Minute)
	}
	for part := range strings.SplitSeq(out.String(), wipe) {
		if width := utf8.RuneCountInString(part); width >= columns {
			t.Errorf("%d columns, %+v: the bar takes %d: %q", columns, g, width, part)
		}
		if part != "" && !strings.Contains(part, "%") {
			t.Errorf("%d columns: no share in %q", columns, part)
		}
	}
}

// If the terminal gets narrower during the run, the bar gets narrower, and it disappears while
// there is no room.
func TestBarFollowsItsTerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	columns := 100
	s := &Screen{w: &out, size: func() int { return columns }}
	p, count := newBar(s, counting(10)), loadgen.NewResults()
	for _, c := range []struct{ columns, least, most int }{{100, 60, 99}, {20, 10, 19}, {5, 0, 0}, {0, 0, 0}, {60, 40, 59}} {
		out.Reset()
		columns = c.columns
		p.Tick(count)
		if got := utf8.RuneCountInString(strings.TrimPrefix(out.String(), wipe)); got < c.least || got > c.most {
			t.Errorf("%d columns: %d are taken: %q", columns, got, out.String())
		}
	}
}

func TestScreenWipesTheBarForALine(t *testing.T) {
	t.Parallel()
	s, out := wide(80)
	write := func(text string) {
		t.Helper()
		if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	write("one\n")
	if err := s.draw("bar"); err != nil {
		t.Fatal(err)
	}
	write("two\n")
	write("three\n")
	s.endBar()
	if want := "one\n\r\x1b[Kbar\r\x1b[Ktwo\nthree\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
