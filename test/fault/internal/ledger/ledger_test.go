package ledger_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/ledger"
)

func entries(t *testing.T, dir string) []ledger.Entry {
	t.Helper()
	var all []ledger.Entry
	if err := ledger.ReadDir(dir, func(e ledger.Entry) { all = append(all, e) }); err != nil {
		t.Fatal(err)
	}
	return all
}

func open(t *testing.T, path, node string) *ledger.Writer {
	t.Helper()
	w, err := ledger.Open(path, node)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestEntriesSurviveTheRoundTrip(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := open(t, filepath.Join(dir, "c"+ledger.Suffix), "c")
	want := ledger.Entry{
		Kind: ledger.Start, Node: "c", At: time.Now().Round(0), ID: "c-1", Method: ledger.Echo,
		Idempotent: true, Deadline: time.Now().Add(time.Minute).Round(0), Sum: ledger.Sum([]byte("c-1\n\"x\"")),
		Shape: ledger.AllShape, Servers: []int{1, 2}, Key: "key", User: "user", Server: "server",
	}
	if err := w.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got := entries(t, dir)
	if len(got) != 1 || !got[0].At.Equal(want.At) || !got[0].Deadline.Equal(want.Deadline) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	got[0].At, got[0].Deadline = want.At, want.Deadline
	if !reflect.DeepEqual(got[0], want) {
		t.Errorf("got %+v, want %+v", got[0], want)
	}
}

func TestWritersOfOneFileDoNotMix(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s"+ledger.Suffix)
	const writers, lines = 8, 200
	var all sync.WaitGroup
	for range writers {
		w := open(t, path, "s")
		all.Go(func() {
			for range lines {
				if err := w.Write(ledger.Entry{Kind: ledger.Run, ID: strings.Repeat("x", 500)}); err != nil {
					t.Error(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := len(entries(t, dir)); got != writers*lines {
		t.Errorf("%d entries, want %d", got, writers*lines)
	}
}

func TestTornLastLineIsLeftOut(t *testing.T) {
	t.Parallel()
	var got int
	text := `{"kind":"run","id":"a","at":"2026-01-02T03:04:05Z"}` + "\n" + `{"kind":"run","id":"b`
	if err := ledger.Read(strings.NewReader(text), func(ledger.Entry) { got++ }); err != nil {
		t.Fatal(err)
	}
	if got != 1 {
		t.Errorf("%d entries, want 1", got)
	}
}

func TestTornLineInTheMiddleIsAnError(t *testing.T) {
	t.Parallel()
	text := `{"kind":"run","id":"b` + "\n" + `{"kind":"run","id":"a"}` + "\n"
	if err := ledger.Read(strings.NewReader(text), func(ledger.Entry) {}); err == nil {
		t.Error("a damaged ledger was accepted")
	}
}

func TestNoLedgerIsAnError(t *testing.T) {
	t.Parallel()
	if err := ledger.ReadDir(t.TempDir(), func(ledger.Entry) {}); err == nil {
		t.Error("an empty folder was accepted")
	}
}

// TestKilledWriterLosesNothing: no written entry is lost if the writer is killed. The writer
// is this test program, run again.
func TestKilledWriterLosesNothing(t *testing.T) {
	t.Parallel()
	const env, lines = "LEDGER_TEST_FILE", 100
	if path := os.Getenv(env); path != "" {
		w := open(t, path, "victim")
		for range lines {
			if err := w.Write(ledger.Entry{Kind: ledger.Run}); err != nil {
				t.Fatal(err)
			}
		}
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		_ = self.Kill()
		select {}
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), env+"="+filepath.Join(dir, "v"+ledger.Suffix))
	if err := cmd.Run(); err == nil {
		t.Fatal("the writer was not killed")
	}
	if got := len(entries(t, dir)); got != lines {
		t.Errorf("%d entries, want %d", got, lines)
	}
}
