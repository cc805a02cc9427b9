package contender

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFiguresOfAReport(t *testing.T) {
	t.Parallel()
	const report = `{"passed":true,"calls":1000,"ok":1000,"seconds":2.5,"latency_ms":{"p50":1.5,"p99":20,"p999":30,"max":40.25},"rate":{"not_begun":7}}`
	got, err := figuresOf([]byte(report))
	want := Figures{
		Calls: 1000, Elapsed: 2500 * time.Millisecond, P50: 1500 * time.Microsecond,
		P99: 20 * time.Millisecond, P999: 30 * time.Millisecond, Max: 40_250 * time.Microsecond, NotBegun: 7,
	}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for name, changed := range map[string]string{
		"failed":       strings.Replace(report, "true", "false", 1),
		"a wrong call": strings.Replace(report, `"ok":1000`, `"ok":999`, 1),
		"no time":      strings.Replace(report, "2.5", "0", 1),
		"cut":          report[:20],
	} {
		if got, err := figuresOf([]byte(changed)); err == nil {
			t.Errorf("%s: figures %+v", name, got)
		}
	}
}

func TestSettingsOfALoad(t *testing.T) {
	t.Parallel()
	closed := Load{Callers: 64, Duration: 5 * time.Second, Calls: 1_000_000}.settings("dir")
	for _, want := range []string{"RPC_CONCURRENCY=64", "RPC_DURATION=5s", "RPC_CALLS=1000000", "RPC_BODY=request", "RPC_EXPECT=b", "RPC_REPORT_DIR=dir"} {
		if !slices.Contains(closed, want) {
			t.Errorf("no %s in %v", want, closed)
		}
	}
	open := Load{Rate: 5000, InFlight: 4096, Duration: time.Second, Calls: 1}.settings("dir")
	if !slices.Contains(open, "RPC_RATE=5000") || !slices.Contains(open, "RPC_CONCURRENCY=4096") {
		t.Errorf("settings %v", open)
	}
}

func TestReadLog(t *testing.T) {
	t.Parallel()
	times := 0
	last := readLog(strings.NewReader(`{"msg":"server starts"}
{"level":"info","msg":"ready"}
{"msg":"ready"}
{"msg":"server stopped"}
`), func() { times++ })
	if times != 1 || last != `{"msg":"server stopped"}` {
		t.Errorf("ready %d times, last line %s", times, last)
	}
}
