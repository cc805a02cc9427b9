package report

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// names lists a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := []string{filepath.Join(dir, "report.json"), filepath.Join(dir, "report.html")}
	for range 2 { // The second replaces the first.
		if paths, err := sample().Write(dir); err != nil || !slices.Equal(paths, want) {
			t.Fatalf("wrote %q, %v", paths, err)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"report.html", "report.json"}) {
		t.Fatalf("the directory holds %q", got)
	}
	for _, path := range want {
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	content, err := os.ReadFile(want[0])
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(content, &back); err != nil || back.Calls != sample().Calls || !back.Started.Equal(sample().Started) {
		t.Errorf("read back %+v, %v", back, err)
	}
}

// If one file cannot be written, the other is written, and no partial file remains.
func TestWriteOneOfTwo(t *testing.T) {
	t.Parallel()
	for blocked, other := range map[string]string{"report.json": "report.html", "report.html": "report.json"} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, blocked, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		paths, err := sample().Write(dir)
		if err == nil || !strings.HasPrefix(err.Error(), "write the report "+filepath.Join(dir, blocked)+": ") {
			t.Errorf("%s: got %v", blocked, err)
		}
		if !slices.Equal(paths, []string{filepath.Join(dir, other)}) {
			t.Errorf("%s: wrote %q", blocked, paths)
		}
		if got := names(t, dir); len(got) != 2 {
			t.Errorf("%s: the directory holds %q", blocked, got)
		}
	}
}

func TestWriteNowhere(t *testing.T) {
	t.Parallel()
	vanished := filepath.Join(t.TempDir(), "vanished")
	for _, dir := range []string{vanished, "/proc/self/task"} { // procfs accepts no files, not even from root
		paths, err := sample().Write(dir)
		if err == nil || len(paths) != 0 {
			t.Fatalf("%s: wrote %q, %v", dir, paths, err)
		}
		for _, name := range []string{"report.json", "report.html"} {
			if !strings.Contains(err.Error(), "write the report "+filepath.Join(dir, name)+": open ") {
				t.Errorf("%s: %s is not named: %v", dir, name, err)
			}
		}
	}
}

func TestPrepareDir(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "deep", "er")
	if err := PrepareDir(missing); err != nil {
		t.Errorf("a missing directory is not made: %v", err)
	}
	if left := names(t, missing); len(left) != 0 {
		t.Errorf("something is left in it: %q", left)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := PrepareDir(filepath.Join(file, "dir")); err == nil {
		t.Error("a directory below a file was accepted")
	}
	if err := PrepareDir("/proc/self/task"); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a directory that cannot be written was accepted: %v", err)
	}
}
